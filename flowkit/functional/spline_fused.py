"""The spline for the compiler, on a CPU: bins in front, so that its vectors run over elements.

With the bins last, as nets give them, the compiler makes kernels whose inner loops are a bin's eight numbers long, or
scalar ones. An operator turns the parameters around, since the compiler would melt a plain copy into its reader; what
follows is written out bin by bin, in one kernel without a gather. The backward pass too, in closed form: it finds the
bin again, where autograd would keep dozens of numbers for each element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn.functional import softplus

from flowkit.functional.spline_bin import Bin, Grid, gradients, log_derivative, slope_shift, solve, value

__all__ = ["MOST_BINS", "fused_spline"]

MOST_BINS = 16  # what is written out takes the longer to compile, the more bins there are


def fused_spline(at: Tensor, raw: Sequence[Tensor], grid: Grid, *, inverse: bool) -> tuple[Tensor, Tensor]:
    """z and log dz/dx of an x within the interval; with `inverse`, x and log dz/dx of a z.

    Args:
        at: shape (*S).
        raw: widths, heights, slopes as `rational_quadratic_spline` takes them.
        grid: what all elements have in common.
        inverse: whether `at` is a z.
    """
    # Views: the compiler refuses one tensor in two places.
    return _Fused.apply(at, *(t.view_as(t) for t in raw), grid, inverse)


class _Fused(torch.autograd.Function):
    """`fused_spline`; saves its inputs."""

    @staticmethod
    def forward(
        at: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, grid: Grid, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        here = _find(
            at, _spline(at, [_bins_first(t, None) for t in (widths, heights, slopes)], grid), grid, inverse
        ).bin
        found, theta, phi = (solve if inverse else value)(at, here)
        return found, log_derivative(here, theta, phi)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.grid, ctx.inverse = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, on_found: Tensor, on_log: Tensor) -> tuple[Tensor | None, ...]:
        at, *saved = ctx.saved_tensors
        raw = [_bins_first(t, on_log) for t in saved]
        spline = _spline(at, raw, ctx.grid)
        found = _find(at, spline, ctx.grid, ctx.inverse)
        _, theta, phi = (solve if ctx.inverse else value)(at, found.bin)
        on_at, on_bin = gradients(found.bin, theta, phi, on_found, on_log, inverse=ctx.inverse)
        on_raw = _on_parameters(on_bin, found, spline, raw[2], ctx.grid)
        return on_at, *(_bins_last(t) for t in on_raw), None, None


class _Spline(NamedTuple):
    """Bin by bin what the softmax gives it of the interval, beyond the least share; knot by knot x, z and slope."""

    width: list[Tensor]
    height: list[Tensor]
    x: list[Tensor]
    z: list[Tensor]
    d: list[Tensor]


class _Found(NamedTuple):
    """The bin of each element, its shares of the interval, and for every bin whether it starts and ends before it."""

    bin: Bin
    width: Tensor
    height: Tensor
    starts: list[Tensor]
    ends: list[Tensor]


def _spline(like: Tensor, raw: Sequence[Tensor], grid: Grid) -> _Spline:
    width, height = _softmax(raw[0].unbind(0), grid.min_width), _softmax(raw[1].unbind(0), grid.min_height)
    x, z = _knots(like, width, grid.min_width, grid), _knots(like, height, grid.min_height, grid)
    d = [grid.min_slope + softplus(slope + slope_shift(grid)) for slope in _rows(raw[2])]
    if grid.tails == "linear":
        d = [torch.ones_like(like), *d, torch.ones_like(like)]
    elif grid.tails == "circular":
        d = [*d, d[0]]
    return _Spline(width, height, x, z, d)


def _rows(t: Tensor) -> tuple[Tensor, ...]:
    """Along the first dim, which may have no entry."""
    return t.unbind(0) if len(t) else ()


def _softmax(raw: Sequence[Tensor], minimum: float) -> list[Tensor]:
    """A softmax of what the least shares leave."""
    largest = raw[0].detach()
    for each in raw[1:]:
        largest = torch.maximum(largest, each.detach())
    powers = [(each - largest).exp() for each in raw]
    scale = (1 - minimum * len(raw)) / sum(powers[1:], powers[0])
    return [power * scale for power in powers]


def _knots(like: Tensor, shares: Sequence[Tensor], minimum: float, grid: Grid) -> list[Tensor]:
    """The ends, and between them sums of the shares."""
    knots, total = [torch.full_like(like, grid.lower)], torch.zeros_like(like)
    for share in shares[:-1]:
        total = total + (minimum + share)
        knots.append(grid.lower + (grid.upper - grid.lower) * total)
    return [*knots, torch.full_like(like, grid.upper)]


def _find(at: Tensor, spline: _Spline, grid: Grid, inverse: bool) -> _Found:
    """The bin that holds `at`."""
    x, z, d = spline.x, spline.z, spline.d
    beyond = [at >= knot for knot in (z if inverse else x)[1:-1]]
    bins = list(zip(x, x[1:], z, z[1:], d, d[1:], spline.width, spline.height, strict=False))  # the shortest has K
    here = bins[0]
    for condition, one in zip(beyond, bins[1:], strict=True):
        here = tuple(torch.where(condition, new, old) for new, old in zip(one, here, strict=True))
    x0, x1, z0, z1, d0, d1, width, height = here
    width, height = grid.min_width + width, grid.min_height + height
    no = torch.zeros_like(at, dtype=torch.bool)
    return _Found(Bin(x0, x1, z0, z1, d0, d1, height / width), width, height, [~no, *beyond], [*beyond, no])


def _on_parameters(
    on_bin: Bin, found: _Found, spline: _Spline, slopes: Tensor, grid: Grid
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of widths, heights and slopes, from those of the bin that was found."""
    by_height = on_bin.s / found.width  # s is the quotient of the shares
    on_width = _on_softmax((on_bin.x0, on_bin.x1), -by_height * found.bin.s, found, spline.width, grid.min_width, grid)
    on_height = _on_softmax((on_bin.z0, on_bin.z1), by_height, found, spline.height, grid.min_height, grid)
    inside = [start & ~end for start, end in zip(found.starts, found.ends, strict=True)]
    at_start, at_end = ([torch.where(each, on_d, 0.0) for each in inside] for on_d in (on_bin.d0, on_bin.d1))
    on_d = [start + end for start, end in zip(at_start[1:], at_end, strict=False)]
    if grid.tails == "bounded":
        on_d = [at_start[0], *on_d, at_end[-1]]
    elif grid.tails == "circular":
        on_d = [at_start[0] + at_end[-1], *on_d]
    rows = [each * (raw + slope_shift(grid)).sigmoid() for each, raw in zip(on_d, _rows(slopes), strict=True)]
    return on_width, on_height, torch.stack(rows) if rows else torch.zeros_like(slopes)


