"""What the benchmarks of fits share: one loop, and what it came to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.models import Model


def optimize(model: Model, batches: Iterable[Tensor], steps: int, learning_rate: float) -> Iterator[int]:
    """Maximize the mean log-likelihood by Adam, its rate falling to 0 as a cosine; yields after each step."""
    adam = torch.optim.Adam(model.module.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for step, batch in zip(range(1, steps + 1), batches, strict=False):
        adam.zero_grad(set_to_none=True)
        (-model.log_prob(batch).mean()).backward()
        adam.step()
        schedule.step()
        yield step


def mean_and_error(values: Sequence[float]) -> str:
    """The mean and its standard error."""
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}"
