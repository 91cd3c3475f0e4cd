"""What is particular to fixed functions: digits in the tails, and the sets they lead from and to."""

import math

import mpmath
import pytest
import torch
from torch.distributions import constraints

import flowkit as fk

EXACT = {
    "exp": (fk.Exp(), mpmath.exp, lambda x: x),
    "softplus": (fk.Softplus(), lambda x: mpmath.log1p(mpmath.exp(x)), lambda x: -mpmath.log1p(mpmath.exp(-x))),
    "tanh": (fk.Tanh(), mpmath.tanh, lambda x: -2 * mpmath.log(mpmath.cosh(x))),
    "leaky": (fk.LeakyReLU(0.1), lambda x: x if x >= 0 else x / 10, lambda x: 0 if x >= 0 else -mpmath.log(10)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", EXACT)
def test_digits_in_the_tails(name, dtype):
    """z to a few units in the last place, l to that or to eps absolutely, and back wherever z has not saturated."""
    part, value, log_slope = EXACT[name]
    eps = torch.finfo(dtype).eps
    x = torch.tensor([-80, -35.5, -20.5, -9, -1, -1e-3, 0, 1e-3, 1, 9, 20.5, 35.5, 80], dtype=dtype)
    z, l = part(x)
    back, minus = part.inverse(z)
    with mpmath.workdps(60):
        for i, number in enumerate(x.tolist()):
            exact, slope = float(value(mpmath.mpf(number))), float(log_slope(mpmath.mpf(number)))
            assert abs(z[i].item() - exact) <= 8 * eps * abs(exact)
            assert abs(l[i].item() - slope) <= 8 * eps * (1 + abs(slope))
            # How far a rounding of z moves x.
            reach = eps * abs(exact) * math.exp(-slope) if slope > -700 else math.inf
            if reach < 0.01:
                assert abs(back[i].item() - number) <= 4 * reach + 8 * eps * (1 + abs(number))
                assert abs(minus[i].item() + slope) <= 8 * reach + 8 * eps * (1 + abs(slope))


@pytest.mark.parametrize("part", [part for part, _, _ in EXACT.values()], ids=EXACT)
def test_gradients_are_finite_in_the_tails(part):
    x = torch.tensor([-80.0, -9.0, 0.0, 9.0, 80.0], requires_grad=True)
    z, l = part(x)
    (gradient,) = torch.autograd.grad(z.clamp(max=1e30).sum() + l.sum(), x)
    assert gradient.isfinite().all()


def test_softplus_comes_back_from_the_smallest_and_the_largest_numbers():
    z = torch.tensor([1e-44, 1e-30, 1e-8, math.log(2), 20.0, 1e5, 3e38], requires_grad=True)
    x, l = fk.Softplus().inverse(z)
    wanted = [math.log(math.expm1(v)) if v < 50 else v for v in z.double().tolist()]
    torch.testing.assert_close(x, torch.tensor(wanted), rtol=1e-6, atol=2e-7)
    assert l.isfinite().all()
    for value in (x, l):
        (gradient,) = torch.autograd.grad(value[1:].sum(), z, retain_graph=True)
        assert gradient.isfinite().all()


def test_a_power_of_a_large_number_keeps_its_log_term():
    x = torch.tensor([1e-30, 1e30], requires_grad=True)
    z, l = fk.Power(3.0)(x)
    assert z[0] == 0 and z[1] == math.inf  # what no float32 holds
    torch.testing.assert_close(l, torch.tensor([math.log(3) - 60 * math.log(10), math.log(3) + 60 * math.log(10)]))


def test_a_logarithm_is_an_exponential_turned_round():
    """log, twice, exp: a square."""
    square = fk.Chain(fk.Exp().inv, fk.ScaleShift(2.0), fk.Exp())
    x = torch.tensor([0.5, 3.0])
    for got, wanted in zip(square(x), fk.Power(2.0)(x), strict=True):
        torch.testing.assert_close(got, wanted)


def test_sets_that_do_not_fit_are_refused():
    fk.Chain(fk.Softplus(), fk.Power(0.5), fk.Exp().inv)
    fk.Chain(fk.Logit().inv, fk.Power(0.5))  # the unit interval is positive
    for parts in [(fk.Exp(), fk.Logit()), (fk.LeakyReLU(), fk.Power(2.0)), (fk.Tanh(), fk.Exp().inv)]:
        with pytest.raises(fk.DomainError, match="takes values in"):
            fk.Chain(*parts)


def test_a_scale_says_where_an_interval_goes():
    unit = fk.ScaleShift(1 / 255, domain=constraints.interval(0, 255))
    assert (unit.codomain.lower_bound, unit.codomain.upper_bound) == (0, 1)
    fk.Chain(unit, fk.Logit())
    with pytest.raises(fk.DomainError, match="takes values in"):
        fk.Chain(fk.ScaleShift(1 / 255), fk.Logit())
    turned = fk.ScaleShift(-2.0, 1.0, domain=constraints.positive)
    assert turned.codomain.upper_bound == 1.0 and not hasattr(turned.codomain, "lower_bound")
    assert fk.ScaleShift(-2.0, 1.0).codomain is constraints.real


def test_a_scale_per_channel_counts_its_pixels_and_is_saved():
    scale = torch.tensor([2.0, -3.0]).reshape(2, 1, 1)
    part = fk.ScaleShift(scale, 1.0)
    _, l = part(torch.zeros(4, 2, 3, 5))
    torch.testing.assert_close(l, torch.full((4,), 15 * math.log(6)))
    other = fk.ScaleShift(torch.ones(2, 1, 1))
    other.load_state_dict(part.state_dict())
    x = torch.randn(2, 3, 5)
    assert torch.equal(other(x)[0], x * scale + 1)
    assert not list(part.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda: fk.LeakyReLU(0.0),
        lambda: fk.LeakyReLU(-1.0),
        lambda: fk.Power(0.0),
        lambda: fk.Power(math.inf),
        lambda: fk.ScaleShift(0.0),
        lambda: fk.ScaleShift(torch.tensor([1.0, 0.0])),
        lambda: fk.ScaleShift(torch.ones(2), torch.ones(3)),
        lambda: fk.ScaleShift(torch.ones(2), domain=constraints.positive),
        lambda: fk.ScaleShift(2.0, domain=constraints.simplex),
    ],
)
def test_impossible_settings_are_refused_with_what_was_wanted(make):
    with pytest.raises(ValueError, match="wanted"):
        make()


@pytest.mark.parametrize("shift", [math.nan, math.inf, torch.tensor([0.0, -math.inf])])
def test_a_shift_that_is_not_finite_is_refused(shift):
    with pytest.raises(fk.DomainError, match="ScaleShift: shift is .*, wanted finite"):
        fk.ScaleShift(1.0, shift)
