"""The mixture-of-logistics CDF at speed: three exponentials per component, in linear space.

Linear space holds the digits of nearly all elements; those that it does not hold, far out or between sharp components,
are done again in log space. In eager mode on a CPU the work goes through tiles that stay in cache, and such elements
are gathered. Under the compiler, which fuses everything into one pass, log space is for the whole call or not at all.

`flowkit.functional.logistic` has the functions that users call, and the reference.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from flowkit.functional.mixture import largest, quantile_bracket
from flowkit.functional.rootfind import solve_increasing

__all__ = ["Sums", "fused_backward", "fused_forward", "fused_solve", "tiled_backward", "tiled_forward", "tiled_solve"]

_ITERATIONS = 100  # a limit: iterations stop by themselves
_TILE = 131072  # components per tile and thread: few enough to stay in the cache, enough to make up for 40 calls
_MANY = 0.3  # of the elements of a tile: to do all of them in log space is faster than to gather some
_LOG2_E = 1 / math.log(2)
_CUT = {torch.float32: 60.0, torch.float64: 600.0}  # exp(-cut) is a normal number: denormal ones take 100 times as long


class _Mixture(NamedTuple):
    """What is computed once for many elements: shape (K, *S), and (*S) for the last."""

    logits: Tensor  # the largest is 0; in octaves: powers of 2
    weights: Tensor  # 2^logits
    means: Tensor
    log_scales: Tensor
    rates: Tensor  # exp(-log_scales), in octaves
    negligible: Tensor  # densities below this may consist of what the cut let in


class Sums(NamedTuple):
    """F, S and f of every element but for one common factor, shape (*S); f is 0 where linear space lacks digits."""

    below: Tensor
    above: Tensor
    slope: Tensor


def tiled_forward(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Sums]:
    """y, log dy/dx and the sums, tile by tile."""
    y, log_derivative, sums = torch.empty_like(x), torch.empty_like(x), Sums(*(torch.empty_like(x) for _ in range(3)))
    for tile in _tiles(x.shape, parameters[0].shape[-1]):
        found = _evaluate(x[tile], _mixture_of(tile, parameters))
        for whole, part in zip((y, log_derivative, *sums), (*found[:2], *found[2]), strict=True):
            whole[tile] = part
    return y, log_derivative, sums


def tiled_backward(
    grad_y: Tensor, grad_log: Tensor, sums: Sums, x: Tensor, *parameters: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and of the parameters, tile by tile."""
    grads = [torch.empty_like(t) for t in (x, *parameters)]
    for tile in _tiles(x.shape, parameters[0].shape[-1]):
        on_x, *on_parameters = (t[tile] for t in grads)
        into = (on_x, *(t.movedim(-1, 0) for t in on_parameters))
        on_y, on_log, here, *of_tile = (t[tile] for t in (grad_y, grad_log, x, *sums))
        _differentiate(on_y, on_log, here, _mixture_of(tile, parameters), Sums(*of_tile), into)
    return tuple(grads)  # type: ignore[return-value]


