"""The mixture-of-logistics CDF at speed: three exponentials per component, in linear space.

Linear space holds the digits of nearly all elements; those that it does not hold, far out or between sharp components,
are done again in log space. The work goes through tiles that stay in cache, and such elements are gathered.

`flowkit.functional.logistic` has the functions that users call, and the reference; `logistic_fused` is for the
compiler.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowkit.functional.mixture import largest, quantile_bracket
from flowkit.functional.rootfind import solve_increasing

__all__ = [
    "Mixture",
    "Sums",
    "differentiate_linear",
    "evaluate_linear",
    "gradients_of",
    "mend",
    "mend_gradients",
    "mixture_from",
    "mixture_of",
    "solve_flat",
    "start_of",
    "tiled_backward",
    "tiled_forward",
    "tiled_solve",
    "tiles",
]

_ITERATIONS = 100  # a limit: iterations stop by themselves
_TILE = 98304  # components per tile and thread: few enough to stay in the cache, enough to make up for 40 calls
_SEARCHES = 2  # tiles at once: what is left of them becomes less
_MANY = 0.15  # of a tile: as many elements are done faster in log space with all others than gathered
_LOG2_E = 1 / math.log(2)
_CUT = {torch.float32: 60.0, torch.float64: 600.0}  # exp(-cut) is a normal number: denormal ones take 100 times as long


class Mixture(NamedTuple):
    """What is computed once for many elements: shape (K, *S), and (*S) for the last."""

    logits: Tensor
    weights: Tensor  # exp(logits)
    means: Tensor
    log_scales: Tensor
    rates: Tensor  # exp(-log_scales) log2(e): distances from the means in octaves, powers of 2
    negligible: Tensor  # densities below this may consist of what the cut let in


class Sums(NamedTuple):
    """F, S and f of every element but for one common factor, shape (*S); f is 0 where linear space lacks digits."""

    below: Tensor
    above: Tensor
    slope: Tensor


def tiled_forward(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Sums]:
    """y, log dy/dx and the sums, tile by tile."""
    y, log_derivative, sums = torch.empty_like(x), torch.empty_like(x), Sums(*(torch.empty_like(x) for _ in range(3)))
    for tile in tiles(x.shape, parameters[0].shape[-1]):
        found = _evaluate(x[tile], mixture_of(tile, parameters))
        for whole, part in zip((y, log_derivative, *sums), (*found[:2], *found[2]), strict=True):
            whole[tile] = part
    return y, log_derivative, sums


def tiled_backward(
    grad_y: Tensor, grad_log: Tensor, sums: Sums, x: Tensor, *parameters: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and of the parameters, tile by tile."""
    grads = [torch.empty_like(t) for t in (x, *parameters)]
    for tile in tiles(x.shape, parameters[0].shape[-1]):
        into, mixture = gradients_of(tile, grads), mixture_of(tile, parameters)
        on_y, on_log, here, *of_tile = (t[tile] for t in (grad_y, grad_log, x, *sums))
        outside = of_tile[-1] == 0
        count = int(outside.count_nonzero())
        if count <= _MANY * outside.numel():
            aside = into[-1].stride(0) == 1  # components side by side: too slow to work on
            found = differentiate_linear(on_y, on_log, here, mixture, Sums(*of_tile), None if aside else into)
            if aside:
                for whole, part in zip(into, found, strict=True):
                    whole.copy_(part)
        if count:
            mend_gradients(outside, count, into, on_y, on_log, here, mixture)
        del mixture  # before that of the next tile is made
    return tuple(grads)  # type: ignore[return-value]