def _on_softmax(
    on_ends: tuple[Tensor, Tensor], on_share: Tensor, found: _Found, shares: list[Tensor], minimum: float, grid: Grid
) -> Tensor:
    """Gradient of raw shares, from those of the ends of the bin that was found and of its share.

    Every bin before the one that was found moves both ends, and it its own: but the last knot does not move.
    """
    span = grid.upper - grid.lower
    on_end = torch.where(found.starts[-1], 0.0, on_ends[1])
    of_those_before, of_itself = span * (on_ends[0] + on_end), span * on_end + on_share
    on_shares = [
        torch.where(end, of_those_before, torch.where(start, of_itself, 0.0))
        for start, end in zip(found.starts, found.ends, strict=True)
    ]
    parts = [share * each for share, each in zip(shares, on_shares, strict=True)]
    mean = sum(parts[1:], parts[0]) / (1 - minimum * len(shares))
    return torch.stack([share * (each - mean) for share, each in zip(shares, on_shares, strict=True)])


@custom_op("flowkit::bins_first", mutates_args=(), schema="(Tensor t, Tensor? after) -> Tensor")
def _bins_first(t: Tensor, after: Tensor | None) -> Tensor:
    """(*S, K) to (K, *S), in memory too.

    `after` is for the backward pass: with a gradient there, the compiler does it again, and all that follows from it,
    where it would keep the latter from the forward pass.
    """
    return t.new_empty(t.shape[-1:] + t.shape[:-1]).copy_(t.movedim(-1, 0))


@custom_op("flowkit::bins_last", mutates_args=(), schema="(Tensor t) -> Tensor")
def _bins_last(t: Tensor) -> Tensor:
    """(K, *S) to (*S, K), in memory too."""
    out = t.new_empty(t.shape[1:] + t.shape[:1])
    for index, row in enumerate(t):  # five times as fast as `torch.stack`
        out[..., index] = row
    return out


@_bins_first.register_fake
def _(t: Tensor, after: Tensor | None) -> Tensor:
    return t.new_empty(t.shape[-1:] + t.shape[:-1])


@_bins_last.register_fake
def _(t: Tensor) -> Tensor:
    return t.new_empty(t.shape[1:] + t.shape[:1])
