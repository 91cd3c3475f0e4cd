"""The inverse of an increasing function by a safeguarded Newton iteration in a bracket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from flowkit.functional.eager import values_at_hand

__all__ = ["FAR", "Solve", "recorded_solves", "search_compiled", "solve_increasing"]


class Solve(NamedTuple):
    """What one call of a solver did, element by element.

    Attributes:
        iterations: evaluations until the element had converged, all of them if it did not: (N,), int64.
        converged: (N,), bool.
    """

    iterations: Tensor
    converged: Tensor


# At log-scales from -7 to 3 this many leave the mean number of iterations as it is.
FAR = 2.0**12

_record: ContextVar[list[Solve] | None] = ContextVar("record", default=None)


@contextmanager
def recorded_solves() -> Iterator[list[Solve]]:
    """While the context lasts, solvers of this thread append what they did to the list it gives.

    Compiled ones, and those on fake tensors, record nothing. Of nested contexts the inner one records.
    """
    solves: list[Solve] = []
    token = _record.set(solves)
    try:
        yield solves
    finally:
        _record.reset(token)


def solve_increasing(
    function: Callable[..., tuple[Tensor, Tensor]],
    target: Tensor,
    lower: Tensor,
    upper: Tensor,
    start: Tensor,
    resolution: Tensor,
    arguments: tuple[Tensor, ...] = (),
    *,
    iterations: int,
    compact: bool,
) -> tuple[Tensor, Tensor]:
    """Solve `function(x, *arguments)[0] = target` for x, every element on its own.

    A Newton step is taken if it ends strictly inside the bracket and is at most half as long as the step before;
    otherwise the bracket is halved: in the middle, or, where its ends are orders of magnitude apart, in the middle of
    their logarithms. So what a bracket costs grows with the logarithm of its orders of magnitude.

    An element has converged, *and keeps its x*, as soon as one of these holds:

    * its residual is at most 2 eps (1 + abs(target)), or twice that where the steps no longer become shorter;
    * its Newton step is at most eps (abs(x) + resolution);
    * its bracket is at most twice as wide as that.

    (Were the step only tested after it is taken, a converged element would see a step below one unit in the last place,
    find it not strictly inside, and bisect a wide bracket for nothing.)

    Args:
        function: `(x, *arguments) -> (value, log_slope)`, value increasing in x, log_slope = log d value / d x.
        target, lower, upper, start, resolution: shape (N,); lower <= root <= upper up to rounding, start in between,
            resolution > 0 the length below which differences of x around 0 do not matter to the function.
        arguments: per-element arguments of the function, elements last: shape (..., N).
        iterations: the most evaluations an element gets.
        compact: stop when all have converged and drop converged elements on the way. This reads values on the host;
            with `False` exactly `iterations` evaluations are made and any tensor (fake, on a GPU) will do.

    Returns:
        x and the log_slope at this very x, both of shape (N,). No gradient flows: use it inside an autograd.Function.

    Domain: finite target and bracket; upper - lower must not overflow. A log_slope of -inf (flat) is bisected through.
    """
    if torch.compiler.is_compiling() and not compact:
        x, log_slope, *_ = search_compiled(
            function, target, lower, upper, start, resolution, arguments, iterations=iterations
        )
        return x, log_slope
    record = _record.get()
    solve = None if record is None or not values_at_hand(target) else _unsolved(target)
    x, step = start, upper - lower
    # Read once: brackets only become narrower.
    far = not compact or bool(_is_far(lower, upper, resolution).any())
    solution, log_slopes, index = None, None, None  # all elements, and which of them are still at work
    for iteration in range(iterations):
        value, log_slope = function(x, *arguments)
        moved, lower, upper, done = _advance(x, value, log_slope, step, target, lower, upper, resolution, far)
        if solve is not None:
            _count(solve, index, done)
        if iteration == iterations - 1:
            break
        if compact:
            left = int(done.numel() - done.count_nonzero())
            if left == 0:
                break
            if left <= 0.75 * done.numel():
                if solution is None or log_slopes is None or index is None:
                    solution, log_slopes, index = x.clone(), log_slope.clone(), torch.arange(x.numel())
                else:
                    solution[index], log_slopes[index] = x, log_slope
                keep = done.logical_not().nonzero().squeeze(-1)
                x, moved, target, lower, upper, resolution, index = (
                    t.index_select(0, keep) for t in (x, moved, target, lower, upper, resolution, index)
                )
                arguments = tuple(t.index_select(-1, keep) for t in arguments)
        step = (moved - x).abs()
        x = moved
    if record is not None and solve is not None:
        record.append(solve)
    if solution is None or log_slopes is None or index is None:
        return x, log_slope
    solution[index], log_slopes[index] = x, log_slope
    return solution, log_slopes


def _advance(
    x: Tensor,
    value: Tensor,
    log_slope: Tensor,
    step: Tensor,
    target: Tensor,
    lower: Tensor,
    upper: Tensor,
    resolution: Tensor,
    far: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where each element goes next (where it is, if it has converged), its bracket, and which have converged.

    `far`: whether the ends of some bracket may be orders of magnitude apart.
    """
    eps = torch.finfo(target.dtype).eps
    residual = value - target
    newton_step = residual * torch.exp(-log_slope)
    lower = torch.where(residual < 0, x, lower)
    upper = torch.where(residual > 0, x, upper)
    slow = newton_step.abs() > 0.5 * step
    small, close = 2 * eps * (1 + target.abs()), eps * (x.abs() + resolution)
    done = (
        (residual.abs() <= torch.where(slow, 2 * small, small))
        | (newton_step.abs() <= close)
        | (upper - lower <= 2 * close)
    )
    newton = x - newton_step
    take = (newton > lower) & (newton < upper) & ~slow
    middle = lower + 0.5 * (upper - lower)
    if far:
        middle = torch.where(_is_far(lower, upper, resolution), _geometric(lower, upper, resolution), middle)
    moved = torch.where(take, newton, middle)
    return torch.where(done, x, moved), lower, upper, done