def tiled_solve(y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    """x and log dx/dy, tile by tile; what has converged is dropped on the way."""
    x, log_derivative = torch.empty_like(y), torch.empty_like(y)
    for tile in tiles(y.shape, parameters[0].shape[-1], _SEARCHES):
        mixture = _flat(mixture_of(tile, parameters))
        target = y[tile].flatten()
        root, log_slope = solve_flat(target, *start_of(target, mixture), mixture)
        x[tile], log_derivative[tile] = root.view(y[tile].shape), -log_slope.view(y[tile].shape)
        del mixture  # before that of the next tile is made
    return x, log_derivative


def solve_flat(
    target: Tensor, lower: Tensor, upper: Tensor, start: Tensor, resolution: Tensor, mixture: Mixture
) -> tuple[Tensor, Tensor]:
    """x and log dy/dx of N elements, each until it has converged."""
    return solve_increasing(
        lambda guess, *left: _evaluate(guess, Mixture(*left))[:2],
        target,
        lower,
        upper,
        start,
        resolution,
        mixture,
        iterations=_ITERATIONS,
        compact=True,
    )


def tiles(shape: torch.Size, components: int, several: int = 1) -> Iterator[tuple[slice, ...]]:
    """Indices that cut a tensor of this shape into tiles, whole in the last dimensions."""
    room = several * _TILE * torch.get_num_threads() // components
    cuts: list[list[slice]] = []
    for size in reversed(shape):
        step = max(1, min(size, room))
        cuts.append([slice(start, start + step) for start in range(0, size, step)])
        room //= step
    return itertools.product(*reversed(cuts))


def gradients_of(tile: tuple[slice, ...], grads: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Where the gradients of a tile go, with the components in front."""
    on_x, *on_parameters = (t[tile] for t in grads)
    return on_x, *(t.movedim(-1, 0) for t in on_parameters)


def mixture_of(tile: tuple[slice, ...], parameters: Sequence[Tensor]) -> Mixture:
    """The mixtures of a tile: the parameters as they lie, unless components lie side by side."""
    views = (t[tile].movedim(-1, 0) for t in parameters)
    logits, means, log_scales = (t.contiguous() if t.stride(0) == 1 else t for t in views)
    return mixture_from(logits, means, log_scales)


def mixture_from(logits: Tensor, means: Tensor, log_scales: Tensor) -> Mixture:
    """What is computed once, from parameters of shape (K, *S)."""
    cut, numbers = _CUT[logits.dtype] * _LOG2_E, torch.finfo(logits.dtype)
    weights = (logits * _LOG2_E).clamp_(-cut, cut).exp2_()
    rates = _exp_of_minus(log_scales).mul_(_LOG2_E)
    negligible = (_floor(logits) * log_scales.amin(0).neg_().exp_()).clamp_(min=numbers.tiny / numbers.eps)
    return Mixture(logits, weights, means, log_scales, rates, negligible)


def _exp_of_minus(x: Tensor) -> Tensor:
    """e^-x within two units in the last place, by exp2, as exp may be that of MKL: on AMD four times as long."""
    if torch.compiler.is_compiling():
        return x.neg().exp()
    octaves = x * -_LOG2_E
    power = octaves.exp2()
    # Minus what rounding took from the octaves: PyTorch adds a multiple in one rounding.
    rest = torch.add(x, octaves, alpha=1 / _LOG2_E, out=octaves)
    return power.addcmul_(power, rest, value=-1)


def _floor(logits: Tensor) -> float:
    """Sums of K terms below this may be off by more than rounding, because each term is off by up to exp(-cut)."""
    return 2 * len(logits) * math.exp(-_CUT[logits.dtype]) / torch.finfo(logits.dtype).eps


def _flat(mixture: Mixture) -> Mixture:
    """The mixtures of N elements in one row; a tile of no dims is one element."""
    return Mixture(*(t.unsqueeze(-1).flatten(t.ndim - mixture.negligible.ndim).contiguous() for t in mixture))


def _select(mixture: Mixture, index: Tensor) -> Mixture:
    return Mixture(*(t.index_select(-1, index) for t in _flat(mixture)))


def start_of(y: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bracket, start and resolution of the search for x."""
    weights = mixture.weights / mixture.weights.sum(0)
    return quantile_bracket(y, weights, mixture.means, _LOG2_E / mixture.rates, dim=0)


def _linear(
    x: Tensor, mixture: Mixture, out: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x - mean, sigmoid(-z) and the terms of F and S, but for a factor; three exponentials with the mixture's two.

    The first, the second and the last are written into the tensors of `out`.
    """
    cut = _CUT[x.dtype] * _LOG2_E
    offset = torch.sub(x, mixture.means, out=out[0])
    odds = (offset * mixture.rates).clamp_(-cut, cut).exp2_()
    sigmoid_above = torch.add(odds, 1, out=out[1]).reciprocal_()
    upper = torch.mul(mixture.weights, sigmoid_above, out=out[2])
    lower = odds.mul_(upper)
    return offset, sigmoid_above, lower, upper


def evaluate_linear(x: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor, Sums]:
    """y and log dy/dx, right where the sums say so."""
    _, sigmoid_above, lower, upper = _linear(x, mixture)
    below, above, slope = lower.sum(0), upper.sum(0), sigmoid_above.mul_(lower).mul_(mixture.rates).sum(0)
    # Their sum is that of the weights; what the cut changes is at most exp(-cut), and as much of the weights.
    total, floor, cut = below + above, _floor(mixture.logits), _CUT[x.dtype]
    inside = (torch.minimum(below, above) > floor * (1 + total)) & (slope > mixture.negligible * (1 + total))
    inside &= (total < math.exp(cut - 1)) & (slope < torch.inf)
    slope = slope / _LOG2_E
    y, log_derivative = (below / above).log_(), (slope / below + slope / above).log_()
    return y, log_derivative, Sums(below, above, slope.masked_fill_(~inside, 0))


def _evaluate(x: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor, Sums]:
    """y and log dy/dx, in linear space where it has the digits."""
    y, log_derivative, sums = evaluate_linear(x, mixture)
    outside = sums.slope == 0
    count = int(outside.count_nonzero())
    if count:
        y, log_derivative = mend(outside, count, y, log_derivative, x, mixture)
    return y, log_derivative, sums


def mend(
    outside: Tensor, count: int, y: Tensor, log_derivative: Tensor, x: Tensor, mixture: Mixture
) -> tuple[Tensor, Tensor]:
    """y and log dy/dx with the elements outside of linear space done in log space; may overwrite its arguments."""
    if count > _MANY * outside.numel():
        return _evaluate_log(x, mixture)
    y[outside], log_derivative[outside] = _evaluate_log(x[outside], _select(mixture, _places(outside)))
    return y, log_derivative


def _places(mask: Tensor) -> Tensor:
    """Indices into the flattened mask, in the order in which it selects."""
    return mask.flatten().nonzero().squeeze(-1)


class _Logarithmic(NamedTuple):
    """Terms of F, S and f of N elements, each divided by the exponential of its own shift, and the two sigmoids."""

    sigmoid_below: Tensor
    sigmoid_above: Tensor
    lower: Tensor
    upper: Tensor
    density: Tensor
    lower_shift: Tensor
    upper_shift: Tensor
    density_shift: Tensor


def _logarithmic(x: Tensor, mixture: Mixture) -> _Logarithmic:
    cut, limit = _CUT[x.dtype] * _LOG2_E, largest(x.dtype)
    logits, z = mixture.logits * _LOG2_E, (x - mixture.means).mul_(mixture.rates).clamp_(-limit, limit)
    # One of the two is 1. (`where` would be slow: on a CPU it branches at every element.)
    sigmoid_below, sigmoid_above = z.clamp(-cut, 0).exp2_(), z.clamp(0, cut).neg_().exp2_()
    larger = (sigmoid_below * sigmoid_above).add_(1).reciprocal_()
    sigmoid_below, sigmoid_above, distance = sigmoid_below.mul_(larger), sigmoid_above.mul_(larger), z.abs()
    terms, shifts = [], []
    for exponents, power in (
        (logits + z.clamp(max=0), 1),
        (logits - z.clamp_(min=0), 1),
        (torch.sub(logits, mixture.log_scales, alpha=_LOG2_E).sub_(distance), 2),
    ):
        shift = exponents.amax(0)
        term = exponents.sub_(shift).clamp_(min=-cut).exp2_()
        for _ in range(power):
            term.mul_(larger)
        terms.append(term)
        shifts.append(shift / _LOG2_E)
    return _Logarithmic(sigmoid_below, sigmoid_above, *terms, *shifts)


def _evaluate_log(x: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor]:
    terms = _logarithmic(x, mixture)
    below, above = terms.lower.sum(0), terms.upper.sum(0)
    y = (terms.lower_shift - terms.upper_shift) + (below / above).log_()
    slope = (terms.lower * terms.sigmoid_above).mul_(mixture.rates).sum(0) / below
    slope += (terms.upper * terms.sigmoid_below).mul_(mixture.rates).sum(0) / above
    # in a gap between sharp components no hazard is left, and the logarithms are small enough to be subtracted
    log_density = terms.density_shift + terms.density.sum(0).log_()
    in_gap = log_density + torch.logaddexp(-terms.lower_shift - below.log_(), -terms.upper_shift - above.log_())
    return y, torch.where(slope > mixture.negligible, (slope / _LOG2_E).log(), in_gap)


def mend_gradients(
    outside: Tensor,
    count: int,
    into: tuple[Tensor, ...],
    grad_y: Tensor,
    grad_log: Tensor,
    x: Tensor,
    mixture: Mixture,
) -> None:
    """Write the gradients of the elements outside of linear space, found in log space."""
    if count > _MANY * outside.numel():
        _differentiate_log(grad_y, grad_log, x, mixture, into)
        return
    on_y, on_log, at = (t[outside] for t in (grad_y, grad_log, x))
    for whole, part in zip(into, _differentiate_log(on_y, on_log, at, _select(mixture, _places(outside))), strict=True):
        whole[..., outside] = part


def differentiate_linear(
    grad_y: Tensor, grad_log: Tensor, x: Tensor, mixture: Mixture, sums: Sums, into: tuple[Tensor, ...] | None = None
) -> tuple[Tensor, ...]:
    """Gradients of x, logits, means and log-scales, right where the sums say so.

    With `into` they are written there. Until then its tensors hold what is on the way, and the mixture's weights are
    overwritten too: less memory, and less to fetch into the cache.
    """
    below, above, slope = sums
    on_x, on_logits, on_means, on_log_scales = into or (None,) * 4
    overwritten = mixture.weights if into else None
    offset, sigmoid_above, lower, upper = _linear(x, mixture, (on_log_scales, on_means, overwritten))
    sigmoid_above.mul_(mixture.rates)
    density = torch.mul(lower, sigmoid_above, out=on_logits)
    by_below, by_above, by_slope = (grad_y - grad_log) / below, (grad_y + grad_log) / above, grad_log / slope
    # F + S = 1: below + above is the sum of the weights, and lower + upper each of them
    share = grad_log / (below + above)
    curve = torch.sub(mixture.rates, sigmoid_above, alpha=2, out=on_means)
    per_density = torch.addcmul((by_below + by_above) / -_LOG2_E, curve, by_slope, value=_LOG2_E**-2, out=on_means)
    grad_means = torch.mul(density, per_density, out=on_means)
    on_density = density.mul_(by_slope / _LOG2_E)
    grad_log_scales = offset.mul_(grad_means).sub_(on_density)
    lower.mul_(by_below + share).addcmul_(upper, by_above - share, value=-1)
    return torch.neg(grad_means.sum(0), out=on_x), on_density.add_(lower), grad_means, grad_log_scales


def _differentiate_log(
    grad_y: Tensor, grad_log: Tensor, x: Tensor, mixture: Mixture, into: tuple[Tensor, ...] | None = None
) -> tuple[Tensor, ...]:
    on_x, on_logits, on_means, on_log_scales = into or (None,) * 4
    terms = _logarithmic(x, mixture)
    on_lower = terms.lower.mul_((grad_y - grad_log) / terms.lower.sum(0))
    on_upper = terms.upper.mul_((grad_y + grad_log) / terms.upper.sum(0))
    on_density = terms.density.mul_(grad_log / terms.density.sum(0))
    grad_means = (on_lower + on_density).mul_(terms.sigmoid_above)
    grad_means.addcmul_(on_upper - on_density, terms.sigmoid_below)
    grad_means = torch.mul(grad_means, mixture.rates / -_LOG2_E, out=on_means)
    grad_logits = on_lower.sub_(on_upper).add_(on_density)
    grad_logits = torch.addcmul(grad_logits, mixture.logits.softmax(0), grad_log, out=on_logits)
    grad_log_scales = torch.sub((x - mixture.means).mul_(grad_means), on_density, out=on_log_scales)
    return torch.neg(grad_means.sum(0), out=on_x), grad_logits, grad_means, grad_log_scales
