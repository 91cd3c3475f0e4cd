"""MADE's masks: what reads what, in every order and width, at once and in turn."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flowkit as fk
from flowkit.nets import MADE
from tests.strategies import seeds
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


@given(seed=seeds, features=features, width=st.integers(1, 20))
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
    with pytest.raises(ValueError, match="a hidden layer has width 0"):
        MADE(3, 2, hidden=(0,))
