"""The mixture-of-logistics CDF for the compiler, on a CPU: in linear space, in one pass over the components.

The compiler makes a kernel of each such pass. What follows depends on values, and is an operator that it calls: to do
again in log space the elements that linear space does not hold, and to finish the searches of the inverse that took
long. Where there is nothing to do it costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.library import custom_op

from flowkit.functional.logistic_linear import (
    Mixture,
    Sums,
    differentiate_linear,
    evaluate_linear,
    gradients_of,
    mend,
    mend_gradients,
    mixture_from,
    mixture_of,
    solve_flat,
    start_of,
    tiles,
)
from flowkit.functional.rootfind import search_compiled

__all__ = ["fused_backward", "fused_forward", "fused_solve"]

_ITERATIONS = 12  # of all elements, before the search goes on with those that it has left


def fused_forward(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Sums]:
    """y, log dy/dx and the sums."""
    y, log_derivative, sums = evaluate_linear(x, mixture_from(*_in_front(parameters)))
    return *_mended(y, log_derivative, sums.slope, x, list(parameters)), sums


def fused_backward(
    grad_y: Tensor, grad_log: Tensor, sums: Sums, x: Tensor, *parameters: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and of the parameters."""
    grad_x, *grads = differentiate_linear(grad_y, grad_log, x, mixture_from(*_in_front(parameters)), sums)
    grads = [t.movedim(0, -1) for t in grads]
    _mend_gradients(grad_x, grads, grad_y, grad_log, sums.slope, x, list(parameters))
    return grad_x, *grads  # type: ignore[return-value]


def fused_solve(y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    """x and log dx/dy."""
    mixture = mixture_from(*_in_front(parameters))

    def evaluate(x: Tensor, *mixture: Tensor) -> tuple[Tensor, Tensor]:
        value, log_slope, sums = evaluate_linear(x, Mixture(*mixture))
        # Comparisons with NaN are false: such an element does not converge, and its bracket stays.
        return torch.where(sums.slope > 0, value, torch.nan), log_slope

    lower, upper, start, resolution = start_of(y, mixture)
    x, log_slope, done, lower, upper = search_compiled(
        evaluate, y, lower, upper, start, resolution, mixture, iterations=_ITERATIONS
    )
    x, log_slope = _finish(x, log_slope, done, y, lower, upper, resolution, list(parameters))
    return x, -log_slope


def _in_front(parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(t.movedim(-1, 0) for t in parameters)  # type: ignore[return-value]


@custom_op(
    "flowkit::mix_logistic_mended",
    mutates_args=(),
    schema="(Tensor y, Tensor log_derivative, Tensor slope, Tensor x, Tensor[] parameters) -> (Tensor, Tensor)",
)
def _mended(
    y: Tensor, log_derivative: Tensor, slope: Tensor, x: Tensor, parameters: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """y and log dy/dx, in log space where `slope` is 0."""
    y, log_derivative = y.clone(), log_derivative.clone()
    for tile, outside, count in _tiles_with(slope == 0, parameters):
        found = y[tile], log_derivative[tile]
        mended = mend(outside, count, *found, x[tile], mixture_of(tile, parameters))
        for whole, part in zip(found, mended, strict=True):
            whole.copy_(part)
    return y, log_derivative


@custom_op(
    "flowkit::mix_logistic_mend_gradients",
    mutates_args=("grad_x", "grad_parameters"),
    schema="(Tensor(a!) grad_x, Tensor(b!)[] grad_parameters, Tensor grad_y, Tensor grad_log, Tensor slope, Tensor x, "
    "Tensor[] parameters) -> ()",
)
def _mend_gradients(
    grad_x: Tensor,
    grad_parameters: Sequence[Tensor],
    grad_y: Tensor,
    grad_log: Tensor,
    slope: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor],
) -> None:
    """Overwrite gradients by those of log space where `slope` is 0."""
    for tile, outside, count in _tiles_with(slope == 0, parameters):
        into = gradients_of(tile, (grad_x, *grad_parameters))
        mixture = mixture_of(tile, parameters)
        mend_gradients(outside, count, into, grad_y[tile], grad_log[tile], x[tile], mixture)


@custom_op(
    "flowkit::mix_logistic_finish",
    mutates_args=(),
    schema="(Tensor x, Tensor log_slope, Tensor done, Tensor y, Tensor lower, Tensor upper, Tensor resolution, "
    "Tensor[] parameters) -> (Tensor, Tensor)",
)
def _finish(
    x: Tensor,
    log_slope: Tensor,
    done: Tensor,
    y: Tensor,
    lower: Tensor,
    upper: Tensor,
    resolution: Tensor,
    parameters: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """x and log dy/dx, after the searches that are not done have gone on from where they are."""
    x, log_slope = x.clone(), log_slope.clone()
    for tile, left, _ in _tiles_with(~done, parameters):
        target, low, high, start, unit = (t[tile][left] for t in (y, lower, upper, x, resolution))
        mixture = mixture_from(*(t[tile][left].T.contiguous() for t in parameters))
        x[tile][left], log_slope[tile][left] = solve_flat(target, low, high, start, unit, mixture)
    return x, log_slope


@_mended.register_fake
def _(y: Tensor, log_derivative: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(y), torch.empty_like(log_derivative)


@_finish.register_fake
def _(x: Tensor, log_slope: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(log_slope)


def _tiles_with(chosen: Tensor, parameters: Sequence[Tensor]) -> Iterator[tuple[tuple[slice, ...], Tensor, int]]:
    """The tiles in which some elements are chosen, which these are, and how many."""
    if not chosen.any():
        return
    for tile in tiles(chosen.shape, parameters[0].shape[-1]):
        count = int(chosen[tile].count_nonzero())
        if count:
            yield tile, chosen[tile], count
