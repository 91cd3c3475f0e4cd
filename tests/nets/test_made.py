"""MADE's masks: what reads what, in every order and width, at once and in turn."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import flowkit as fk
from flowkit.nets import MADE
from flowkit.testing.strategies import seeds
from tests.support import perturb


def reads(net, context=None):
    """(features, features): whether an output of i moves with feature j, by the Jacobian."""
    net = perturb(net, scale=0.5).double()
    jacobian = torch.func.jacrev(lambda x: net(x, context))(torch.randn(net.features, dtype=torch.double))
    return jacobian.abs().amax(1) > 0


def before(order):
    """(features, features): whether j comes before i."""
    place = torch.tensor(order).argsort()
    return place[:, None] > place


features = st.integers(1, 6)
widths = st.lists(st.integers(1, 9), max_size=3).map(tuple)


@given(data=st.data(), hidden=widths, out=st.integers(1, 3), context=st.sampled_from([0, 2]))
def test_outputs_read_only_what_comes_before(data, hidden, out, context):
    order = data.draw(st.permutations(range(data.draw(features, label="features"))), label="order")
    net = MADE(len(order), out, hidden, context, torch.nn.Tanh, order=order)
    given_context = torch.randn(context, dtype=torch.double) if context else None
    assert not (reads(net, given_context) & ~before(order)).any()
    assert net.groups == tuple((i,) for i in order)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
@pytest.mark.parametrize("hidden", [(4, 4), (11, 11)])
def test_outputs_read_all_that_comes_before(order, hidden, residual):
    net = MADE(5, 2, hidden, activation=torch.nn.Tanh, order=order, residual=residual)
    assert torch.equal(reads(net), before(order))


def test_without_hidden_layers_it_is_linear_and_reads_all_that_comes_before():
    assert torch.equal(reads(MADE(4, 2, hidden=())), before(range(4)))


@given(seed=seeds(), features=features, width=st.integers(1, 20))
def test_an_adjacency_is_kept_edge_by_edge(seed, features, width):
    generator = torch.Generator().manual_seed(seed)
    names = torch.randperm(features, generator=generator)
    adjacency = (torch.rand(features, features, generator=generator) < 0.5).tril(-1)[names][:, names]
    net = MADE(features, 2, (width, width), activation=torch.nn.Tanh, adjacency=adjacency)
    assert not (reads(net) & ~adjacency).any()
    if width >= features:  # a unit for every set
        assert torch.equal(reads(net), adjacency)
    # Groups: all that a feature reads stands in earlier ones, and something in the one just before.
    level = {i: k for k, group in enumerate(net.groups) for i in group}
    for i in range(features):
        below = [level[j] for j in range(features) if adjacency[i, j]]
        assert level[i] == (max(below) + 1 if below else 0)


@pytest.mark.parametrize("hidden", [(), (1,), (3, 2), (16, 5)])
@pytest.mark.parametrize("features", [1, 4])
def test_a_context_reaches_the_outputs_of_every_feature(features, hidden):
    net = perturb(MADE(features, 2, hidden, context=3, order=range(features)[::-1]), scale=0.5).double()
    jacobian = torch.func.jacrev(lambda c: net(torch.zeros(features, dtype=torch.double), c))(
        torch.randn(3, dtype=torch.double)
    )
    wide = not hidden or min(hidden) > 1
    assert bool((jacobian != 0).all()) or not wide


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"hidden": ()},
        {"hidden": (2, 9)},
        {"hidden": (16, 16), "order": (3, 0, 4, 1, 2)},
        {"hidden": (7, 7), "residual": True},
        {"hidden": (9,), "adjacency": torch.eye(5).roll(2, 0).tril()},
    ],
    ids=str,
)
def test_in_turn_it_gives_what_it_gives_at_once(options, context):
    net = perturb(MADE(5, 2, context=context, **options), scale=0.5).double()
    given_context = torch.randn(4, 1, context, dtype=torch.double) if context else None
    x = torch.randn(4, 6, 5, dtype=torch.double)
    wanted, seen = net(x, given_context), []

    def find(outputs):
        group = list(net.groups[len(seen)])
        seen.append(outputs)
        torch.testing.assert_close(outputs, wanted[..., group, :])
        return x[..., group]

    assert torch.equal(net(torch.full_like(x, torch.nan), given_context, find=find), x)
    assert len(seen) == len(net.groups)


def test_it_starts_at_0_and_keeps_its_masks_out_of_the_state():
    net = MADE(5, 3, hidden=(8,), context=2)
    assert torch.equal(net(torch.randn(2, 5), torch.randn(2, 2)), torch.zeros(2, 5, 3))
    assert set(net.state_dict()) == {
        "layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "from_context.weight"
    }  # fmt: skip


def test_units_are_spread_over_all_sets():
    """As many for 1, 2 and 3 known features; too few units for that hold the first and the last set."""
    assert MADE(4, 1, hidden=(6,)).layers[0].mask.sum(1).tolist() == [1, 1, 2, 2, 3, 3]
    assert MADE(4, 1, hidden=(6,), context=1).layers[0].mask.sum(1).tolist() == [0, 0, 1, 1, 2, 3]
    assert MADE(7, 1, hidden=(3,)).layers[0].mask.sum(1).tolist() == [1, 4, 6]
    assert MADE(7, 1, hidden=(1,)).layers[0].mask.sum(1).tolist() == [6]


def test_what_does_not_fit_is_refused():
    net = MADE(3, 2, context=4)
    with pytest.raises(fk.ShapeError, match=r"MADE: input has shape \(2, 4\), wanted \(\*batch, 3\)"):
        net(torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(fk.ShapeError, match="MADE: context is missing"):
        net(torch.zeros(2, 3))
    with pytest.raises(
        fk.ShapeError, match=r"MADE: context has shape \(3, 4\), wanted \(\*batch, 4\), for a batch \(2"
    ):
        net(torch.zeros(2, 3), torch.zeros(3, 4))
    with pytest.raises(fk.ShapeError, match="MADE: context has shape"):
        net(torch.zeros(3), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"order is \[0, 0, 1\], wanted each of 0 to 2 once"):
        MADE(3, 2, order=(0, 0, 1))
    with pytest.raises(ValueError, match=r"order is \[0, None, 1\], wanted each of 0 to 2 once"):
        MADE(3, 2, order=(0, None, 1))
    with pytest.raises(ValueError, match="give order or adjacency, not both"):
        MADE(2, 2, order=(0, 1), adjacency=torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"adjacency has shape \(2, 2\), wanted \(3, 3\)"):
        MADE(3, 2, adjacency=torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"adjacency has a circle among the features \[1, 2\]"):
        MADE(3, 2, adjacency=torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0]]))
    with pytest.raises(ValueError, match="wanted one width for all residual blocks"):
        MADE(3, 2, hidden=(8, 9), residual=True)
    with pytest.raises(ValueError, match="features is 0, wanted a whole number of at least 1"):
        MADE(0, 2)
    with pytest.raises(ValueError, match="hidden is 0, wanted a whole number of at least 1"):
        MADE(3, 2, hidden=(0,))


def layers_by_degree(features, out, widths, context=0, seed=0):
    """Masked layers whose hidden units stand in no order; units of the last degree lead nowhere."""
    generator = torch.Generator().manual_seed(seed)
    degrees = [torch.arange(features), *(torch.randint(features, (width,), generator=generator) for width in widths)]
    masks = [above[:, None] >= below for below, above in itertools.pairwise(degrees)]
    masks.append(torch.arange(features).repeat_interleave(out)[:, None] > degrees[-1])
    masks[0] = torch.cat([masks[0], torch.ones(len(masks[0]), context, dtype=torch.bool)], 1)
    normal = [torch.randn(*mask.shape, generator=generator, dtype=torch.float64) for mask in masks]
    return [(weight, weight.mean(1), mask) for weight, mask in zip(normal, masks, strict=True)]


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("widths", [(), (7,), (20, 5)])
def test_layers_from_elsewhere(widths, context):
    layers = layers_by_degree(4, 3, widths, context)
    net = MADE.from_layers(layers, 4, nn.Tanh)
    x, beside = torch.randn(6, 4).double(), torch.randn(6, context).double()
    wanted = torch.cat([x, beside], -1)
    for k, (weight, bias, mask) in enumerate(layers):
        wanted = F.linear(wanted if k == 0 else wanted.tanh(), weight * mask, bias)
    got = net(x, beside if context else None)
    torch.testing.assert_close(got, wanted.unflatten(-1, (4, 3)))
    # In turn, with features that are twice the last of their outputs.
    values = net(x, beside if context else None, find=lambda outputs: 2 * outputs[..., -1])
    torch.testing.assert_close(2 * net(values, beside if context else None)[..., -1], values)


def test_residual_blocks_from_elsewhere():
    def layer(mask, seed):
        weight = torch.randn(*mask.shape, generator=torch.Generator().manual_seed(seed))
        return weight, torch.zeros(len(mask)), mask

    degrees = torch.tensor([2, 0, 1, 0])
    enter, within = degrees[:, None] >= torch.arange(3), degrees[:, None] >= degrees
    leave = torch.arange(3)[:, None] > degrees
    layers = [layer(mask, k) for k, mask in enumerate([enter, within, within, leave])]
    net = MADE.from_layers(layers, 3, nn.ReLU, residual=True)
    x = torch.randn(5, 3)
    (w0, *_), (w1, *_), (w2, *_), (w3, *_) = ((weight * mask,) for weight, _, mask in layers)
    h = x @ w0.T
    h = h + (h.relu() @ w1.T).relu() @ w2.T
    torch.testing.assert_close(net(x)[..., 0], h @ w3.T)
    values = net(x, find=lambda outputs: outputs[..., 0])
    torch.testing.assert_close(net(values)[..., 0], values)

    wider = torch.zeros(4, 4, dtype=torch.bool)
    wider[1, 2] = True  # a block that lets a unit read more than what it is added to
    leave = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 1]]).bool()
    layers = [layer(mask, k) for k, mask in enumerate([enter, torch.eye(4).bool(), wider, leave])]
    with pytest.raises(ValueError, match="known at different steps"):
        MADE.from_layers(layers, 3, nn.ReLU, residual=True)
    with pytest.raises(ValueError, match="has a circle"):
        MADE.from_layers([layer(torch.ones(4, 3).bool(), 0), layer(torch.ones(3, 4).bool(), 1)], 3, nn.ReLU)
