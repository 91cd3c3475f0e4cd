"""Which dtype log-terms have, and where mixed precision must not reach."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["full_precision", "log_term_dtype"]


def log_term_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a log-term that belongs to values of `dtype`: float32 or better."""
    return torch.promote_types(dtype, torch.float32)


def full_precision(device_type: str) -> AbstractContextManager[object]:
    """A context without autocast: for a product of a map itself, which rounding would change."""
    # torch before 2.9 traces no question for autocast; what is compiled runs on a device that has it.
    if not torch.compiler.is_compiling() and not torch.amp.is_autocast_available(device_type):  # the meta device
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
