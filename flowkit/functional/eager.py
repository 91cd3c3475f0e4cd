"""Whether the values of tensors may steer a computation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = ["steered_by_values", "values_at_hand"]


def values_at_hand(*tensors: Tensor) -> bool:
    """Whether values may be looked at: no compiler, no fake or meta tensor, no vmap (whose tensors have no storage)."""
    return not (torch.compiler.is_compiling() or is_in_torch_dispatch_mode()) and all(
        type(t) in (Tensor, Parameter) and t.device.type != "meta" and torch._C._has_storage(t) for t in tensors
    )


def steered_by_values(*tensors: Tensor) -> bool:
    """Whether values may steer a computation cheaply: they are at hand, and there is no device to wait for."""
    return values_at_hand(*tensors) and all(t.device.type == "cpu" for t in tensors)