def tiled_solve(y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    """x and log dx/dy, tile by tile; what has converged is dropped on the way."""
    x, log_derivative = torch.empty_like(y), torch.empty_like(y)
    for tile in _tiles(y.shape, parameters[0].shape[-1]):
        here, mixture = y[tile], _flat(_mixture_of(tile, parameters))
        target = here.reshape(-1)
        root, log_slope = solve_increasing(
            lambda guess, *left: _evaluate(guess, _Mixture(*left))[:2],
            target,
            *_start(target, mixture),
            mixture,
            iterations=_ITERATIONS,
            compact=True,
        )
        x[tile], log_derivative[tile] = root.view(here.shape), -log_slope.view(here.shape)
    return x, log_derivative


def fused_forward(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Sums]:
    """y, log dy/dx and the sums, for the compiler."""
    parameters = _apart(*parameters)
    y, log_derivative, sums = _evaluate_linear(x, _mixture(*parameters))

    def in_log_space(*operands: Tensor) -> tuple[Tensor, ...]:
        _, _, _, x, *parameters = operands
        return (*_evaluate_log(x, _mixture(*parameters)), torch.zeros_like(x))

    # Parameters, not what was made of them: it would have to be written down to be handed over.
    y, log_derivative, slope = _linear_or_log(in_log_space, y, log_derivative, sums.slope, x, *parameters)
    return y, log_derivative, sums._replace(slope=slope)


def fused_backward(
    grad_y: Tensor, grad_log: Tensor, sums: Sums, x: Tensor, *parameters: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and of the parameters, for the compiler."""

    def in_linear_space(*operands: Tensor) -> tuple[Tensor, ...]:
        grad_y, grad_log, below, above, slope, x, *parameters = operands
        return _alike(_differentiate_linear(grad_y, grad_log, x, _mixture(*parameters), Sums(below, above, slope)))

    def in_log_space(*operands: Tensor) -> tuple[Tensor, ...]:
        grad_y, grad_log, _, _, _, x, *parameters = operands
        return _alike(_differentiate_log(grad_y, grad_log, x, _mixture(*parameters)))

    grad_x, *grads = torch.cond(
        (sums.slope > 0).all(), in_linear_space, in_log_space, (grad_y, grad_log, *sums, x, *_apart(*parameters))
    )
    return grad_x, *(t.movedim(0, -1) for t in grads)


def fused_solve(y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    """x and log dx/dy, for the compiler."""
    mixture = _mixture(*_apart(*parameters))

    def in_log_space(*operands: Tensor) -> tuple[Tensor, ...]:
        _, _, _, x, *mixture = operands
        return (*_evaluate_log(x, _Mixture(*mixture)), torch.zeros_like(x))

    def evaluate(x: Tensor, *mixture: Tensor) -> tuple[Tensor, Tensor]:
        y, log_derivative, sums = _evaluate_linear(x, _Mixture(*mixture))
        y, log_derivative, _ = _linear_or_log(in_log_space, y, log_derivative, sums.slope, x, *mixture)
        return y, log_derivative

    x, log_slope = solve_increasing(evaluate, y, *_start(y, mixture), mixture, iterations=_ITERATIONS, compact=False)
    return x, -log_slope


def _linear_or_log(
    in_log_space: Callable[..., tuple[Tensor, ...]],
    y: Tensor,
    log_derivative: Tensor,
    slope: Tensor,
    x: Tensor,
    *operands: Tensor,
) -> tuple[Tensor, ...]:
    """What linear space found, if it holds the digits of every element; else all of them in log space."""
    return torch.cond(
        (slope > 0).all(),
        lambda *operands: _alike(operands[:3]),
        lambda *operands: _alike(in_log_space(*operands)),
        (*_alike((y, log_derivative, slope, x)), *operands),
    )


def _alike(results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copies with the strides of their shapes, which the branches must share; `contiguous` leaves sizes of 1 theirs."""
    return tuple(t.clone(memory_format=torch.contiguous_format) for t in results)


def _apart(logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The parameters with components in front. Nets give all three as views of one tensor, which no branch may take."""
    logits, means, log_scales = (t.movedim(-1, 0) for t in (logits, means, log_scales))
    return _alike((logits - logits.amax(0), means, log_scales))  # type: ignore[return-value]


def _tiles(shape: torch.Size, components: int) -> Iterator[tuple[slice, ...]]:
    """Indices that cut a tensor of this shape into tiles, whole in the last dimensions."""
    room = _TILE * torch.get_num_threads() // components
    cuts: list[list[slice]] = []
    for size in reversed(shape):
        step = max(1, min(size, room))
        cuts.append([slice(start, start + step) for start in range(0, size, step)])
        room //= step
    return itertools.product(*reversed(cuts))


def _mixture_of(tile: tuple[slice, ...], parameters: tuple[Tensor, ...]) -> _Mixture:
    """The mixtures of a tile: the parameters as they lie, unless components lie side by side."""
    views = (t[tile].movedim(-1, 0) for t in parameters)
    logits, means, log_scales = (t.contiguous() if t.stride(0) == 1 else t for t in views)
    return _mixture(logits - logits.amax(0), means, log_scales)


def _mixture(logits: Tensor, means: Tensor, log_scales: Tensor) -> _Mixture:
    """What is computed once, from parameters of shape (K, *S); the largest of the logits is 0."""
    logits = logits * _LOG2_E
    weights = logits.clamp(min=-_CUT[logits.dtype] * _LOG2_E).exp2_()
    rates = _exp_of_minus(log_scales).mul_(_LOG2_E)
    numbers = torch.finfo(logits.dtype)
    negligible = (_floor(logits) * rates.amax(0)).clamp_(min=numbers.tiny / numbers.eps)
    return _Mixture(logits, weights, means, log_scales, rates, negligible)


def _exp_of_minus(x: Tensor) -> Tensor:
    """e^-x within two units in the last place, by exp2: exp may be that of MKL, four times as slow on AMD."""
    if torch.compiler.is_compiling():
        return x.neg().exp()
    octaves = x * -_LOG2_E
    power = octaves.exp2()
    # Minus what rounding took from the octaves: PyTorch adds a multiple in one rounding.
    rest = torch.add(x, octaves, alpha=1 / _LOG2_E)
    return power.addcmul_(power, rest, value=-1)


def _floor(logits: Tensor) -> float:
    """Sums of K terms below this may be off by more than rounding, because each term is off by up to exp(-cut)."""
    return 2 * len(logits) * math.exp(-_CUT[logits.dtype]) / torch.finfo(logits.dtype).eps


def _flat(mixture: _Mixture) -> _Mixture:
    """The mixtures of N elements in one row."""
    return _Mixture(*(t.flatten(1).contiguous() for t in mixture[:-1]), mixture.negligible.flatten())


def _select(mixture: _Mixture, index: Tensor) -> _Mixture:
    return _Mixture(*(t.index_select(-1, index) for t in _flat(mixture)))


def _start(y: Tensor, mixture: _Mixture) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weights = mixture.weights / mixture.weights.sum(0)
    return quantile_bracket(y, weights, mixture.means, _LOG2_E / mixture.rates, dim=0)


def _linear(x: Tensor, mixture: _Mixture) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x - mean, sigmoid(-z) and the terms of F and S, but for a factor; three exponentials with the mixture's two."""
    cut = _CUT[x.dtype] * _LOG2_E
    offset = x - mixture.means
    odds = (offset * mixture.rates).clamp_(-cut, cut).exp2_()
    sigmoid_above = (odds + 1).reciprocal_()
    upper = mixture.weights * sigmoid_above
    lower = odds.mul_(upper)
    return offset, sigmoid_above, lower, upper


def _evaluate_linear(x: Tensor, mixture: _Mixture) -> tuple[Tensor, Tensor, Sums]:
    """y and log dy/dx, right where the sums say so."""
    _, sigmoid_above, lower, upper = _linear(x, mixture)
    below, above, slope = lower.sum(0), upper.sum(0), sigmoid_above.mul_(lower).mul_(mixture.rates).sum(0)
    inside = (torch.minimum(below, above) > _floor(mixture.logits)) & (slope > mixture.negligible)
    slope = slope / _LOG2_E
    y, log_derivative = (below / above).log_(), (slope / below + slope / above).log_()
    return y, log_derivative, Sums(below, above, slope.masked_fill_(~inside, 0))


def _evaluate(x: Tensor, mixture: _Mixture) -> tuple[Tensor, Tensor, Sums]:
    """y and log dy/dx, in linear space where it has the digits."""
    y, log_derivative, sums = _evaluate_linear(x, mixture)
    outside = sums.slope == 0
    count = int(outside.count_nonzero())
    if count > _MANY * outside.numel():
        y, log_derivative = _evaluate_log(x, mixture)
    elif count:
        again = _evaluate_log(x[outside], _select(mixture, _places(outside)))
        y[outside], log_derivative[outside] = again
    return y, log_derivative, sums


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


def _logarithmic(x: Tensor, mixture: _Mixture) -> _Logarithmic:
    cut, limit = _CUT[x.dtype] * _LOG2_E, largest(x.dtype)
    logits, z = mixture.logits, (x - mixture.means).mul_(mixture.rates).clamp_(-limit, limit)
    distance = z.abs()
    smaller = distance.neg().clamp_(min=-cut).exp2_()
    larger = (smaller + 1).reciprocal_()
    smaller.mul_(larger)
    right = z > 0
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
    return _Logarithmic(torch.where(right, larger, smaller), torch.where(right, smaller, larger), *terms, *shifts)


def _evaluate_log(x: Tensor, mixture: _Mixture) -> tuple[Tensor, Tensor]:
    terms = _logarithmic(x, mixture)
    below, above = terms.lower.sum(0), terms.upper.sum(0)
    y = (terms.lower_shift - terms.upper_shift) + (below / above).log_()
    slope = (terms.lower * terms.sigmoid_above).mul_(mixture.rates).sum(0) / below
    slope += (terms.upper * terms.sigmoid_below).mul_(mixture.rates).sum(0) / above
    # in a gap between sharp components no hazard is left, and the logarithms are small enough to be subtracted
    log_density = terms.density_shift + terms.density.sum(0).log_()
    in_gap = log_density + torch.logaddexp(-terms.lower_shift - below.log_(), -terms.upper_shift - above.log_())
    return y, torch.where(slope > mixture.negligible, (slope / _LOG2_E).log(), in_gap)


def _differentiate(
    grad_y: Tensor, grad_log: Tensor, x: Tensor, mixture: _Mixture, sums: Sums, into: tuple[Tensor, ...]
) -> None:
    """Write gradients of grad_y * y + grad_log * log dy/dx, found in linear space where it has the digits."""
    outside = sums.slope == 0
    count = int(outside.count_nonzero())
    if count > _MANY * outside.numel():
        _differentiate_log(grad_y, grad_log, x, mixture, into)
        return
    _differentiate_linear(grad_y, grad_log, x, mixture, sums, into)
    if count:
        again = _differentiate_log(
            grad_y[outside], grad_log[outside], x[outside], _select(mixture, _places(outside))
        )
        for whole, part in zip(into, again, strict=True):
            whole[..., outside] = part


def _differentiate_linear(
    grad_y: Tensor, grad_log: Tensor, x: Tensor, mixture: _Mixture, sums: Sums, into: tuple[Tensor, ...] | None = None
) -> tuple[Tensor, ...]:
    below, above, slope = sums
    on_x, on_logits, on_means, on_log_scales = into or (None,) * 4
    offset, sigmoid_above, lower, upper = _linear(x, mixture)
    sigmoid_above.mul_(mixture.rates)
    density = lower * sigmoid_above
    by_below, by_above, by_slope = (grad_y - grad_log) / below, (grad_y + grad_log) / above, grad_log / slope
    # F + S = 1: below + above is the sum of the weights, and lower + upper each of them
    share = grad_log / (below + above)
    per_density = torch.addcmul(
        (by_below + by_above) / -_LOG2_E, torch.sub(mixture.rates, sigmoid_above, alpha=2), by_slope, value=_LOG2_E**-2
    )
    grad_means = torch.mul(density, per_density, out=on_means)
    on_density = density.mul_(by_slope / _LOG2_E)
    grad_logits = lower.mul_(by_below + share).addcmul_(upper, by_above - share, value=-1)
    grad_logits = torch.add(grad_logits, on_density, out=on_logits)
    grad_log_scales = torch.sub(offset.mul_(grad_means), on_density, out=on_log_scales)
    return torch.neg(grad_means.sum(0), out=on_x), grad_logits, grad_means, grad_log_scales


def _differentiate_log(
    grad_y: Tensor, grad_log: Tensor, x: Tensor, mixture: _Mixture, into: tuple[Tensor, ...] | None = None
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
    grad_logits = torch.addcmul(grad_logits, mixture.weights, grad_log / mixture.weights.sum(0), out=on_logits)
    grad_log_scales = torch.sub((x - mixture.means).mul_(grad_means), on_density, out=on_log_scales)
    return torch.neg(grad_means.sum(0), out=on_x), grad_logits, grad_means, grad_log_scales
