"""What is particular to batch normalization: two modes, and what moves in which."""

import copy
import math

import pytest
import torch

import flowkit as fk
from flowkit.testing import ConformanceError, check_transform


def averages(norm):
    return norm.running_mean.clone(), norm.running_var.clone()


def trained(shape, batches=3):
    generator = torch.Generator().manual_seed(0)
    norm = fk.BatchNorm(shape)
    event = tuple(4 if size == 1 else size for size in shape)
    for _ in range(batches):
        norm(1 + 3 * torch.randn(16, *event, generator=generator))
    return norm


def test_before_training_it_is_the_identity_in_eval_mode():
    """nflows starts its variance at 0."""
    norm = fk.BatchNorm((3,)).eval()
    x = torch.randn(5, 3)
    for direction in (norm, norm.inverse):
        value, l = direction(x)
        assert torch.equal(value, x) and torch.equal(l, torch.zeros(5))


@pytest.mark.parametrize(
    ("shape", "theirs"), [((3,), torch.nn.BatchNorm1d(3)), ((3, 1, 1), torch.nn.BatchNorm2d(3))], ids=["1d", "2d"]
)
def test_the_averages_are_those_of_torch(shape, theirs):
    ours, theirs = fk.BatchNorm(shape), copy.deepcopy(theirs)
    event = tuple(4 if size == 1 else size for size in shape)
    for _ in range(3):
        x = 2 + 5 * torch.randn(6, *event)
        torch.testing.assert_close(ours(x)[0], theirs(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.running_mean.flatten(), theirs.running_mean)
    torch.testing.assert_close(ours.running_var.flatten(), theirs.running_var)
    torch.testing.assert_close(ours.eval()(x)[0], theirs.eval()(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_each_pixel_counts(training):
    """The log-term of distrax's and of TFP's is wrong for images."""
    norm = fk.BatchNorm((2, 1, 1), momentum=1.0)
    x = torch.randn(8, 2, 3, 5, dtype=torch.double) * torch.tensor([2.0, 7.0]).reshape(2, 1, 1)
    norm = norm.double()
    norm(x)
    _, l = norm.train(training)(x)
    variance = x.var((0, 2, 3), correction=0 if training else 1)
    assert l.shape == (8,)
    torch.testing.assert_close(l, (-15 * variance.log().sum() / 2).expand(8))


def test_train_mode_normalizes_with_gradients_through_the_moments():
    norm = fk.BatchNorm((3,))
    x = (4 + 9 * torch.randn(32, 3)).requires_grad_()
    z, l = norm(x)
    assert z.mean(0).abs().max() < 1e-6 and (z.var(0, correction=0) - 1).abs().max() < 1e-5
    # Whatever x does, the sum of z is 0 and that of its squares is 96.
    (gradient,) = torch.autograd.grad((z + z * z).sum(), x, retain_graph=True)
    assert gradient.abs().max() < 1e-5
    (gradient,) = torch.autograd.grad(l.sum(), x)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_averages_move_in_train_mode_forward_alone(training, inverse):
    norm = trained((3,)).train(training)
    before = averages(norm)
    (norm.inverse if inverse else norm)(torch.randn(9, 3))
    moved = not all(torch.equal(a, b) for a, b in zip(before, averages(norm), strict=True))
    assert moved == (training and not inverse)


def test_inverse_is_that_of_eval_mode_in_both_modes():
    norm = trained((3,))
    x = torch.randn(9, 3)
    z, l = norm.eval()(x)
    for training in (False, True):
        back, minus = norm.train(training).inverse(z)
        torch.testing.assert_close(back, x)
        torch.testing.assert_close(minus, -l)


def test_a_flow_that_traces_its_shape_moves_nothing():
    for turned in (False, True):
        norm = fk.BatchNorm((3,))
        flow = fk.Flow(norm.inv if turned else norm, fk.Normal((3,)))
        assert flow.event_shape == (3,)
        assert torch.equal(norm.running_mean, torch.zeros(3)) and torch.equal(norm.running_var, torch.ones(3))


def test_what_comes_of_the_averages_is_saved():
    norm = trained((3,))
    assert set(norm.state_dict()) == {"log_gain", "bias", "running_mean", "running_var"}
    other = fk.BatchNorm((3,)).eval()
    other.load_state_dict(norm.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(other(x)[0], norm.eval()(x)[0])


@pytest.mark.parametrize("batch", [(1,), (), (0,)])
def test_too_few_examples_are_refused_in_train_mode(batch):
    flow = fk.Flow(fk.Chain(norm=fk.BatchNorm((3,))), fk.Normal((3,)))
    x = torch.zeros(*batch, 3)
    with pytest.raises(fk.ShapeError, match=r"transform\.norm: .* for each variance of \(3,\); in train mode"):
        flow.log_prob(x)
    assert torch.equal(flow.transform["norm"].running_var, torch.ones(3))
    assert flow.eval().log_prob(x).shape == batch


def test_one_image_has_pixels_enough():
    norm = fk.BatchNorm((2, 1, 1))
    z, _ = norm(torch.randn(1, 2, 8, 8))
    assert z.mean((0, 2, 3)).abs().max() < 1e-6


def test_examples_that_are_mapped_one_by_one_are_refused_in_train_mode():
    with pytest.raises(fk.ShapeError, match="at least 2"):
        torch.func.vmap(fk.BatchNorm((3,)))(torch.randn(5, 3))


def test_an_element_that_is_constant_stays_finite():
    norm = fk.BatchNorm((2,))
    x = torch.stack([torch.full((8,), 3.0), torch.randn(8)], -1).requires_grad_()
    z, l = norm(x)
    assert torch.equal(z[:, 0], torch.zeros(8))
    assert l[0].item() == pytest.approx(-math.log(1e-5) / 2 - x[:, 1].var(correction=0).log().item() / 2)
    (z.sum() + l.sum()).backward()
    assert x.grad.isfinite().all()


def test_compiled_training_moves_the_averages_as_eager_does():
    eager, x = fk.BatchNorm((3,)), torch.randn(9, 3)
    compiled = copy.deepcopy(eager)
    torch._dynamo.reset()
    step = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        wanted, got = eager(x), step(x)
        for a, b in zip((*got, *averages(compiled)), (*wanted, *averages(eager)), strict=True):
            torch.testing.assert_close(a, b)
    torch._dynamo.reset()


def test_it_keeps_every_law_but_purity():
    check_transform(trained((3,)), event_shape=(3,), skip=["purity", "compiles"])
    check_transform(trained((2, 1, 1)), event_shape=(2, 2, 3), skip=["purity", "compiles"])
    with pytest.raises(ConformanceError, match="fails 'purity'"):
        check_transform(trained((3,)), event_shape=(3,))


def test_without_momentum_both_modes_are_the_same():
    norm = trained((3,))
    norm.momentum = 0.0
    before, x = averages(norm), torch.randn(1, 3)
    assert torch.equal(norm.train()(x)[0], norm.eval()(x)[0])
    assert all(torch.equal(a, b) for a, b in zip(before, averages(norm), strict=True))


@pytest.mark.parametrize("settings", [{"momentum": -0.1}, {"momentum": 1.5}, {"floor": 0.0}])
def test_impossible_settings_are_refused_with_what_was_wanted(settings):
    with pytest.raises(ValueError, match="wanted"):
        fk.BatchNorm((3,), **settings)
