"""How a training step of Flow++ grows, in time and memory, with depth, components, side of the images and batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import flowkit as fk
from benchmarks.flowpp import explicit, train
from benchmarks.measure import Cell, Contestant, Contract, relative

__all__ = ["TITLE", "cells"]

TITLE = "Growth of a training step: from 2 couplings, 8 components, images of 16 × 16, a batch of 4"
STANDARD = {"couplings": 2, "components": 8, "side": 16, "batch": 4}
GROWN = {"couplings": (4, 8), "components": (16, 32), "side": (8, 32), "batch": (8, 16)}


def flow_of(couplings: int, components: int, side: int) -> fk.Flow:
    """A small Flow++ with a uniform dequantizer."""
    return fk.zoo.flowpp(
        shape=(3, side, side),
        filters=32,
        blocks=2,
        components=components,
        layout=(("columns", couplings),),
        variational=False,
        dropout=0.0,
    )


def cells(contract: Contract) -> Iterator[Cell]:
    """One size changed at a time."""
    sizes: list[dict[str, int]] = [STANDARD]
    sizes += [{**STANDARD, name: value} for name, values in GROWN.items() for value in values]
    if contract.tiny:
        sizes = [{"couplings": 1, "components": 2, "side": 4, "batch": 2}]
    for size in sizes:
        changed = [f"{name} {value}" for name, value in size.items() if value != STANDARD[name]]
        yield _cell(", ".join(changed) or "standard", **size)


def _cell(name: str, couplings: int, components: int, side: int, batch: int) -> Cell:
    torch.manual_seed(0)
    flow = flow_of(couplings, components, side)
    x = torch.randint(256, (batch, 3, side, side))
    fk.initialize(flow, x)
    generator = torch.Generator()

    plain = explicit(flow)

    def contestant(flow: fk.Flow) -> Contestant:
        def error(_: None) -> float:
            """From the other one, for the same noise."""
            with torch.no_grad():
                one, other = (each.log_prob(x, generator=generator.manual_seed(0)) for each in (flow, plain))
            return relative((one,), (other,))

        return Contestant(lambda: train(flow, x), error, held=lambda: flow(x), examples=batch)

    return Cell(name, {"flowkit": contestant(flow), "explicit": contestant(plain)}, tolerance=1e-4, memory=True)
