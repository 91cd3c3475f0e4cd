"""Student's t: its log-density for any degrees of freedom, and draws by a formula."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["standard_student", "student_log_prob"]

_SHIFT = 10  # where the asymptotic series is exact to rounding in float64


def student_log_prob(u: Tensor, df: Tensor) -> Tensor:
    """Log-density of Student's t with `df` degrees of freedom at u.

    log p(u) = log Gamma((df + 1) / 2) - log Gamma(df / 2) - log(pi df) / 2 - (df + 1) / 2 log(1 + u^2 / df).

    The two log-gammas grow with df and nearly cancel, so that their difference loses all digits: it is taken by one
    logarithm and a series instead, and -log(2 pi) / 2, the normal's constant, splits off. In the tails u^2 would
    overflow; there log(1 + v^2) is 2 log |v| + log(1 + v^-2).

    Args:
        u: any shape.
        df: above 0; broadcasts with u.

    Returns:
        The log-densities, of the broadcast shape.

    >>> import torch
    >>> student_log_prob(torch.zeros(2), torch.tensor([1.0, 1e12])).exp()  # Cauchy's 1 / pi, the normal's 0.3989
    tensor([0.3183, 0.3989])
    """
    return _log_gamma_ratio(0.5 * df) - 0.5 * math.log(2 * math.pi) - 0.5 * (df + 1) * _log1p_square(u / df.sqrt())


def standard_student(p: Tensor, angle: Tensor, df: Tensor) -> Tensor:
    """Student's t of two independent uniform numbers: sqrt(df (p^(-2 / df) - 1)) cos(2 pi angle).

    Box and Muller's formula with another radius, and theirs for df to infinity; differentiable by df, with no rejection
    and no gamma variate. The radius is computed as p^(-1 / df) sqrt(-df expm1(2 log(p) / df)), which neither cancels
    for large df nor overflows before the draw itself does.

    Args:
        p: in the open interval (0, 1).
        angle: in [0, 1).
        df: above 0; broadcasts with both.

    Returns:
        The draws, of the broadcast shape.

    Reference:
        Bailey, "Polar generation of random variates with the t-distribution", Mathematics of Computation 62, 1994,
        https://doi.org/10.2307/2153537.

    >>> import torch
    >>> standard_student(torch.tensor(0.5), torch.tensor(0.0), torch.tensor(2.0))
    tensor(1.4142)
    """
    exponent = p.log() / df
    return (-exponent).exp() * (-df * torch.expm1(2 * exponent)).sqrt() * torch.cos(2 * math.pi * angle)


def _log_gamma_ratio(a: Tensor) -> Tensor:
    """log Gamma(a + 1/2) - log Gamma(a) - log(a) / 2, of the order of 1 / (8 a) for large a.

    Gamma(a + 1) = a Gamma(a) carries it to a + 10, where its asymptotic series holds. The product of the ten factors
    a + k over a + k + 1/2 is near 1 for large a, so its logarithm is a sum of ten log1p.
    """
    total = torch.zeros_like(a)
    for k in range(_SHIFT):
        total = total - torch.log1p(0.5 / (a + k))
    b = a + _SHIFT
    inverse = 1 / b
    square = inverse * inverse
    coefficients = (-1 / 8, 1 / 192, -1 / 640, 17 / 14336, -31 / 18432, 691 / 180224, -5461 / 425984)
    series = torch.zeros_like(a)
    for coefficient in reversed(coefficients):
        series = series * square + coefficient
    return total + 0.5 * torch.log1p(_SHIFT / a) + series * inverse


def _log1p_square(v: Tensor) -> Tensor:
    """log(1 + v^2), for any v that is finite."""
    far = v.abs() > 1
    near_one = torch.where(far, v, 1.0)
    # Each branch sees 1 or 0 where the other holds, so that its gradient is finite there.
    outside = 2 * near_one.abs().log() + torch.log1p(near_one.reciprocal().square())
    return torch.where(far, outside, torch.log1p(torch.where(far, 0.0, v).square()))
