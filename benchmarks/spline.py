"""The monotone rational-quadratic spline: forward with the log-derivative, with backward, and inverse."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Cell, Contestant, Contract, compiled, relative
from flowkit.functional.spline import rational_quadratic_spline, rational_quadratic_spline_inverse

__all__ = ["TITLE", "cells", "plain"]

TITLE = "The rational-quadratic spline, 4,096 × 64 elements of 8 bins"
BOUND, MINIMUM = 5.0, 1e-3

# Value, widths, heights, slopes, whether backwards, to the result and its log-derivative.
Spline = Callable[[Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]


def flowkit(x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """This library's."""
    function = rational_quadratic_spline_inverse if inverse else rational_quadratic_spline
    return function(x, widths, heights, slopes, lower=-BOUND, upper=BOUND)


def plain(x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """From the formulas of the paper: everything in the interval, `where` for the tails."""
    bins = widths.shape[-1]

    def knots(raw: Tensor) -> Tensor:
        shares = MINIMUM + (1 - MINIMUM * bins) * raw.softmax(-1)
        inner = 2 * BOUND * shares.cumsum(-1)[..., :-1] - BOUND
        return F.pad(F.pad(inner, (1, 0), value=-BOUND), (0, 1), value=BOUND)

    xs, ys = knots(widths), knots(heights)
    ds = F.pad(MINIMUM + F.softplus(slopes + math.log(math.expm1(1 - MINIMUM))), (1, 1), value=1.0)
    inside = (x > -BOUND) & (x < BOUND)
    inner = x.clamp(-BOUND, BOUND).unsqueeze(-1)
    index = (inner >= (ys if inverse else xs)[..., 1:-1]).sum(-1, keepdim=True)
    x0, y0, d0 = (t.gather(-1, index) for t in (xs, ys, ds))
    x1, y1, d1 = (t.gather(-1, index + 1) for t in (xs, ys, ds))
    width, height = x1 - x0, y1 - y0
    s = height / width
    bend = d0 + d1 - 2 * s
    if inverse:
        rise = inner - y0
        a, b, c = height * (s - d0) + rise * bend, height * d0 - rise * bend, -s * rise
        theta = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
        result = theta * width + x0
    else:
        theta = (inner - x0) / width
    mixed = theta * (1 - theta)
    bottom = s + bend * mixed
    if not inverse:
        result = y0 + height * (s * theta.square() + d0 * mixed) / bottom
    top = s.square() * (d1 * theta.square() + 2 * s * mixed + d0 * (1 - theta).square())
    log_slope = top.log() - 2 * bottom.log()
    result, log_slope = result.squeeze(-1), (-log_slope if inverse else log_slope).squeeze(-1)
    return torch.where(inside, result, x), torch.where(inside, log_slope, 0.0)


def zuko(x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """zuko's; its raw parameters are clipped softly."""
    from zuko.transforms import MonotonicRQSTransform

    spline = MonotonicRQSTransform(widths, heights, slopes, bound=BOUND)
    if not inverse:
        return spline.call_and_ladj(x)
    found = spline.inv(x)
    return found, -spline.log_abs_det_jacobian(found, x)


def nflows(x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """nflows'."""
    from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline

    return unconstrained_rational_quadratic_spline(x, widths, heights, slopes, inverse=inverse, tail_bound=BOUND)


def normflows(x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """normflows'."""
    from normflows.utils.splines import unconstrained_rational_quadratic_spline

    return unconstrained_rational_quadratic_spline(x, widths, heights, slopes, inverse=inverse, tail_bound=BOUND)


def pyro(x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """Pyro's, which leaves the maps of its raw parameters to those who call it."""
    from pyro.distributions.transforms.spline import _monotonic_rational_spline

    return _monotonic_rational_spline(
        x, widths.softmax(-1), heights.softmax(-1), F.softplus(slopes), inverse=inverse, bound=BOUND
    )


def gradients(spline: Spline, arguments: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A forward and a backward pass."""
    leaves = [t.detach().requires_grad_() for t in arguments]
    z, log_slope = spline(*leaves, False)
    return torch.autograd.grad(z.sum() + log_slope.sum(), leaves)


def cells(contract: Contract) -> Iterator[Cell]:
    """Forward, forward with backward, inverse. Every spline is held to itself in float64, its log-slope to autograd."""
    rows, columns, bins = (16, 4, 4) if contract.tiny else (4096, 64, 8)
    torch.manual_seed(0)
    arguments = [torch.randn(rows, columns, size) for size in (bins, bins, bins - 1)]
    x = 2 * torch.randn(rows, columns)
    wide = [t.double() for t in arguments]
    splines: dict[str, Spline] = {
        "flowkit": flowkit,
        "flowkit, compiled": compiled(flowkit, contract),
        "plain": plain,
        "zuko": zuko,
        "zuko, compiled": compiled(zuko, contract),
        "nflows": nflows,
        "normflows": normflows,
        "Pyro": pyro,
    }
    eager = {name: splines[name.split(",")[0]] for name in splines}

    def forward(name: str) -> Contestant:
        def error(found: tuple[Tensor, Tensor]) -> float:
            leaf = x.double().requires_grad_()
            z, _ = eager[name](leaf, *wide, False)
            return relative(found, (z, torch.autograd.grad(z.sum(), leaf)[0].log()))

        return Contestant(lambda: splines[name](x, *arguments, False), error)

    def training(name: str) -> Contestant:
        def error(found: tuple[Tensor, ...]) -> float:
            exact = gradients(eager[name], [x.double(), *wide])
            # Means: beside a knot, rounding of x chooses another bin, whose gradient is another one.
            return max(((a - b).abs().mean() / b.abs().mean()).item() for a, b in zip(found, exact, strict=True))

        return Contestant(lambda: gradients(splines[name], [x, *arguments]), error)

    def backward(name: str) -> Contestant:
        z = eager[name](x, *arguments, False)[0].detach()

        def residual(found: tuple[Tensor, Tensor]) -> float:
            again, log_slope = eager[name](found[0].double(), *wide, False)
            scale = 1 + z.abs() + found[0].abs() * log_slope.exp()
            return ((again - z).abs() / scale).max().item()

        return Contestant(lambda: splines[name](z, *arguments, True), residual)

    # The slope changes by its own size within the narrowest bin, 1e-2 wide, and x of 5 is rounded by 2e-7.
    yield Cell("forward", {name: forward(name) for name in splines}, tolerance=2e-3, memory=True)
    yield Cell("forward and backward", {name: training(name) for name in splines}, tolerance=1e-3, memory=True)
    yield Cell("inverse", {name: backward(name) for name in splines}, tolerance=1e-4, memory=True)
