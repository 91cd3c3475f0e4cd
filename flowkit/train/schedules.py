"""Learning rates as pure functions of the step: nothing to save, nothing that restarts."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["SCHEDULES", "Schedule", "constant", "cosine", "exponential", "linear", "warmed_up"]

# From the step, counted from 0, to the learning rate.
Schedule = Callable[[int], float]


def constant(rate: float) -> Schedule:
    """`rate` at every step: Flow++ on CIFAR-10.

    >>> constant(3e-4)(1_000_000)
    0.0003
    """
    return lambda step: rate


def linear(rate: float, *, steps: int, hold: int = 0, floor: float = 0.0) -> Schedule:
    """`rate` for `hold` steps, then on a line to 0 at `steps`, never below `floor`.

    >>> rates = linear(1.0, steps=100, hold=50)
    >>> rates(0), rates(50), rates(75), rates(100)
    (1.0, 1.0, 0.5, 0.0)
    """
    return lambda step: max(rate * (1 - _done(step, steps, hold)), floor)


def cosine(rate: float, *, steps: int, hold: int = 0, floor: float = 0.0) -> Schedule:
    """`rate` for `hold` steps, then down half a cosine to 0 at `steps`, never below `floor`.

    Reference:
        Loshchilov, Hutter, "SGDR", 2017, https://arxiv.org/abs/1608.03983.

    >>> rates = cosine(1.0, steps=100)
    >>> rates(0), round(rates(50), 6), rates(100)
    (1.0, 0.5, 0.0)
    """
    return lambda step: max(rate * (1 + math.cos(math.pi * _done(step, steps, hold))) / 2, floor)


def exponential(rate: float, *, hold: int, decay: float, floor: float) -> Schedule:
    """`rate` for `hold` steps, then times `decay` at every step, never below `floor`: Flow++ on ImageNet.

    >>> rates = exponential(1e-3, hold=50_000, decay=0.99995, floor=3e-4)
    >>> rates(50_000), round(rates(60_000), 7), rates(1_000_000)
    (0.001, 0.0006065, 0.0003)
    """
    return lambda step: max(rate * decay ** max(0, step - hold), floor)


def warmed_up(schedule: Schedule, warmup: int) -> Schedule:
    """The schedule times (step + 1) / warmup for the first `warmup` steps. No step is taken with a rate of 0.

    >>> rates = warmed_up(constant(1.0), warmup=4)
    >>> [rates(step) for step in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """
    return lambda step: schedule(step) * min((step + 1) / max(warmup, 1), 1.0)


def _done(step: int, steps: int, hold: int) -> float:
    """How much of the way from `hold` to `steps` is behind, from 0 to 1."""
    return min(max(0, step - hold) / max(steps - hold, 1), 1.0)


SCHEDULES = ("constant", "linear", "cosine", "exponential")
