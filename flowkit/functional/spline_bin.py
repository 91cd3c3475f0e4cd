"""A rational-quadratic spline within one bin: its value, its inverse, its log-derivative, and their gradients.

`flowkit.functional.spline` derives the formulas. However the bin was found, they are taken from here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Bin", "Grid", "gradients", "log_derivative", "slope_shift", "solve", "value"]


class Grid(NamedTuple):
    """What all elements have in common: the interval, the kind of tails, and the least share of a bin and slope."""

    lower: float
    upper: float
    tails: str
    min_width: float
    min_height: float
    min_slope: float


def slope_shift(grid: Grid) -> float:
    """What raw slopes are shifted by, so that 0 is slope 1."""
    return math.log(math.expm1(1 - grid.min_slope))


class Bin(NamedTuple):
    """One bin for each element: its ends, the slopes there, and its mean slope; or the gradients of these."""

    x0: Tensor
    x1: Tensor
    z0: Tensor
    z1: Tensor
    d0: Tensor
    d1: Tensor
    s: Tensor


def value(x: Tensor, here: Bin) -> tuple[Tensor, Tensor, Tensor]:
    """z, and theta and phi, the shares of the bin's width before and behind x."""
    width = here.x1 - here.x0
    theta, phi = (x - here.x0) / width, (here.x1 - x) / width
    below, above = _parts(here, theta, phi)
    return torch.lerp(here.z0, here.z1, below / (below + above)), theta, phi


def solve(z: Tensor, here: Bin) -> tuple[Tensor, Tensor, Tensor]:
    """x, and theta and phi there."""
    height = here.z1 - here.z0
    t, rest = (z - here.z0) / height, (here.z1 - z) / height
    product = 4 * here.s * t * here.s * rest
    q = here.d0 * rest - here.d1 * t
    # `where`, not `abs`: at q = 0, the middle of a bin of the identity, the derivative is that of q
    larger = torch.where(q >= 0, q, -q) + (q * q + product).sqrt()
    p = torch.where(q >= 0, larger, product / larger)
    part = 2 * here.s * t
    theta, phi = part / (part + p), p / (part + p)
    return torch.lerp(here.x0, here.x1, theta), theta, phi


def log_derivative(here: Bin, theta: Tensor, phi: Tensor) -> Tensor:
    """log dz/dx at a place in its bin."""
    slope, share = _slope_and_share(here, theta, phi)
    return (slope / (share * share)).log()


def gradients(
    here: Bin, theta: Tensor, phi: Tensor, on_found: Tensor, on_log: Tensor, *, inverse: bool
) -> tuple[Tensor, Bin]:
    """Gradients of x and of the bin, from those of z and of log dz/dx; with `inverse`, of z from that of x.

    With T = A / (A + C), the share of the bin's height, z = z0 + (z1 - z0) T(theta); and theta is what
    x = x0 + (x1 - x0) theta makes it, or with `inverse` what T(theta) = (z - z0) / (z1 - z0) does.
    """
    width, height, mixed = here.x1 - here.x0, here.z1 - here.z0, theta * phi
    slope, share = _slope_and_share(here, theta, phi)
    whole = here.s * share  # A + C
    below, above = (part / whole for part in _parts(here, theta, phi))
    t_by_theta = slope / (share * whole)
    log_by_theta = (here.d1 * theta + here.s * (phi - theta) - here.d0 * phi) / slope
    log_by_theta = 2 * (log_by_theta - (phi - theta) * (here.d0 + here.d1 - 2 * here.s) / whole)
    if inverse:
        on_t = -(on_found * width + on_log * log_by_theta) / t_by_theta
        on_at = -on_t / height
        on_x0, on_x1, on_z0, on_z1 = on_found * phi, on_found * theta, -on_at * above, -on_at * below
    else:
        on_t = on_found * height
        on_at = (on_t * t_by_theta + on_log * log_by_theta) / width
        on_x0, on_x1, on_z0, on_z1 = -on_at * phi, -on_at * theta, on_found * above, on_found * below
    by_whole, by_slope, shared = on_t / whole, on_log / slope, 2 * on_log * mixed / whole
    return on_at, Bin(
        x0=on_x0,
        x1=on_x1,
        z0=on_z0,
        z1=on_z1,
        d0=by_whole * mixed * above + by_slope * phi * phi - shared,
        d1=-by_whole * mixed * below + by_slope * theta * theta - shared,
        s=by_whole * (theta * theta * above - phi * phi * below)
        + 2 * by_slope * mixed
        + shared * (here.d0 + here.d1) / here.s,
    )


def _parts(here: Bin, theta: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """A and C."""
    return theta * (here.s * theta + here.d0 * phi), phi * (here.s * phi + here.d1 * theta)


def _slope_and_share(here: Bin, theta: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """d1 theta^2 + 2 s theta phi + d0 phi^2, and (A + C) / s."""
    mixed = theta * phi
    slope = here.d1 * theta * theta + 2 * here.s * mixed + here.d0 * phi * phi
    return slope, theta * theta + phi * phi + (here.d0 + here.d1) * mixed / here.s
