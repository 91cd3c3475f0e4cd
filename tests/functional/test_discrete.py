"""From integers to real numbers: nothing is lost at the edges, slopes are those of autograd, digits are digits."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowkit.functional import discrete
from flowkit.functional.softplus import log1mexp, softplus

EXTREME = torch.tensor([-1e30, -200.0, -40.0, -1.0, 0.0, 1e-30, 1.0, 40.0, 200.0, 1e30])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_largest_is_where_the_integer_says_at_any_noise(dtype):
    """Also where the softplus underflows, or vanishes beside the largest."""
    u = torch.cartesian_prod(EXTREME, EXTREME, EXTREME).to(dtype)
    for x in range(3):
        v, _ = discrete.to_argmax(torch.full((len(u),), x), u)
        assert v.dtype == dtype
        others = [k for k in range(3) if k != x]
        assert (v[:, [x]] > v[:, others]).all()
        assert torch.equal(discrete.from_argmax(v)[0], torch.full((len(u),), x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_signs_are_kept_at_any_noise(dtype):
    u = EXTREME.to(dtype)
    for sign in (-1.0, 1.0):
        v, _ = discrete.to_signs(torch.full_like(u, sign), u)
        assert v.dtype == dtype and (v * sign > 0).all()
        assert (discrete.from_signs(v)[0] == sign).all()


@given(seed=st.integers(0, 2**31 - 1), levels=st.integers(2, 9))
def test_argmax_slopes_are_those_of_the_jacobian_and_it_undoes_itself(seed, levels):
    generator = torch.Generator().manual_seed(seed)
    u = 3 * torch.randn(levels, dtype=torch.float64, generator=generator)
    x = torch.randint(levels, (), generator=generator)
    v, log_slope = discrete.to_argmax(x, u)
    jacobian = torch.autograd.functional.jacobian(lambda u: discrete.to_argmax(x, u)[0], u)
    torch.testing.assert_close(log_slope, torch.linalg.slogdet(jacobian).logabsdet, rtol=1e-9, atol=1e-9)
    found, back, again, finite = discrete.from_argmax(v)
    assert found == x and finite
    torch.testing.assert_close(back, u, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(again, log_slope, rtol=1e-7, atol=1e-7)


def test_latents_that_are_not_finite_are_said_to_be_impossible():
    v = torch.tensor([[0.0, math.inf], [math.nan, 0.0], [-math.inf, 0.0], [1.0, 2.0]])
    x, u, log_slope, finite = discrete.from_argmax(v)
    assert finite.tolist() == [False, False, False, True]
    assert ((x >= 0) & (x < 2)).all() and u.isfinite().all() and log_slope.isfinite().all()
    signs, u, log_slope, finite = discrete.from_signs(v)
    assert finite.tolist() == [[True, False], [False, True], [False, True], [True, True]]
    assert signs.abs().eq(1).all() and u.isfinite().all() and log_slope.isfinite().all()


@given(number=st.integers(0, 2**20 - 1))
def test_binary_digits_are_those_of_python(number):
    digits = discrete.binary_digits(torch.tensor(number), 20)
    assert "".join(map(str, digits.tolist())) == f"{number:020b}"
    assert discrete.from_binary_digits(digits) == number


def test_softplus_and_log1mexp_against_mpmath():
    mpmath.mp.dps = 50
    places = [10.0**e for e in range(-300, 3, 7)] + [0.6931, 0.6932, 1.0, 30.0]
    for x in places:
        wanted = mpmath.log(-mpmath.expm1(-mpmath.mpf(x)))
        assert abs(log1mexp(torch.tensor(x, dtype=torch.float64)).item() / wanted - 1) < 4e-16
    for x in [*places, *(-p for p in places)]:
        wanted = mpmath.log1p(mpmath.exp(mpmath.mpf(x)))
        assert abs(softplus(torch.tensor(x, dtype=torch.float64)).item() / wanted - 1) < 4e-16 or x < -700
