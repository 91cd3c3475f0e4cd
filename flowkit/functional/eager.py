"""How a computation runs: whether the values of its tensors may steer it, and what the compiler may be given."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = [
    "compiled_for_cpu",
    "compiled_in_transform",
    "refuse_compiled_transforms",
    "steered_by_values",
    "values_at_hand",
]


def values_at_hand(*tensors: Tensor) -> bool:
    """Whether values may be looked at: no compiler, no fake or meta tensor, no vmap (whose tensors have no storage)."""
    return not (torch.compiler.is_compiling() or is_in_torch_dispatch_mode()) and all(
        type(t) in (Tensor, Parameter) and t.device.type != "meta" and torch._C._has_storage(t) for t in tensors
    )


def steered_by_values(*tensors: Tensor) -> bool:
    """Whether values may steer a computation cheaply: they are at hand, and there is no device to wait for."""
    return values_at_hand(*tensors) and all(t.device.type == "cpu" for t in tensors)


def compiled_for_cpu(x: Tensor) -> bool:
    """Whether the compiler is at work for a processor that does not wait for a device to take a branch.

    A program of `torch.export` is not meant: it serves on any device and for any number of rows, zero and one included,
    for which the branches of a program do not.
    """
    compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return compiling and x.device.type == "cpu" and not compiled_in_transform()


def compiled_in_transform() -> bool:
    """Whether a transform of `torch.func`, such as vmap or grad, is part of what is compiled.

    The compiler loses the derivatives of operators of our own there, without a word.
    """
    return torch.compiler.is_compiling() and bool(_transforms())


def refuse_compiled_transforms(function: str, *, vmap: bool) -> None:
    """Refuse to be compiled within a gradient of `torch.func`, where an `autograd.Function` may lose its derivatives.

    Args:
        function: who refuses.
        vmap: whether vmap is refused too.

    Raises:
        NotImplementedError: naming the function. Without `fullgraph` the compiler then leaves the code as it is.
    """
    refused = ("Grad", "Jvp", "Vmap") if vmap else ("Grad", "Jvp")
    if torch.compiler.is_compiling() and any(each in refused for each in _transforms()):
        raise NotImplementedError(
            f"{function}: a transform of torch.func was compiled together with it, and the compiler would lose "
            "derivatives; wanted the transform of compiled code, or no compiler"
        )


def _transforms() -> tuple[str, ...]:
    """The transforms of `torch.func` that are at work, such as Vmap and Grad."""
    return tuple(each.key().name for each in torch._C._functorch.get_interpreter_stack() or ())


# The compiler is to ask it, and not to trace it: what `torch.compiler.assume_constant_result` says, at the price of
# importing the compiler.
_transforms._dynamo_marked_constant = True  # type: ignore[attr-defined]
