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
_TILE = 98304  # components per tile and thread: few enough to stay in the cache, enough to make up for 50 calls
_CUT = {torch.float32: 60.0, torch.float64: 600.0}  # exp(-cut) is a normal number: denormal ones take 100 times as long


class _Mixture(NamedTuple):
    """What is computed once for many elements: shape (K, *S), and (*S) for the last."""

    logits: Tensor  # the largest is 0
    weights: Tensor  # exp(logits)
    means: Tensor
    log_scales: Tensor
    rates: Tensor  # exp(-log_scales)
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
        here, mixture = x[tile], _mixture_of(tile, parameters)
        found = _evaluate(here.reshape(-1), mixture)
        for whole, part in zip((y, log_derivative, *sums), (*found[:2], *found[2]), strict=True):
            whole[tile] = part.view(here.shape)
    return y, log_derivative, sums


def tiled_backward(
    grad_y: Tensor, grad_log: Tensor, sums: Sums, x: Tensor, *parameters: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and of the parameters, tile by tile."""
    grads = tuple(torch.empty_like(t) for t in (x, *parameters))
    for tile in _tiles(x.shape, parameters[0].shape[-1]):
        mixture = _mixture_of(tile, parameters)
        on_y, on_log, here, *of_tile = (t[tile].reshape(-1) for t in (grad_y, grad_log, x, *sums))
        grad_x, *parts = _differentiate(on_y, on_log, here, mixture, Sums(*of_tile))
        grads[0][tile] = grad_x.view(x[tile].shape)
        for whole, part in zip(grads[1:], parts, strict=True):
            whole[tile].movedim(-1, 0).copy_(part.view(-1, *x[tile].shape))
    return grads  # type: ignore[return-value]


def tiled_solve(y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    """x and log dx/dy, tile by tile; what has converged is dropped on the way."""
    x, log_derivative = torch.empty_like(y), torch.empty_like(y)
    for tile in _tiles(y.shape, parameters[0].shape[-1]):
        here, mixture = y[tile], _mixture_of(tile, parameters)
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
    """The mixtures of the N elements of a tile."""
    logits, means, log_scales = (t[tile].movedim(-1, 0).reshape(t.shape[-1], -1).contiguous() for t in parameters)
    return _mixture(logits - logits.amax(0), means, log_scales)


def _mixture(logits: Tensor, means: Tensor, log_scales: Tensor) -> _Mixture:
    """What is computed once, from parameters of shape (K, *S); the largest of the logits is 0."""
    weights = logits.clamp(min=-_CUT[logits.dtype]).exp_()
    rates = log_scales.neg().exp_()
    numbers = torch.finfo(logits.dtype)
    negligible = (_floor(logits) * rates.amax(0)).clamp_(min=numbers.tiny / numbers.eps)
    return _Mixture(logits, weights, means, log_scales, rates, negligible)


def _floor(logits: Tensor) -> float:
    """Sums of K terms below this may be off by more than rounding, because each term is off by up to exp(-cut)."""
    return 2 * len(logits) * math.exp(-_CUT[logits.dtype]) / torch.finfo(logits.dtype).eps


def _select(mixture: _Mixture, index: Tensor) -> _Mixture:
    return _Mixture(*(t.index_select(-1, index) for t in mixture))


def _start(y: Tensor, mixture: _Mixture) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weights = mixture.weights / mixture.weights.sum(0)
    return quantile_bracket(y, weights, mixture.means, mixture.log_scales.exp(), dim=0)


def _linear(x: Tensor, mixture: _Mixture) -> tuple[Tensor, Tensor, Tensor]:
    """sigmoid(-z) and the terms of F and S, but for a factor; three exponentials with the mixture's own two."""
    cut = _CUT[x.dtype]
    odds = (x - mixture.means).mul_(mixture.rates).clamp_(-cut, cut).exp_()
    sigmoid_above = (odds + 1).reciprocal_()
    upper = mixture.weights * sigmoid_above
    lower = odds.mul_(upper)
    return sigmoid_above, lower, upper


def _evaluate_linear(x: Tensor, mixture: _Mixture) -> tuple[Tensor, Tensor, Sums]:
    """y and log dy/dx, right where the sums say so."""
    sigmoid_above, lower, upper = _linear(x, mixture)
    below, above, slope = lower.sum(0), upper.sum(0), sigmoid_above.mul_(lower).mul_(mixture.rates).sum(0)
    y, log_derivative = (below / above).log_(), (slope / below + slope / above).log_()
    inside = (torch.minimum(below, above) > _floor(mixture.logits)) & (slope > mixture.negligible)
    return y, log_derivative, Sums(below, above, slope.masked_fill_(~inside, 0))


def _evaluate(x: Tensor, mixture: _Mixture) -> tuple[Tensor, Tensor, Sums]:
    """y and log dy/dx of N elements, in linear space where it has the digits."""
    y, log_derivative, sums = _evaluate_linear(x, mixture)
    outside = _outside(sums)
    if len(outside):
        again = _evaluate_log(x[outside], _select(mixture, outside))
        y, log_derivative = y.index_copy_(0, outside, again[0]), log_derivative.index_copy_(0, outside, again[1])
    return y, log_derivative, sums


def _outside(sums: Sums) -> Tensor:
    """Indices of the elements whose digits linear space does not hold."""
    return (sums.slope == 0).nonzero().squeeze(-1)


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
    cut, limit = _CUT[x.dtype], largest(x.dtype)
    z = (x - mixture.means).mul_(mixture.rates).clamp_(-limit, limit)
    distance = z.abs()
    smaller = distance.neg().clamp_(min=-cut).exp_()
    larger = (smaller + 1).reciprocal_()
    smaller.mul_(larger)
    right = z > 0
    terms, shifts = [], []
    for exponents, power in (
        (mixture.logits + z.clamp(max=0), 1),
        (mixture.logits - z.clamp_(min=0), 1),
        ((mixture.logits - mixture.log_scales).sub_(distance), 2),
    ):
        shift = exponents.amax(0)
        term = exponents.sub_(shift).clamp_(min=-cut).exp_()
        for _ in range(power):
            term.mul_(larger)
        terms.append(term)
        shifts.append(shift)
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
    return y, torch.where(slope > mixture.negligible, slope.log(), in_gap)


def _differentiate(grad_y: Tensor, grad_log: Tensor, x: Tensor, mixture: _Mixture, sums: Sums) -> tuple[Tensor, ...]:
    """Gradients of grad_y * y + grad_log * log dy/dx for N elements, in linear space where it has the digits."""
    grads = _differentiate_linear(grad_y, grad_log, x, mixture, sums)
    outside = _outside(sums)
    if len(outside):
        again = _differentiate_log(grad_y[outside], grad_log[outside], x[outside], _select(mixture, outside))
        for whole, part in zip(grads, again, strict=True):
            whole.index_copy_(-1, outside, part)
    return grads


def _differentiate_linear(
    grad_y: Tensor, grad_log: Tensor, x: Tensor, mixture: _Mixture, sums: Sums
) -> tuple[Tensor, ...]:
    below, above, slope = sums
    sigmoid_above, lower, upper = _linear(x, mixture)
    sigmoid_above.mul_(mixture.rates)
    density = lower * sigmoid_above
    by_below, by_above = (grad_y - grad_log) / below, (grad_y + grad_log) / above
    on_density = density * (grad_log / slope)
    grad_x = density.mul_(by_below + by_above)
    grad_x.addcmul_(on_density, sigmoid_above.mul_(2).sub_(mixture.rates))
    # F + S = 1: below + above is the sum of the weights
    share = grad_log / (below + above)
    return _collect(grad_x, on_density, lower.mul_(by_below), upper.mul_(by_above), share, x, mixture)


def _differentiate_log(grad_y: Tensor, grad_log: Tensor, x: Tensor, mixture: _Mixture) -> tuple[Tensor, ...]:
    terms = _logarithmic(x, mixture)
    on_lower = terms.lower.mul_((grad_y - grad_log) / terms.lower.sum(0))
    on_upper = terms.upper.mul_((grad_y + grad_log) / terms.upper.sum(0))
    on_density = terms.density.mul_(grad_log / terms.density.sum(0))
    grad_x = (on_lower + on_density).mul_(terms.sigmoid_above)
    grad_x.addcmul_(on_upper - on_density, terms.sigmoid_below).mul_(mixture.rates)
    return _collect(grad_x, on_density, on_lower, on_upper, grad_log / mixture.weights.sum(0), x, mixture)


def _collect(
    grad_x: Tensor, on_density: Tensor, on_lower: Tensor, on_upper: Tensor, share: Tensor, x: Tensor, mixture: _Mixture
) -> tuple[Tensor, ...]:
    """Gradients of x, logits, means and log_scales from the components' shares of them; overwrites its arguments."""
    grad_logits = on_lower.sub_(on_upper).add_(on_density).addcmul_(mixture.weights, share)
    grad_log_scales = (x - mixture.means).mul_(grad_x).add_(on_density).neg_()
    return grad_x.sum(0), grad_logits, grad_x.neg_(), grad_log_scales