def _is_far(lower: Tensor, upper: Tensor, resolution: Tensor) -> Tensor:
    """Whether the ends of a bracket are orders of magnitude apart."""
    return upper - lower > FAR * (torch.minimum(lower.abs(), upper.abs()) + resolution)


def _geometric(lower: Tensor, upper: Tensor, resolution: Tensor) -> Tensor:
    """The middle in the scale sign(x) log(1 + abs(x) / resolution); 0 where the ends have different signs."""
    size = (lower.abs() + resolution).sqrt() * (upper.abs() + resolution).sqrt() - resolution
    return (lower.sign() + upper.sign()).sign() * size


def search_compiled(
    function: Callable[..., tuple[Tensor, Tensor]],
    target: Tensor,
    lower: Tensor,
    upper: Tensor,
    start: Tensor,
    resolution: Tensor,
    arguments: tuple[Tensor, ...],
    *,
    iterations: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The search of `solve_increasing` for the compiler, as one node of the graph: its body is compiled once.

    It ends when all elements have converged, or after so many iterations.

    Args:
        function, target, lower, upper, start, resolution, arguments, iterations: as in `solve_increasing`.

    Returns:
        x, the log_slope at this very x where the element has converged, which have, and their brackets.
    """

    def at_work(count: Tensor, left: Tensor, *_: Tensor) -> Tensor:
        return (count < iterations) & left

    def body(
        count: Tensor,
        left: Tensor,
        x: Tensor,
        _at: Tensor,
        log_slope: Tensor,
        step: Tensor,
        low: Tensor,
        high: Tensor,
        done: Tensor,
    ) -> tuple[Tensor, ...]:
        value, log_slope = function(x, *arguments)
        moved, low, high, done = _advance(x, value, log_slope, step, target, low, high, resolution, far=True)
        return count + 1, ~done.all(), moved, x.clone(), log_slope, (moved - x).abs(), low, high, done

    begin = torch.zeros((), dtype=torch.long, device=target.device)
    nothing, none = torch.zeros_like(start), torch.zeros_like(start, dtype=torch.bool)
    go_on = torch.ones((), dtype=torch.bool, device=target.device)
    state = (begin, go_on, start, start.clone(), nothing, upper - lower, lower, upper, none)
    _, _, _, x, log_slope, _, lower, upper, done = while_loop(at_work, body, state)
    return x, log_slope, done, lower, upper


def _unsolved(target: Tensor) -> Solve:
    return Solve(torch.zeros_like(target, dtype=torch.int64), torch.zeros_like(target, dtype=torch.bool))


def _count(solve: Solve, index: Tensor | None, done: Tensor) -> None:
    """One more evaluation of the elements at `index`, all of them for None: those that had not converged before it."""
    at = slice(None) if index is None else index
    solve.iterations[at] += ~solve.converged[at]
    solve.converged[at] = done
