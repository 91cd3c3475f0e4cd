"""The bin of a spline for the compiler, on a CPU: bins in front, so that its vectors run over elements.

With the bins last, as nets give them, the compiler makes kernels whose inner loops are a bin's eight numbers long, or
scalar ones. An operator turns the parameters around, since the compiler would melt a plain copy into its reader; what
follows is written out bin by bin, in one kernel without a gather.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn.functional import softplus

__all__ = ["MOST_BINS", "fused_bin"]

MOST_BINS = 16  # what is written out takes the longer to compile, the more bins there are


def fused_bin(
    at: Tensor,
    raw: tuple[Tensor, Tensor, Tensor],
    interval: tuple[float, float],
    tails: str,
    minima: tuple[float, float, float],
    *,
    inverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of the bin that holds `at`: ends x0, x1, z0, z1, the slopes d0, d1 there, and the mean slope; each of shape (*S).

    Args:
        at: shape (*S), within the interval: an x, or with `inverse` a z.
        raw: widths, heights, slopes as `rational_quadratic_spline` takes them.
        interval, tails, minima: lower and upper, the kind of tails, and the least width, height and slope.
        inverse: whether `at` is a z.
    """
    widths, heights, slopes = (_bins_first(t).unbind(0) if t.shape[-1] else () for t in raw)
    width, height = _shares(widths, minima[0]), _shares(heights, minima[1])
    x, z = _knots(at, width, interval), _knots(at, height, interval)
    d = [minima[2] + softplus(slope + math.log(math.expm1(1 - minima[2]))) for slope in slopes]
    if tails == "linear":
        d = [torch.ones_like(at), *d, torch.ones_like(at)]
    elif tails == "circular":
        d = [*d, d[0]]
    bins = list(zip(x, x[1:], z, z[1:], d, d[1:], width, height, strict=False))  # the shortest has one for each bin
    here = bins[0]
    for one in bins[1:]:
        beyond = at >= (one[2] if inverse else one[0])
        here = tuple(torch.where(beyond, new, old) for new, old in zip(one, here, strict=True))
    return *here[:6], here[7] / here[6]


def _shares(raw: Sequence[Tensor], minimum: float) -> list[Tensor]:
    """The minimum, and a softmax of the rest."""
    largest = raw[0].detach()
    for each in raw[1:]:
        largest = torch.maximum(largest, each.detach())
    powers = [((each - largest) * (1 / math.log(2))).exp2() for each in raw]
    scale = (1 - minimum * len(raw)) / sum(powers[1:], powers[0])
    return [minimum + power * scale for power in powers]


def _knots(like: Tensor, shares: Sequence[Tensor], interval: tuple[float, float]) -> list[Tensor]:
    """The ends, and between them sums of the shares."""
    lower, upper = interval
    knots, total = [torch.full_like(like, lower)], torch.zeros_like(like)
    for share in shares[:-1]:
        total = total + share
        knots.append(lower + (upper - lower) * total)
    return [*knots, torch.full_like(like, upper)]


@custom_op("flowkit::bins_first", mutates_args=(), schema="(Tensor t) -> Tensor")
def _bins_first(t: Tensor) -> Tensor:
    """(*S, K) to (K, *S), in memory too."""
    return t.new_empty(t.shape[-1:] + t.shape[:-1]).copy_(t.movedim(-1, 0))


@custom_op("flowkit::bins_last", mutates_args=(), schema="(Tensor t) -> Tensor")
def _bins_last(t: Tensor) -> Tensor:
    """(K, *S) to (*S, K), in memory too."""
    return torch.stack(t.unbind(0), -1)


@_bins_first.register_fake
def _(t: Tensor) -> Tensor:
    return t.new_empty(t.shape[-1:] + t.shape[:-1])


@_bins_last.register_fake
def _(t: Tensor) -> Tensor:
    return t.new_empty(t.shape[1:] + t.shape[:1])


_bins_first.register_autograd(lambda _, gradient: _bins_last(gradient))
_bins_last.register_autograd(lambda _, gradient: _bins_first(gradient))
_bins_first.register_vmap(lambda info, dims, t: (_bins_first(t.movedim(dims[0], 0)), 1))
_bins_last.register_vmap(lambda info, dims, t: (_bins_last(t.movedim(dims[0], 1)), 0))
