"""Student's t against mpmath, from a thousandth of a degree of freedom to 1e30, and out to 1e30 scales."""

import math

import mpmath
import pytest
import torch

from flowkit.functional.student import standard_student, student_log_prob

DFS = [1e-3, 0.05, 0.5, 1.0, 2.0, 3.7, 10.0, 30.0, 100.0, 1e3, 1e5, 1e8, 1e15, 1e20, 1e30]
PLACES = [0.0, 1e-10, 1e-3, 0.3, 1.0, 3.0, 10.0, 100.0, 1e5, 1e10, 1e18, 1e30]
TOLERANCE = {torch.float64: 1e-15, torch.float32: 5e-7}


def reference(u, df):
    with mpmath.workdps(60):
        u, df = mpmath.mpf(u), mpmath.mpf(df)
        constant = mpmath.loggamma((df + 1) / 2) - mpmath.loggamma(df / 2) - mpmath.log(mpmath.pi * df) / 2
        return constant - (df + 1) / 2 * mpmath.log1p(u * u / df)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_log_density_is_right_to_rounding(dtype):
    """Relative to 1 + |log p|."""
    u, df = torch.cartesian_prod(torch.tensor(PLACES, dtype=dtype), torch.tensor(DFS, dtype=dtype)).unbind(-1)
    found = student_log_prob(u, df)
    for got, at, freedom in zip(found.tolist(), u.tolist(), df.tolist(), strict=True):
        wanted = float(reference(at, freedom))
        if abs(wanted) < torch.finfo(dtype).max:
            assert abs(got - wanted) <= TOLERANCE[dtype] * (1 + abs(wanted)), (at, freedom)


def test_gradients_by_df_and_u_are_right_everywhere():
    u = torch.tensor([0.0, 0.3, 1.0, 7.0, 1e8, 1e25], dtype=torch.float64, requires_grad=True)
    for df in (0.05, 2.0, 40.0, 1e6):
        freedom = torch.tensor(df, dtype=torch.float64, requires_grad=True)
        log_prob = student_log_prob(u, freedom)
        for at, value in zip(u, log_prob, strict=True):
            by_u, by_df = torch.autograd.grad(value, (u, freedom), retain_graph=True)
            at = at.item()
            wanted = float(mpmath.diff(lambda d, at=at: reference(at, d), df, h=df * 1e-12))
            assert abs(by_df.item() - wanted) <= 1e-12 * max(abs(wanted), abs(value.item()) / df)
            slope = -(df + 1) * at / (df + at * at)
            assert abs(by_u.sum().item() - slope) <= 1e-12 * abs(slope)


def test_draws_have_the_distribution_function_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    p, angle = torch.rand(2, 100_000, dtype=torch.float64, generator=generator)
    for df in (0.3, 1.0, 4.0, 1e3, 1e12):
        draws = standard_student(p, angle, torch.tensor(df, dtype=torch.float64))
        # The probability of so large a distance, were the draws right, is 1e-4.
        assert stats.kstest(draws.numpy(), stats.t(df).cdf).pvalue > 1e-4


def test_a_large_df_is_box_and_muller():
    p, angle = torch.rand(2, 1000, dtype=torch.float64)
    wanted = (-2 * p.log()).sqrt() * torch.cos(2 * math.pi * angle)
    found = standard_student(p, angle, torch.tensor(1e14, dtype=torch.float64))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


def test_the_gradient_of_draws_by_df_is_that_of_the_expectation():
    """d/d df of E log(1 + x^2), by the draws and by quadrature."""
    df = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    p, angle = torch.rand(2, 400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    each = torch.log1p(standard_student(p, angle, df).square())
    (by_draws,) = torch.autograd.grad(each.mean(), df)
    t = torch.linspace(-30, 30, 200_001, dtype=torch.float64)
    x, steps = t.sinh(), t.cosh() * (t[1] - t[0])
    (wanted,) = torch.autograd.grad((torch.log1p(x * x) * student_log_prob(x, df).exp() * steps).sum(), df)
    assert wanted < -0.01
    assert abs(by_draws - wanted) < 0.02 * abs(wanted)
