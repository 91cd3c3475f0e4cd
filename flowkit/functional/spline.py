"""The monotone rational-quadratic spline, its inverse, and the logarithm of its slope.

The interval [lower, upper] is cut into K bins, by widths for x and by heights for z, and the slopes at the knots are
given. In a bin with ends (x0, z0) and (x1, z1), of mean slope s = (z1 - z0) / (x1 - x0) and with slopes d0 and d1 at
its ends, with theta = (x - x0) / (x1 - x0) and phi = 1 - theta,

    z = z0 + (z1 - z0) A / (A + C),  A = theta (s theta + d0 phi),  C = phi (s phi + d1 theta)
    dz/dx = s^2 (d1 theta^2 + 2 s theta phi + d0 phi^2) / (A + C)^2

from Durkan, Bekasov, Murray, Papamakarios 2019, "Neural Spline Flows" (https://arxiv.org/abs/1906.04032), section 3.1,
and Rezende et al. 2020, "Normalizing Flows on Tori and Spheres" (https://arxiv.org/abs/2002.02428), for the circle.

Four rules keep it defined at any parameters:

* All terms above are positive; the usual denominator s + (d0 + d1 - 2 s) theta phi subtracts.
* So is the discriminant of the inverse. With t = (z - z0) / (z1 - z0) and q = d0 (1 - t) - d1 t it is
  q^2 + 4 s^2 t (1 - t), where b^2 - 4 a c may come out negative, and theta = 2 s t / (2 s t + p) with
  p = q + sqrt(q^2 + 4 s^2 t (1 - t)), written as a quotient where q < 0: no 0/0 at the knots, no cancellation between.
* Only the inner knots are sums: the ends are exact. s is a quotient of the bin's shares, which hold more digits than
  differences of knots.
* No element is picked out by its value: x is moved into the interval, every element is computed, and `where` selects.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from flowkit.errors import DomainError, ShapeError
from flowkit.functional.eager import compiled_for_cpu
from flowkit.functional.spline_bin import Bin, Grid, log_derivative, slope_shift, solve, value
from flowkit.functional.spline_fused import MOST_BINS, fused_spline

__all__ = ["rational_quadratic_spline", "rational_quadratic_spline_inverse"]

# Slopes that come as parameters, for K bins; `linear` has slope 1 at both ends, `circular` one slope for both.
_SLOPES = {"linear": -1, "circular": 0, "bounded": 1}


def rational_quadratic_spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    slopes: Tensor,
    *,
    lower: float,
    upper: float,
    tails: str = "linear",
    min_width: float = 1e-3,
    min_height: float = 1e-3,
    min_slope: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """z = f(x), f a monotone spline of [lower, upper] onto itself, and log dz/dx, element by element.

    Parameters are real numbers, and all 0 is the identity. A bin takes of the interval
    `min_width + (1 - K min_width) softmax(widths)`, heights likewise; the slope at a knot is
    `min_slope + softplus(slopes + c)`, with the c that makes it 1 at 0.

    Args:
        x: shape (*S).
        widths, heights: shape (*S, K), K >= 1.
        slopes: shape (*S, K - 1) for linear tails, (*S, K) for circular ones and (*S, K + 1) for bounded ones.
        lower, upper: the interval.
        tails: "linear": the identity outside, and slope 1 at the ends. "circular": the ends are one point of a circle,
            with one slope (the first); f(x + period) = f(x) + period outside. "bounded": the ends have slopes of their
            own, and outside f goes on straight, so that an x beyond an end by its rounding does no harm.
        min_width, min_height: the least a bin takes, a share of the interval; above 0 and below 1 / K.
        min_slope: the least slope at a knot, from above 0 to below 1.

    Returns:
        z and `log_derivative` = log dz/dx, both of shape (*S).

    Domain: finite inputs. Parameters are of any size; slopes below 1e15 in float32.
    Error, against 40 digits, with the knots where rounding puts them at 2 K eps (upper - lower): z within
    8 K eps (upper - lower) (1 + dz/dx), and log dz/dx within 16 eps (1 + abs(log dz/dx)) and what two such shifts
    change.
    Derivatives of any order, by autograd; the first is continuous at knots and at the ends, the second is not.

    Raises:
        ShapeError: a parameter does not have the shape above.
        DomainError: an argument is not float32 or float64, or has another dtype than x.
        ValueError: for other tails, or an interval or a minimum that leaves no bins.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios, "Neural Spline Flows", 2019, https://arxiv.org/abs/1906.04032.
    """
    _check("x", x, widths, heights, slopes, tails, (lower, upper), (min_width, min_height, min_slope))
    grid = Grid(lower, upper, tails, min_width, min_height, min_slope)
    inner, turns = _enter(x, grid)
    z, log_derivative = _inside(inner, (widths, heights, slopes), grid, inverse=False)
    return _leave(x, inner, turns, z, log_derivative, grid)


def rational_quadratic_spline_inverse(
    z: Tensor,
    widths: Tensor,
    heights: Tensor,
    slopes: Tensor,
    *,
    lower: float,
    upper: float,
    tails: str = "linear",
    min_width: float = 1e-3,
    min_height: float = 1e-3,
    min_slope: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """The x with f(x) = z, see `rational_quadratic_spline`, and log dx/dz: in closed form.

    Knots and ends come back exactly. No parameters give NaN or an x out of its bin.

    Args:
        z: shape (*S); all others as above.

    Returns:
        x and `log_derivative` = log dx/dz, both of shape (*S).

    Domain: as above.
    Error: x within 8 eps (upper - lower) (1 + dx/dz), what rounding z and x alone may cost, with the largest dx/dz
    between x and what is given. At a knot dx/dz is at most 1 / min_slope; inside a flat bin of mean slope s with steep
    ends of slope d it reaches d / (2 s^2), and float32 has few digits left there.

    Raises:
        ShapeError, DomainError, ValueError: as above.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios, "Neural Spline Flows", 2019, https://arxiv.org/abs/1906.04032.
    """
    _check("z", z, widths, heights, slopes, tails, (lower, upper), (min_width, min_height, min_slope))
    grid = Grid(lower, upper, tails, min_width, min_height, min_slope)
    inner, turns = _enter(z, grid)
    x, log_derivative = _inside(inner, (widths, heights, slopes), grid, inverse=True)
    return _leave(z, inner, turns, x, -log_derivative, grid)


def _check(
    name: str,
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    slopes: Tensor,
    tails: str,
    interval: tuple[float, float],
    minima: tuple[float, float, float],
) -> None:
    if tails not in _SLOPES:
        raise ValueError(f"tails: got {tails!r}, wanted one of {', '.join(_SLOPES)}")
    if not -math.inf < interval[0] < interval[1] < math.inf:
        raise ValueError(f"interval: got {interval}, wanted finite ends, the first below the second")
    if x.dtype not in (torch.float32, torch.float64):
        raise DomainError(f"{name}: got dtype {x.dtype}, wanted torch.float32 or torch.float64")
    bins = widths.shape[-1] if widths.ndim else 0
    if bins == 0 or widths.shape[:-1] != x.shape:
        raise ShapeError(
            f"widths: got shape {tuple(widths.shape)}, wanted {(*x.shape, 'K')} with K >= 1,"
            f" since {name} has shape {tuple(x.shape)}"
        )
    for parameter_name, parameter, count in (
        ("widths", widths, bins),
        ("heights", heights, bins),
        ("slopes", slopes, bins + _SLOPES[tails]),
    ):
        if parameter.shape != (*x.shape, count):
            raise ShapeError(
                f"{parameter_name}: got shape {tuple(parameter.shape)}, wanted {(*x.shape, count)}:"
                f" {tails} tails and {bins} bins"
            )
        if parameter.dtype != x.dtype:
            raise DomainError(f"{parameter_name}: got dtype {parameter.dtype}, wanted {x.dtype}, as {name} has")
    for minimum_name, minimum, limit in zip(
        ("min_width", "min_height", "min_slope"), minima, (1 / bins, 1 / bins, 1.0), strict=True
    ):
        if not 0 < minimum < limit:
            raise ValueError(f"{minimum_name}: got {minimum}, wanted above 0 and below {limit}, for {bins} bins")


class _Spline(NamedTuple):
    """Knots and slopes at them, shape (*S, K + 1), and the mean slopes of the bins, (*S, K)."""

    x: Tensor
    z: Tensor
    d: Tensor
    s: Tensor


def _spline(widths: Tensor, heights: Tensor, slopes: Tensor, grid: Grid) -> _Spline:
    width, height = _shares(widths, grid.min_width), _shares(heights, grid.min_height)
    d = grid.min_slope + softplus(slopes + slope_shift(grid))
    if grid.tails == "linear":
        d = pad(d, (1, 1), value=1.0)
    elif grid.tails == "circular":
        d = torch.cat([d, d[..., :1]], -1)
    return _Spline(_knots(width, grid), _knots(height, grid), d, height / width)


def _shares(raw: Tensor, minimum: float) -> Tensor:
    """The minimum, and a softmax of the rest: written out, as PyTorch takes six times as long on rows of a few."""
    powers = ((raw - raw.detach().amax(-1, keepdim=True)) * (1 / math.log(2))).exp2()
    return minimum + powers * ((1 - minimum * raw.shape[-1]) / powers.sum(-1, keepdim=True))


def _knots(shares: Tensor, grid: Grid) -> Tensor:
    inner = grid.lower + (grid.upper - grid.lower) * shares[..., :-1].cumsum(-1)
    return pad(pad(inner, (1, 0), value=grid.lower), (0, 1), value=grid.upper)


def _inside(at: Tensor, raw: tuple[Tensor, Tensor, Tensor], grid: Grid, *, inverse: bool) -> tuple[Tensor, Tensor]:
    """z and log dz/dx of an x within the interval; with `inverse`, x and log dz/dx of a z."""
    if compiled_for_cpu(at) and raw[0].shape[-1] <= MOST_BINS:
        return fused_spline(at, raw, grid, inverse=inverse)
    here = _find(at, _spline(*raw, grid), inverse)
    found, theta, phi = (solve if inverse else value)(at, here)
    return found, log_derivative(here, theta, phi)


def _find(at: Tensor, spline: _Spline, inverse: bool) -> Bin:
    """The bin that holds `at`, an x or with `inverse` a z."""
    knots = (spline.z if inverse else spline.x)[..., 1:-1]
    index = (at.unsqueeze(-1) >= knots).sum(-1, keepdim=True)
    left, right = ([t.gather(-1, i).squeeze(-1) for t in (spline.x, spline.z, spline.d)] for i in (index, index + 1))
    (x0, z0, d0), (x1, z1, d1) = left, right
    return Bin(x0, x1, z0, z1, d0, d1, spline.s.gather(-1, index).squeeze(-1))


def wrap(x: Tensor, lower: float, upper: float) -> tuple[Tensor, Tensor]:
    """x moved into [lower, upper] by whole turns of the circle whose circumference that is, and by how many.

    What is inside stays as it is, to the last digit; `upper` is `lower`.
    """
    inside = (x >= lower) & (x < upper)
    turns = torch.where(inside, 0.0, ((x - lower) / (upper - lower)).floor())
    return (x - turns * (upper - lower)).clamp(lower, upper), turns


def _enter(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """x moved into the interval, and by how many turns of the circle."""
    if grid.tails == "circular":
        return wrap(x, grid.lower, grid.upper)
    return x.clamp(grid.lower, grid.upper), None


def _leave(
    x: Tensor, inner: Tensor, turns: Tensor | None, z: Tensor, log_derivative: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """z and its log-derivative in the interval, continued to where x is."""
    if turns is not None:
        return z + turns * (grid.upper - grid.lower), log_derivative
    if grid.tails == "linear":
        inside = (x > grid.lower) & (x < grid.upper)
        return torch.where(inside, z, x), torch.where(inside, log_derivative, 0.0)
    return z + log_derivative.exp() * (x - inner), log_derivative
