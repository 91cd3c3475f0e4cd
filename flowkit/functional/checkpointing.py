"""Running a function again in the backward pass, in place of keeping what it computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpointed"]

Result = TypeVar("Result")


def checkpointed(again: bool, function: Callable[..., Result], *args: Any) -> Result:
    """`function(*args)`; if `again`, its backward pass keeps the arguments alone and runs it a second time.

    Values and gradients are the same to the bit, dropout included.
    """
    if again and torch.is_grad_enabled():
        return checkpoint(function, *args, use_reentrant=False)
    return function(*args)
