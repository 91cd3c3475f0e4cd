"""One pass without gradients in which parts set themselves from data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowkit.arguments import check_kind, check_tensor
from flowkit.distribution import Distribution, drawn_with
from flowkit.interception import intercepted

__all__ = ["initialize"]


def initialize(
    flow: Distribution, batch: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
) -> None:
    """Run `flow.log_prob(batch)` once; every part with an `initialize_` sets itself just before its first use.

    So each part is initialized on what comes out of parts that are initialized already, in the order of execution
    and in whichever direction it first runs. Dropout is on, as in Flow++; modes and gradients stay as they were. Call
    it once, before `torch.compile`, DDP or FSDP wrap the flow. Per-element norms want a batch of about a hundred.

    A part of your own takes part by a method `initialize_(input)`; a transform's is `initialize_(input, *, inverse)`
    and is told which direction runs.

    Args:
        flow: any distribution, usually a `Flow`.
        batch: (batch, *event).
        context: as for `flow.log_prob`.
        generator: for the noise of a dequantizer.

    Raises:
        TypeError: if `flow` is no distribution, or `batch` no tensor.
        ValueError: if a part would set itself from values that are not finite, or could not be reached.

    Reference:
        Salimans, Kingma, "Weight normalization", 2016, section 3, https://arxiv.org/abs/1602.07868.

    >>> import torch, flowkit as fk
    >>> flow = fk.Flow(fk.ActNorm((2,)), fk.Normal((2,)))
    >>> x = 5 + 3 * torch.randn(1000, 2)
    >>> fk.initialize(flow, x)
    >>> bool(flow.to_latent(x).mean().abs() < 1e-5)
    True
    """
    check_kind("initialize", "flow", flow, Distribution, "a flowkit Distribution, such as a Flow")
    check_tensor("initialize", "batch", batch)
    waiting = {id(module): name for name, module in flow.named_modules() if hasattr(module, "initialize_")}
    modules = [module for module in flow.modules() if id(module) in waiting]
    modes = {module: module.training for module in flow.modules()}

    def before(module: nn.Module, args: tuple[Any, ...], inverse: bool) -> None:
        name = waiting.pop(id(module), None)
        if name is None:
            return
        if not args[0].isfinite().all():
            raise ValueError(f"initialize: {name} would set itself from values that are not finite")
        module.initialize_(args[0], **({"inverse": True} if inverse else {}))  # type: ignore[operator]

    try:
        flow.train()
        with torch.no_grad(), intercepted(modules, before=before):
            flow.log_prob(batch, context, **drawn_with(generator))
    finally:
        for module, mode in modes.items():
            module.training = mode
    if waiting:
        raise ValueError(f"initialize: {next(iter(waiting.values()))} was not reached by log_prob")
    mark_initialized(flow)


def mark_initialized(flow: nn.Module) -> None:
    """Note that the parts of `flow` are set, by data or by loaded weights."""
    flow.__dict__["_initialized"] = True


def is_initialized(flow: nn.Module) -> bool:
    """Whether `mark_initialized` was called of this flow, or of one that it is a copy of."""
    return bool(flow.__dict__.get("_initialized", False))
