"""Couplings by a mask: which elements pass, and which are conditioned on which."""

import pytest
import torch

import flowkit as fk
from tests.support import perturb

CHECKERBOARD = (torch.arange(4)[:, None] + torch.arange(4)).remainder(2).eq(0)[None]
ALTERNATING = torch.arange(5).remainder(2).eq(0)


def coupling(mask):
    view = fk.Partition(mask)
    rest = mask.numel() - view.passing
    net = perturb(fk.nets.MLP((view.passing,), (rest, 2), hidden=(8,)), scale=0.5)
    return fk.within(view, fk.Coupling(fk.maps.Affine(), net, dim=-1, passing=view.passing))


@pytest.mark.parametrize("mask", [ALTERNATING, ~ALTERNATING, CHECKERBOARD], ids=["vector", "others", "checkerboard"])
def test_what_the_mask_names_passes_and_conditions_the_others(mask):
    part = coupling(mask)
    x = torch.randn(mask.shape)
    z, _ = part(x)
    assert torch.equal(z[mask], x[mask]) and bool((z != x)[~mask].all())
    size = mask.numel()
    jacobian = torch.func.jacrev(lambda x: part(x)[0])(x).reshape(size, size)
    inside = mask.flatten()
    wanted = torch.eye(size, dtype=torch.bool) | (~inside[:, None] & inside)
    assert torch.equal(jacobian != 0, wanted)


def test_a_partition_keeps_the_order_of_either_side():
    mask = torch.tensor([[False, True], [True, False]])
    view = fk.Partition(mask)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    z, log_det = view(x)
    assert z.tolist() == [2, 3, 1, 4] and view.passing == 2 and log_det == 0
    assert torch.equal(view.inverse(z)[0], x)


def test_a_mask_that_was_drawn_comes_back_with_the_state():
    one, other = fk.Partition(ALTERNATING), fk.Partition(torch.tensor([False, False, True, True, True]))
    other.load_state_dict(one.state_dict())
    x = torch.randn(3, 5)
    assert torch.equal(other(x)[0], one(x)[0]) and torch.equal(other.inverse(one(x)[0])[0], x)


def test_the_state_of_a_view_stands_once_in_a_chain():
    part = coupling(ALTERNATING)
    assert not [key for key in part.state_dict() if key.startswith("2.")]
    assert part[2].inv is part[0]
    before = part(torch.ones(5))[0]
    doubled = {name: value * 2 for name, value in part.named_parameters()}
    torch.func.functional_call(part, {**doubled, **dict(part.named_buffers())}, torch.ones(5))
    assert torch.equal(part(torch.ones(5))[0], before)


def test_what_does_not_fit_is_refused():
    with pytest.raises(TypeError, match=r"mask is torch.int64, wanted torch.bool"):
        fk.Partition(torch.tensor([0, 1]))
    for mask in (torch.ones(3), torch.zeros(3)):
        with pytest.raises(ValueError, match=r"of 3 elements of mask are true, wanted a part"):
            fk.Partition(mask.bool())
    view = fk.Partition(CHECKERBOARD)
    with pytest.raises(fk.ShapeError, match=r"Partition: x has shape \(2, 1, 4, 5\), wanted \(\*batch, 1, 4, 4\)"):
        view(torch.zeros(2, 1, 4, 5))
    with pytest.raises(fk.ShapeError, match=r"Partition: z has shape \(15,\), wanted \(\*batch, 16\)"):
        view.inverse(torch.zeros(15))
    with pytest.raises(ValueError, match="passing is 0, wanted a whole number of at least 1"):
        fk.Coupling(fk.maps.Affine(), torch.nn.Identity(), dim=-1, passing=0)
    with pytest.raises(fk.ShapeError, match=r"x has shape \(2, 3\), wanted at least 4 along -1"):
        fk.Coupling(fk.maps.Affine(), torch.nn.Identity(), dim=-1, passing=3)(torch.zeros(2, 3))
