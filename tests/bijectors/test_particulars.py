"""What is particular to single bijectors: floors, digits near an edge, which elements meet."""

import math
import re

import pytest
import torch

import flowkit as fk


def test_gain_has_a_floor_without_gradient():
    norm = fk.ActNorm((2,)).double()
    with torch.no_grad():
        norm.gain.copy_(torch.tensor([-3.0, 2.0]))
    z, log_det = norm(torch.tensor([[5.0, 5.0]], dtype=torch.double))
    assert z.tolist() == [[5e-10, 10.0]] and log_det.item() == pytest.approx(math.log(1e-10) + math.log(2))
    log_det.sum().backward()
    assert norm.gain.grad.tolist() == [0.0, 0.5]


def test_norm_per_channel_counts_its_pixels():
    norm = fk.ActNorm((3, 1, 1))
    with torch.no_grad():
        norm.gain.fill_(2.0)
    assert norm(torch.zeros(1, 3, 4, 5))[1].item() == pytest.approx(60 * math.log(2))


def test_convolution_of_a_pair_keeps_the_halves_apart():
    mix = fk.Conv1x1((2, 3, 2, 2))
    assert mix.weight.shape == (2, 3, 3)
    x = torch.randn(2, 3, 2, 2)
    moved = x.clone()
    moved[1] += 1
    assert torch.equal(mix(x)[0][0], mix(moved)[0][0])
    torch.testing.assert_close(mix(x)[0][1, :, 0, 1], mix.weight[1] @ x[1, :, 0, 1])


@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,)])
@pytest.mark.parametrize("event", [(2, 3, 4, 5), (3, 4, 5), (2, 5, 1, 2), (5, 1, 2)])
def test_convolution_of_many_pixels_or_many_channels(event, batch):
    mix = fk.Conv1x1(event)
    torch.nn.init.normal_(mix.weight)
    x = torch.randn(*batch, *event, requires_grad=True)
    z = mix(x)[0]
    wanted = torch.einsum("...dc,...chw->...dhw", mix.weight, x)
    torch.testing.assert_close(z, wanted)
    weights = torch.randn(z.shape)
    torch.testing.assert_close(
        torch.autograd.grad((z * weights).sum(), [x, mix.weight]),
        torch.autograd.grad((wanted * weights).sum(), [x, mix.weight]),
    )


def test_convolution_counts_its_pixels_and_its_halves():
    mix = fk.Conv1x1((2, 3, 4, 5))
    with torch.no_grad():
        mix.weight.copy_(torch.stack([2 * torch.eye(3), 3 * torch.eye(3)]))
    assert mix(torch.zeros(2, 3, 4, 5))[1].item() == pytest.approx(20 * 3 * (math.log(2) + math.log(3)))


def test_logit_has_its_digits_near_both_ends():
    """1 - x is taken before the margin is added: x = 1 - 2^-24 has the log-term of x = 2^-24."""
    logit = fk.Logit()
    x = torch.tensor([2.0**-24, 1 - 2.0**-24])
    z, log_det = logit(x)
    torch.testing.assert_close(z, torch.tensor([-16.635532, 16.635532]), rtol=1e-6, atol=0)
    assert log_det[0] == log_det[1]


@pytest.mark.parametrize("value", [-120.0, -40.0, 0.0, 40.0, 120.0])
def test_sigmoid_has_a_finite_log_term_everywhere(value):
    x = torch.tensor(value, requires_grad=True)
    _, log_det = fk.Sigmoid()(x)
    assert log_det.item() == pytest.approx(-abs(value) - 2 * math.log1p(math.exp(-abs(value))), rel=1e-6)
    log_det.backward()
    assert x.grad.isfinite()


