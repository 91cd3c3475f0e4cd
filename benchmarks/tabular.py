"""Fits a real table by neural spline flows, in flowkit, zuko and nflows at the same size, budget and splits.

    python -m benchmarks.tabular            # prints the table
    python -m benchmarks.tabular --write    # and puts it into docs/densities.md
    python -m benchmarks.tabular --quick    # a few steps, to see that it runs

The table is the breast cancer data that scikit-learn ships: 569 tumours, 30 real features (Wolberg, Mangasarian,
Street, Street, "Breast Cancer Wisconsin (Diagnostic)", UCI repository, 1993, CC BY 4.0). In each split, 60 % train,
20 % tell when to stop and 20 % are held out; features are standardized by the first. All libraries see the same
batches. The parameters that did best on the second part are scored on the third.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import fitting, models, page

FEATURES, TRANSFORMS, HIDDEN, BINS, BOUND = 30, 2, (64, 64), 8, 5.0
LIBRARIES: dict[str, Callable[[], models.Model]] = {
    "flowkit": lambda: models.flowkit_nsf(FEATURES, TRANSFORMS, HIDDEN, BINS, BOUND),
    "zuko": lambda: models.zuko_model("NSF", FEATURES, TRANSFORMS, HIDDEN, bins=BINS),
    "nflows": lambda: models.nflows_nsf(FEATURES, TRANSFORMS, HIDDEN, BINS, BOUND),
}
BATCH, LEARNING_RATE, EVERY = 64, 1e-3, 10


class Fit(NamedTuple):
    """How one fit went."""

    log_prob: float
    step: int
    seconds: float
    parameters: int


def parts(split: int) -> list[Tensor]:
    """Rows to train on, to stop by and held out, standardized by the first."""
    from sklearn.datasets import load_breast_cancer

    x = torch.from_numpy(load_breast_cancer().data).double()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(split))
    train, stop, held_out = x[order].split([341, 114, 114])
    return [((part - train.mean(0)) / train.std(0)).float() for part in (train, stop, held_out)]


def shuffled(x: Tensor, seed: int) -> Iterator[Tensor]:
    """Batches without end, a new order in each epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from x[torch.randperm(len(x), generator=generator)].split(BATCH)[: len(x) // BATCH]


def fit(task: tuple[str, int], steps: int) -> Fit:
    """One library on one split."""
    torch.set_num_threads(1)
    library, split = task
    train, stop, held_out = parts(split)
    torch.manual_seed(split)
    flow = LIBRARIES[library]()
    best, best_step, kept = -math.inf, 0, flow.module.state_dict()
    start = time.process_time()
    for step in fitting.optimize(flow, shuffled(train, split), steps, LEARNING_RATE):
        if step % EVERY == 0:
            with torch.no_grad():
                reached = flow.log_prob(stop).mean().item()
            if reached > best:
                best, best_step, kept = reached, step, copy.deepcopy(flow.module.state_dict())
    seconds = time.process_time() - start
    flow.module.load_state_dict(kept)
    with torch.no_grad():
        return Fit(flow.log_prob(held_out).double().mean().item(), best_step, seconds, flow.parameters)


def main() -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="put the table into the docs")
    parser.add_argument("--quick", action="store_true", help="20 steps and 2 splits")
    options = parser.parse_args()
    steps, splits = (20, range(2)) if options.quick else (options.steps, range(options.splits))

    tasks = list(itertools.product(LIBRARIES, splits))
    with ProcessPoolExecutor(options.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        fits = dict(zip(tasks, pool.map(fit, tasks, itertools.repeat(steps)), strict=True))

    def row(library: str) -> tuple[str, ...]:
        each = [fits[library, split] for split in splits]
        lead = [fits["flowkit", split].log_prob - fits[library, split].log_prob for split in splits]
        return (
            library,
            f"{each[0].parameters:,}",
            fitting.mean_and_error([fit.log_prob for fit in each]),
            "" if library == "flowkit" else fitting.mean_and_error(lead),
            f"{statistics.median(fit.step for fit in each):.0f}",
            f"{statistics.median(fit.seconds for fit in each):.1f}",
        )

    columns = ["library", "parameters", "held out, nats", "flowkit's lead", "best step", "seconds"]
    table = page.table(columns, map(row, LIBRARIES))
    print(table)
    if options.write:
        page.write_between_marks(page.DOCS / "densities.md", "tabular", table)


if __name__ == "__main__":
    main()
