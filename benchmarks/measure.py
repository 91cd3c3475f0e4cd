"""Times contestants in turn, with the error of what each computed beside the time.

A cell is one operation at one size. Its contestants run in turn, each round in another order, so that what else the
machine does meets all of them. One thread is timed in CPU time, which a busy machine disturbs little; several threads
are timed by the clock on the wall.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Cell", "Contestant", "Contract", "allocated", "compiled", "measure", "relative"]


@dataclass(frozen=True)
class Contestant:
    """What is timed, and how its result is judged.

    Attributes:
        run: does the work; what it returns is judged once and otherwise thrown away.
        error: how far the result of `run` lies from the truth; None where another row says it.
        tolerance: the largest error that is no mistake; None for the cell's.
        held: what builds the graph of a training step; its memory held for backward is measured.
        examples: in a batch; that memory is for one of them.
    """

    run: Callable[[], Any]
    error: Callable[[Any], float] | None = None
    tolerance: float | None = None
    held: Callable[[], Any] | None = None
    examples: int = 1


@dataclass(frozen=True)
class Cell:
    """One operation at one size, and who takes part in it.

    Attributes:
        name: a row of the table.
        contestants: by the heading of their column. flowkit's begin with "flowkit".
        tolerance: the largest error that is no mistake.
        memory: whether the peak of what is allocated is measured too.
    """

    name: str
    contestants: dict[str, Contestant]
    tolerance: float
    memory: bool = False


@dataclass(frozen=True)
class Contract:
    """How long and how large: what a workload is told.

    Attributes:
        tiny: whether sizes are those of the tests, which only see that everything runs.
        quick: whether what takes many seconds, to run or to compile, is left out where little depends on it.
        seconds: spent on the repetitions of one contestant in one cell.
        repeats: the most repetitions.
        threads: of torch; with one, times are CPU times.
    """

    tiny: bool = False
    quick: bool = False
    seconds: float = 1.0
    repeats: int = 15
    threads: int = 1

    def clock(self) -> float:
        """Now, in seconds."""
        return time.process_time() if self.threads == 1 else time.perf_counter()


@dataclass
class _Runner:
    contestant: Contestant
    times: list[float] = field(default_factory=list)
    wanted: int = 0
    result: dict[str, Any] = field(default_factory=dict)


def measure(cell: Cell, contract: Contract) -> dict[str, Any]:
    """The cell's results: for each contestant times in milliseconds, error, verdict, perhaps memory in bytes."""
    runners = {name: _Runner(contestant) for name, contestant in cell.contestants.items()}
    for runner in runners.values():
        _first_runs(runner, cell, contract)
    shuffle = random.Random(0).shuffle
    while waiting := [runner for runner in runners.values() if len(runner.times) < runner.wanted]:
        shuffle(waiting)  # what ran just before leaves caches behind, and the allocator in some state
        for runner in waiting:
            runner.times.append(_timed(runner.contestant.run, contract))
    return {
        "cell": cell.name,
        "tolerance": cell.tolerance,
        "contestants": {name: runner.result | _quartiles(runner.times) for name, runner in runners.items()},
    }


def _first_runs(runner: _Runner, cell: Cell, contract: Contract) -> None:
    """Judge the first result, measure memory, and find out how often there is time to repeat."""
    contestant, result = runner.contestant, runner.result
    try:
        found = contestant.run()  # compiles, where there is a compiler
        if contestant.error is not None:
            result["error"] = contestant.error(found)
            allowed = cell.tolerance if contestant.tolerance is None else contestant.tolerance
            result["wrong"] = not result["error"] <= allowed  # NaN is wrong too
        del found
        first = _timed(contestant.run, contract)
        if cell.memory:
            result["peak_bytes"] = allocated(contestant.run)[0]
        if contestant.held is not None:
            result["held_bytes"] = allocated(contestant.held)[1] / contestant.examples
    except Exception as problem:  # a library that fails is a result too
        result["failed"] = f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"[:200]
        return
    runner.wanted = max(3, min(contract.repeats, int(contract.seconds / max(first, 1e-6))))
    if first > 2 * contract.seconds:  # so slow that warming up made no difference
        runner.times.append(first)
        runner.wanted = 1 if first > 5 else 2 if contract.quick else 3
    if contract.tiny:
        runner.wanted = 2


def _timed(run: Callable[[], Any], contract: Contract) -> float:
    gc.collect(0)
    start = contract.clock()
    run()
    return contract.clock() - start


def _quartiles(times: Sequence[float]) -> dict[str, Any]:
    if not times:
        return {}
    milliseconds = [1000 * each for each in times]
    low, middle, high = (
        statistics.quantiles(milliseconds, n=4, method="inclusive") if len(times) > 1 else milliseconds * 3
    )
    return {"median_ms": middle, "quartiles_ms": [low, high], "repeats": len(times)}


def allocated(run: Callable[[], Any]) -> tuple[int, int]:
    """The most that torch's allocator held more than before while `run` ran, and what its result holds; in bytes.

    From the allocator's own records (`torch.profiler` with `profile_memory`), so every temporary counts, of compiled
    code too, and nothing else of the process does.
    """
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = run()
    now = peak = 0
    for event in sorted(_allocations(profile), key=lambda each: each.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    del result
    return peak, now


def _allocations(profile: torch.profiler.profile) -> Iterator[Any]:
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            yield event


# What workloads have in common


def relative(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest error, relative for numbers above 1 and absolute below."""
    worst = 0.0
    for one, truth in zip(found, exact, strict=True):
        truth = truth.detach().double()
        error = ((one.detach().double() - truth).abs() / truth.abs().clamp(min=1)).max().item()
        worst = math.nan if math.isnan(error) else max(worst, error)
        if math.isnan(worst):
            break
    return worst


def compiled(function: Callable[..., Any], contract: Contract) -> Callable[..., Any]:
    """`function` by `torch.compile`, in one graph for each size; in the tests of sizes that are tiny, as it is."""
    return function if contract.tiny else torch.compile(function, dynamic=False, fullgraph=True)