def test_checkerboard_is_one():
    x = torch.arange(16.0).reshape(1, 4, 4)
    first, second = fk.PairCheckerboard()(x)[0]
    rows, columns = first // 4, first % 4
    assert ((rows + columns) % 2 == 0).all() and ((second // 4 + second % 4) % 2 == 1).all()


def test_affine_bound_keeps_the_scale():
    params = torch.tensor([[50.0, 0.0]])
    assert fk.maps.Affine(log_scale_bound=1.0)(torch.ones(1), params)[1].item() == pytest.approx(1.0)
    assert fk.maps.Affine()(torch.ones(1), params)[1].item() == 50.0


def test_log_scales_have_a_floor_without_gradient():
    """In the map alone; `functional` has none."""
    mix = fk.maps.MixLogistic(components=1)
    at = [torch.tensor([[0.0, 0.0, 0.0, 0.3, s]], requires_grad=True) for s in (-9.0, -7.0)]
    x = torch.tensor([0.3001])
    results = [mix(x, params) for params in at]
    assert torch.equal(results[0][0], results[1][0])
    (gradient,) = torch.autograd.grad(results[0][1].sum(), at[0])
    assert gradient[0, -1] == 0 and gradient[0, 3] != 0
    logits, means, log_scales = (p.reshape(1, 1) for p in at[0].detach()[0, 2:])
    assert fk.functional.logit_mix_logistic_cdf(x, logits, means, log_scales)[0] != results[0][0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: fk.Flip(0),
        lambda: fk.Coupling(fk.maps.Affine(), torch.nn.Identity(), dim=1),
        lambda: fk.Logit(margin=0.5),
        lambda: fk.Squeeze(factor=1),
        lambda: fk.maps.MixLogistic(components=0),
        lambda: fk.maps.Affine(log_scale_bound=0.0),
        lambda: fk.Conv1x1((3, 4)),
        lambda: fk.Normal((2,), scale=0.0),
        lambda: fk.Normal((2,), loc=torch.zeros(3)),
        lambda: fk.Uniform((2,), low=1.0, high=1.0),
    ],
)
def test_impossible_settings_are_refused_with_what_was_wanted(make):
    with pytest.raises(ValueError, match="wanted"):
        make()


def test_parameters_of_a_map_are_never_broadcast():
    mix = fk.maps.MixLogistic(components=2)
    with pytest.raises(fk.ShapeError, match=r"context has shape \(1, 8\), wanted \(3, 8\)"):
        mix(torch.zeros(3), torch.zeros(1, 8))
    with pytest.raises(fk.ShapeError, match="context is missing"):
        mix(torch.zeros(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fk.Permute(3), "Permute: order is 3, wanted a list of places"),
        (lambda: fk.Permute(((0, 1), (1, 0))), "Permute: order is ((0, 1), (1, 0)), wanted each of 0 to 1 once"),
        (lambda: fk.Permute([0.0, 1.0]), "Permute: order is [0.0, 1.0], wanted each of 0 to 1 once"),
        (lambda: fk.Permute([0, 0]), "Permute: order is [0, 0], wanted each of 0 to 1 once"),
        (lambda: fk.Permute([]), "Permute: order is [], wanted a list of places"),
        (lambda: fk.Permute([0, 1], dim=(-1,)), "Permute: dim is (-1,), wanted a negative whole number"),
        (lambda: fk.Flip(-1.0), "Flip: dim is -1.0, wanted a negative whole number"),
        (lambda: fk.Flip(0), "Flip: dim is 0, wanted a negative whole number"),
        (lambda: fk.Squeeze((2, 2)), "Squeeze: factor is (2, 2), wanted a whole number of at least 2"),
        (lambda: fk.Squeeze(2.0), "Squeeze: factor is 2.0, wanted a whole number of at least 2"),
        (lambda: fk.LULinear((3,)), "LULinear: features is (3,), wanted a whole number of at least 1"),
        (lambda: fk.QRLinear(3.0), "QRLinear: features is 3.0, wanted a whole number of at least 1"),
        (lambda: fk.MatrixExpLinear(True), "MatrixExpLinear: features is True, wanted a whole number of at least 1"),
        (lambda: fk.HouseholderLinear(None), "HouseholderLinear: features is None, wanted a whole number"),
        (lambda: fk.HouseholderLinear(4, 2.0), "HouseholderLinear: reflections is 2.0, wanted an even number"),
    ],
)
def test_numbers_that_are_none_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_numbers_of_other_libraries_are_numbers():
    size = torch.tensor(3)
    assert fk.LULinear(size).features == 3 and fk.Squeeze(torch.tensor(2)).factor == 2
    assert fk.Permute(torch.tensor([1, 0])).order.tolist() == fk.Permute(range(1, -1, -1)).order.tolist() == [1, 0]
