"""From integers and noise to real numbers, and back: what dequantizers compute, so that no integer is ever lost.

A count of integers, `levels`, is a number, or a tensor that broadcasts against the integers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from flowkit.functional.softplus import log1mexp, softplus

__all__ = [
    "binary_digits",
    "from_argmax",
    "from_binary_digits",
    "from_bins",
    "from_signs",
    "to_argmax",
    "to_bins",
    "to_signs",
]


def to_bins(x: Tensor, u: Tensor, levels: int | Tensor) -> Tensor:
    """(x + u) / levels for u in [0, 1), nudged where rounding would carry it out of its bin.

    So floor(levels z) is x in every dtype that tells the levels apart: up to 1 / eps of them, and 2 / eps. These are
    128 and 256 in bfloat16, 1024 and 2048 in float16, 2^23 and 2^24 in float32.
    """
    x = x.to(u.dtype)
    z = (x + u) / levels
    with torch.no_grad():
        inside, below, above = z, z.new_full((), -1.0), z.new_full((), 2.0)
        for _ in range(2):  # the sum and the quotient round once each
            bins = (inside * levels).floor()
            inside = torch.where(bins > x, inside.nextafter(below), inside)
            inside = torch.where(bins < x, inside.nextafter(above), inside)
    return _moved(z, inside)


def from_bins(z: Tensor, levels: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The integers floor(levels z), as int64; the noise in [0, 1); where z lies inside the cube.

    Outside it the integers are the nearest, and where z is not a number they are 0.
    """
    scaled = z * levels
    bins = scaled.floor()
    inside = (bins >= 0) & (bins < levels)
    u = torch.where(inside, scaled - bins, 0.5)
    return bins.nan_to_num(0.0).clamp(min=0).clamp(max=levels - 1).long().clamp(max=levels - 1), u, inside


def to_argmax(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """v with argmax v = x: v_x = u_x, and v_k = u_x - softplus(u_x - u_k) for the others.

    Args:
        x: integers (*batch), from 0 to K - 1.
        u: (*batch, K), any real numbers.

    Returns:
        v (*batch, K), in which v_x is strictly the largest whatever rounds, and log|det dv/du| (*batch).

    Reference:
        Hoogeboom, Nielsen, Jaini, Forré, Welling, "Argmax flows and multinomial diffusion", 2021,
        https://arxiv.org/abs/2102.05379.
    """
    chosen, index = _chosen(x, u)
    largest = u.gather(-1, index)
    gap = largest - u
    lowered = largest - softplus(gap)
    with torch.no_grad():
        below = lowered.minimum(largest.nextafter(largest.new_full((), -torch.inf)))
    v = torch.where(chosen, u, _moved(lowered, below))
    return v, torch.where(chosen, 0.0, F.logsigmoid(gap)).sum(-1)


def from_argmax(v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The way back of `to_argmax`: x, u, log|det dv/du|, and where v is finite; of a tie, x is the first.

    With softplus(u_x - u_k) = v_x - v_k = g, u_k = v_k - log(1 - exp(-g)), and the slope there is 1 - exp(-g).
    """
    finite = v.isfinite().all(-1)
    x = v.argmax(-1)
    chosen, index = _chosen(x, v)
    v = torch.where(finite.unsqueeze(-1), v, chosen.to(v.dtype))
    gap = (v.gather(-1, index) - v).clamp(min=torch.finfo(v.dtype).tiny)
    log_slope = torch.where(chosen, 0.0, log1mexp(torch.where(chosen, 1.0, gap)))
    return x, v - log_slope, log_slope.sum(-1), finite


def to_signs(signs: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """v = sign softplus(u) for signs -1 and 1, and log|dv/du| = log sigmoid(u), elementwise; v is never 0."""
    size = softplus(u)
    size = _moved(size, size.detach().clamp(min=torch.finfo(u.dtype).tiny))
    return signs * size, F.logsigmoid(u)


def from_signs(v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The way back of `to_signs`: signs, u, log|dv/du|, and where v is finite. The sign of 0 and of NaN is -1."""
    finite = v.isfinite()
    size = torch.where(finite, v.abs(), 1.0).clamp(min=torch.finfo(v.dtype).tiny)
    log_slope = log1mexp(size)
    return torch.where(v > 0, 1.0, -1.0).to(v.dtype), size + log_slope, log_slope, finite


def binary_digits(x: Tensor, digits: int) -> Tensor:
    """The binary digits of integers, the highest first: (*batch) to (*batch, digits), int64."""
    return x.long().unsqueeze(-1) >> _places(digits, x.device) & 1


def from_binary_digits(digits: Tensor) -> Tensor:
    """The integers of binary digits, the highest first: (*batch, digits) to (*batch), int64."""
    return (digits.long() << _places(digits.shape[-1], digits.device)).sum(-1)


def _places(digits: int, device: torch.device) -> Tensor:
    return torch.arange(digits - 1, -1, -1, device=device)


def _chosen(x: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
    """Where the last axis of `of` is at x, and x as an index into it."""
    index = x.long().unsqueeze(-1)
    return torch.arange(of.shape[-1], device=of.device) == index, index


def _moved(value: Tensor, to: Tensor) -> Tensor:
    """The value `to` with the gradient of `value`."""
    return value + (to - value).detach() if value.requires_grad else to
