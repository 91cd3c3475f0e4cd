"""What is particular to autoregressive parts: how often they run what, and that the fast way is the slow way."""

import pytest
import torch

import flowkit as fk
from flowkit.maps import Affine, RationalQuadratic
from flowkit.nets import MADE
from tests.support import perturb


class Plain(torch.nn.Module):
    """A net that knows nothing of its features, and counts its runs."""

    def __init__(self, net, groups=None):
        super().__init__()
        self.net, self.runs = net, 0
        if groups is not None:
            self.groups = groups

    def forward(self, x, context=None):
        self.runs += 1
        return self.net(x, context)


class Counted(Affine):
    """How many elements it was run on, and how often."""

    def __init__(self):
        super().__init__()
        self.elements = []

    def inverse(self, z, context=None):
        self.elements.append(z[0].numel())
        return super().inverse(z, context)


def one_after_another(map, net, z):
    """The definition: a whole pass of the net for every feature, and the map on that feature."""
    x = torch.zeros_like(z)
    for group in net.groups:
        for i in group:
            x[..., i] = map.inverse(z[..., i], net(x)[..., i, :])[0]
    return x


@pytest.mark.parametrize("map", [Affine(), RationalQuadratic(8)], ids=repr)
def test_sampling_64_features_is_the_sequential_result(map):
    net = perturb(MADE(64, map.num_params, hidden=(128, 128), order=torch.randperm(64)), scale=0.03)
    flow, z = fk.Autoregressive(map, net), torch.randn(50, 64)
    with torch.no_grad():
        x, minus = flow.inverse(z)
        assert (x - one_after_another(map, net, z)).abs().max() < 1e-5
        back, log_det = flow(x)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-4)
    torch.testing.assert_close(minus, -log_det, rtol=0, atol=1e-4)
    assert (x - z).abs().max() > 0.1  # no identity


def blocks(features, size):
    """Adjacency of blocks of `size` features that read all blocks before theirs."""
    block = torch.arange(features) // size
    return block[:, None] > block


@pytest.mark.parametrize(
    ("net", "passes"),
    [
        (MADE(64, 2), 64),
        (MADE(64, 2, adjacency=blocks(64, 8)), 8),
        (MADE(64, 2, adjacency=blocks(64, 32)), 2),
        (MADE(64, 2, adjacency=torch.zeros(64, 64)), 1),
    ],
)
def test_as_many_steps_as_the_dependencies_are_deep_and_every_element_once(net, passes):
    map, z = Counted(), torch.randn(3, 64)
    runs = []
    net.register_forward_hook(lambda *_: runs.append(1))
    fk.Autoregressive(map, net).inverse(z)
    assert len(runs) == 1 and len(map.elements) == passes and sum(map.elements) == 64
    # A net that knows only its groups runs once for each, and gives the same.
    map, plain = Counted(), Plain(net, net.groups)
    x, _ = fk.Autoregressive(map, plain).inverse(z)
    assert plain.runs == len(map.elements) == passes and sum(map.elements) == 64
    torch.testing.assert_close(x, fk.Autoregressive(Affine(), net).inverse(z)[0])


def test_any_net_is_run_in_its_natural_order():
    net = perturb(MADE(5, 2, hidden=(16,), context=2), scale=0.5).double()
    z, context = torch.randn(3, 5, dtype=torch.double), torch.randn(3, 2, dtype=torch.double)
    plain = Plain(net)
    x, log_det = fk.Autoregressive(Affine(), plain).inverse(z, context)
    assert plain.runs == 5
    for got, wanted in zip((x, log_det), fk.Autoregressive(Affine(), net).inverse(z, context), strict=True):
        torch.testing.assert_close(got, wanted)


def test_a_flow_knows_its_shape_without_going_through_all_features():
    plain = Plain(MADE(5, 2))
    flow = fk.Flow(fk.Autoregressive(Affine(), plain), fk.Normal((5,)))
    assert flow.event_shape == (5,) and plain.runs == 1
    assert flow.sample((2,)).shape == (2, 5) and plain.runs == 6


def test_a_sample_and_its_density_run_the_net_once():
    net, runs = MADE(5, 2), []
    flow = fk.Flow(fk.Autoregressive(Affine(), net), fk.Normal((5,)))
    net.register_forward_hook(lambda *_: runs.append(1))
    flow.sample_and_log_prob((7,))
    assert len(runs) == 1


def test_samples_carry_the_gradients_of_the_sequential_result():
    net = perturb(MADE(4, 2, hidden=(8,), order=(1, 3, 0, 2)), scale=0.5).double()
    z = torch.randn(3, 4, dtype=torch.double, requires_grad=True)
    wanted = [z, *net.parameters()]
    fast = torch.autograd.grad(fk.Autoregressive(Affine(), net).inverse(z)[0].sin().sum(), wanted)
    slow = torch.autograd.grad(fk.Autoregressive(Affine(), Plain(net, net.groups)).inverse(z)[0].sin().sum(), wanted)
    for got, want in zip(fast, slow, strict=True):
        torch.testing.assert_close(got, want)


def test_the_triangle_of_its_jacobian_follows_the_order():
    order = [2, 0, 3, 1]
    flow = fk.Autoregressive(Affine(), perturb(MADE(4, 2, (16,), order=order), scale=0.5))
    for run in (flow, flow.inverse):
        jacobian = torch.func.jacrev(lambda x, run=run: run(x)[0])(torch.randn(4))[order][:, order]
        assert torch.equal(jacobian.triu(1), torch.zeros(4, 4)) and jacobian[0, 0] != 0


def test_what_does_not_fit_is_refused():
    flow = fk.Autoregressive(Affine(), MADE(3, 2))
    with pytest.raises(fk.ShapeError, match=r"Autoregressive: x has shape \(2, 4\), wanted \(\*batch, 3\)"):
        flow(torch.zeros(2, 4))
    with pytest.raises(fk.ShapeError, match=r"Autoregressive: z has shape \(\), wanted \(\*batch, 3\)"):
        flow.inverse(torch.tensor(0.0))
    for run in (lambda part: part(torch.zeros(2, 3)), lambda part: part.inverse(torch.zeros(2, 3))):
        with pytest.raises(fk.ShapeError, match=r"the conditioner gave .* Affine\(\) has 2 parameters"):
            run(fk.Autoregressive(Affine(), MADE(3, 5)))
    with pytest.raises(TypeError, match="map is a MADE"):
        fk.Autoregressive(MADE(3, 2), Affine())
    with pytest.raises(ValueError, match=r"net.groups is \(\(0,\), \(2,\)\)"):
        fk.Autoregressive(Affine(), Plain(MADE(3, 2), groups=((0,), (2,))))
    for groups in (5, (0, 1, 2), ((0,), (), (1,)), (("a",),)):
        with pytest.raises(ValueError, match="wanted groups of features"):
            fk.Autoregressive(Affine(), Plain(MADE(3, 2), groups=groups))
