"""Flow++ as a whole: densities, training steps, samples and memory, beside explicit attention and bisection.

A training step is log_prob in train mode and its backward pass, without the optimizer, which is the same for all.
"""

from __future__ import annotations

import contextlib
import copy
import math
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import flowkit as fk
from benchmarks.measure import Cell, Contestant, Contract
from benchmarks.mix_logistic import log_space, log_space_inverse
from flowkit.nets.gated import GatedBlock

__all__ = ["TITLE", "cells", "explicit"]

TITLE = "Flow++: a small one and the published CIFAR-10 model, 4 images"
SMALL = {"filters": 32, "blocks": 4, "components": 8, "dequant_blocks": 1, "dequant_couplings": 2}
TINY = {"shape": (1, 4, 4), "filters": 8, "blocks": 1, "components": 2, "dequant_blocks": 1, "dequant_couplings": 1}


class PlainMixLogistic(fk.maps.MixLogistic):
    """The map by sums in log space, through which autograd goes as it is, and bisection."""

    _cdf = staticmethod(log_space)
    _cdf_inverse = staticmethod(log_space_inverse)


def _explicit_mix(self: fk.nets.GatedAttention, h: Tensor) -> Tensor:
    """Attention by a product, a softmax and a product."""
    queries, keys, values = h.flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2).unbind(1)
    weights = (queries @ keys.mT / math.sqrt(queries.shape[-1])).softmax(-1)
    return (weights @ values).mT.flatten(1, 2).unflatten(-1, h.shape[2:])


def explicit(flow: fk.Flow) -> fk.Flow:
    """A copy with the same parameters, explicit attention and the plain map: the baseline."""
    flow = copy.deepcopy(flow)
    for part in flow.modules():
        if isinstance(part, fk.nets.GatedAttention):
            part._mix = types.MethodType(_explicit_mix, part)
        if isinstance(part, fk.Coupling) and isinstance(part.map, fk.maps.MixLogistic):
            part.map = PlainMixLogistic(part.map.components)
    return flow


def channels_last(flow: fk.Flow) -> fk.Flow:
    """A copy whose convolutions keep channels together, the layout that bfloat16 is fast in."""
    return copy.deepcopy(flow).to(memory_format=torch.channels_last)


def in_blocks(flow: fk.Flow, contract: Contract) -> fk.Flow:
    """A copy whose blocks and maps are compiled: those of one shape share a graph, the whole would compile for long."""
    flow = channels_last(flow)
    for part in flow.modules():
        if isinstance(part, GatedBlock | fk.maps.MixLogistic) and not contract.tiny:
            part.compile(dynamic=False, fullgraph=True, options={"fallback_random": True})
    return flow


def main_part(flow: fk.Flow, x: Tensor) -> tuple[Tensor, Tensor]:
    """Latent and log-density of values that are dequantized already."""
    term: Any = 0.0
    for name, part in flow.transform.named_children():
        if name != "dequantize":
            x, one = part(x)
            term = term + one.reshape(len(x), -1).sum(-1)
    return x, term + flow.base.log_prob(x)


def main_part_inverse(flow: fk.Flow, z: Tensor) -> Tensor:
    """What the latent was before the flow, dequantized."""
    for name, part in reversed(list(flow.transform.named_children())):
        if name != "dequantize":
            z = part.inverse(z)[0]
    return z


def half() -> contextlib.AbstractContextManager[Any]:
    """Nets in bfloat16."""
    return torch.autocast("cpu", torch.bfloat16)


def train(flow: fk.Flow, x: Tensor, memory: str = "none") -> None:
    """The loss and its gradients."""
    fk.activation_checkpointing(flow, memory)  # type: ignore[arg-type]
    flow.zero_grad(set_to_none=True)
    flow(x).mean().neg().backward()


def cells(contract: Contract) -> Iterator[Cell]:
    """log_prob, training step and sampling; memory of the step as a whole, and of what it keeps for backward."""
    batch = 2 if contract.tiny else 4
    sizes: dict[str, dict[str, Any]] = {"tiny": TINY} if contract.tiny else {"small": SMALL, "cifar10": {}}
    for name, size in sizes.items():
        yield from _size(name, size, batch, contract)


def _size(name: str, size: dict[str, Any], batch: int, contract: Contract) -> Iterator[Cell]:
    torch.manual_seed(0)
    flow = fk.zoo.flowpp(config="cifar10", **size)
    x = torch.randint(256, (batch, *flow.event_shape))
    fk.initialize(flow, x)
    dequantized = (x + torch.rand(x.shape)) / 256
    z = torch.randn(batch, *flow.base.event_shape)
    quick, fast, plain = channels_last(flow), in_blocks(flow, contract), explicit(flow)
    wide = copy.deepcopy(flow).double().eval()
    with torch.no_grad():
        truth = main_part(wide, dequantized.double())[1]
    del wide
    modes: dict[str, tuple[fk.Flow, Callable[[], contextlib.AbstractContextManager[Any]], float | None]] = {
        "flowkit": (flow, contextlib.nullcontext, None),
        "flowkit, bf16": (quick, half, 0.05),
        "flowkit, bf16, compiled": (fast, half, 0.05),
        "explicit": (plain, contextlib.nullcontext, None),
    }
    nats = math.log(2) * dequantized[0].numel()

    def bits(flow: fk.Flow, mode: Callable[..., Any]) -> float:
        """How far the log-density of the main part is off, in bits per dimension."""
        flow.eval()
        with torch.no_grad(), mode():
            return ((main_part(flow, dequantized)[1] - truth).abs().max() / nats).item()

    def density(flow: fk.Flow, mode: Callable[..., Any], tolerance: float | None) -> Contestant:
        def run() -> Tensor:
            flow.eval()
            with torch.no_grad(), mode():
                return flow.log_prob(x)

        return Contestant(run, lambda _: bits(flow, mode), tolerance)

    def sampling(flow: fk.Flow, mode: Callable[..., Any], tolerance: float | None) -> Contestant:
        def run() -> Tensor:
            flow.eval()
            with mode():
                return flow.sample((batch,))

        def round_trip(_: Tensor) -> float:
            with torch.no_grad(), mode():
                return (main_part(flow, main_part_inverse(flow, z))[0] - z).abs().max().item()

        return Contestant(run, round_trip, None if tolerance is None else 1.0)

    def training(flow: fk.Flow, mode: Callable[..., Any], tolerance: float | None, memory: str = "none") -> Contestant:
        def run() -> None:
            flow.train()
            with mode():
                train(flow, x, memory)

        def held() -> Tensor:
            flow.train()
            fk.activation_checkpointing(flow, memory)  # type: ignore[arg-type]
            with mode():
                return flow(x)

        return Contestant(run, lambda _: bits(flow, mode), tolerance, held, examples=batch)

    yield Cell(f"{name}, log_prob", {k: density(*mode) for k, mode in modes.items()}, tolerance=1e-4, memory=True)
    steps = {k: training(*mode) for k, mode in modes.items()}
    for memory in ("layer", "block"):
        steps[f"flowkit, kept by {memory}"] = training(*modes["flowkit"], memory)
    yield Cell(f"{name}, training step", steps, tolerance=1e-4, memory=True)
    yield Cell(f"{name}, sampling", {k: sampling(*mode) for k, mode in modes.items()}, tolerance=1e-2)
