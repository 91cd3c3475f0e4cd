"""Which images a step sees: a pure function of the seed and of how many were seen before."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import Sampler

__all__ = ["Order", "order"]


def order(count: int, start: int, length: int, *, seed: int) -> Tensor:
    """Indices of the images at places start, ..., start + length - 1 of an endless shuffled stream.

    Every pass over the `count` images is a permutation of them, drawn from `seed` and the number of the pass. Passes
    follow each other without a gap, so no image is dropped at their ends.

    Args:
        count: images there are.
        start: images seen before.
        length: how many indices.
        seed: of the permutations.

    Returns:
        (length,), int64.

    >>> order(4, 0, 8, seed=0).split(4)[1].sort().values
    tensor([0, 1, 2, 3])
    >>> order(4, 3, 2, seed=0).equal(order(4, 0, 8, seed=0)[3:5])
    True
    """
    parts = []
    while length > 0:
        passes, place = divmod(start, count)
        part = _permutation(count, seed, passes)[place : place + length]
        parts.append(part)
        start, length = start + len(part), length - len(part)
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, passes: int) -> Tensor:
    # Seeds of neighbouring passes and runs must not meet: (seed 0, pass 1) is no (seed 1, pass 0).
    generator = torch.Generator().manual_seed((seed * 1_000_003 + passes) % 2**63)
    return torch.randperm(count, generator=generator)


class Order(Sampler[list[int]]):
    """The batches of one process, without end: a batch sampler for `torch.utils.data.DataLoader`.

    Of every global batch each process takes its own stretch, and of that one part after another if gradients are
    accumulated. So the same images are seen at the same step by any number of processes.

    Args:
        count: images there are.
        batch: images of a step, over all processes and parts.
        start: images seen before.
        seed: of the shuffling.
        rank: number of this process.
        world: how many processes there are.
        parts: into how many a process splits its share of a step.

    Raises:
        ValueError: if a batch does not divide by processes and parts.

    >>> one = Order(10, batch=4, seed=0)
    >>> two = [Order(10, batch=4, seed=0, rank=rank, world=2) for rank in range(2)]
    >>> next(iter(one)) == next(iter(two[0])) + next(iter(two[1]))
    True
    """

    def __init__(
        self, count: int, *, batch: int, seed: int, start: int = 0, rank: int = 0, world: int = 1, parts: int = 1
    ) -> None:
        if batch < 1 or batch % (world * parts):
            raise ValueError(
                f"Order: batch is {batch}, wanted a multiple of {world * parts}: {world} processes times {parts} parts"
            )
        if count < 1:
            raise ValueError("Order: there are no images")
        self.count, self.batch, self.start, self.seed = count, batch, start, seed
        self.rank, self.world, self.parts = rank, world, parts

    def __iter__(self) -> Iterator[list[int]]:
        start, share = self.start, self.batch // self.world
        while True:
            mine = order(self.count, start, self.batch, seed=self.seed)[self.rank * share : (self.rank + 1) * share]
            yield from (part.tolist() for part in mine.chunk(self.parts))
            start += self.batch
