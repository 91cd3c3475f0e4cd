"""Reads what constructors and calls are given."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.errors import DomainError, ShapeError

__all__ = [
    "as_floating",
    "as_shape",
    "batched",
    "broadcasts",
    "check_floating",
    "check_generator",
    "check_kind",
    "check_tensor",
    "count",
    "finite",
    "image_shape",
    "nonlinearity",
    "takes_context",
    "vector_size",
    "whole",
    "widths_of",
]


def whole(value: Any) -> int | None:
    """`value` as an int, if it is a whole number of any library's; None if not."""
    if isinstance(value, torch.SymInt):  # a size that the exporter keeps open, which an int would fix
        return value  # type: ignore[return-value]
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def count(part: str, name: str, value: Any, least: int = 1) -> int:
    """`value` as an int of at least `least`.

    Raises:
        ValueError: if it is none.
    """
    number = whole(value)
    if number is None or number < least:
        raise ValueError(f"{part}: {name} is {value!r}, wanted a whole number of at least {least}")
    return number


def finite(part: str, name: str, value: Any) -> float:
    """`value` as a float.

    Raises:
        ValueError: if it is no number, or not a finite one.
    """
    number = value.item() if isinstance(value, Tensor) and value.ndim == 0 else value
    if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
        raise ValueError(f"{part}: {name} is {value!r}, wanted a finite number")
    return float(number)


def as_floating(owner: str, name: str, value: Any) -> Tensor:
    """`value`, a number, a tensor or numbers in lists, as a tensor; of the default dtype, but for floating tensors.

    Raises:
        TypeError: for what is none of these.
    """
    kept = isinstance(value, Tensor) and value.is_floating_point()
    try:
        return torch.as_tensor(value, dtype=None if kept else torch.get_default_dtype())
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{owner}: {name} is {value!r}, wanted a number or a tensor") from None


def image_shape(part: str, shape: Any) -> tuple[int, int, int]:
    """`shape` as (C, H, W).

    Raises:
        ValueError: if it is none.
    """
    sizes = tuple(whole(size) or 0 for size in shape) if isinstance(shape, Sequence) else ()
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"{part}: shape is {shape}, wanted (C, H, W), three whole numbers above 0")
    return sizes[0], sizes[1], sizes[2]


def vector_size(part: str, context_shape: int | Sequence[int] | None) -> int:
    """The size of a context vector, a whole number or (size,); 0 for none.

    Raises:
        ValueError: for a context that is no vector.
    """
    if context_shape is None:
        return 0
    if not isinstance(context_shape, Sequence):
        return count(part, "context_shape", context_shape)
    if len(context_shape) != 1:
        raise ValueError(f"{part}: context_shape is {tuple(context_shape)}, wanted (size,), or None")
    return count(part, "context_shape", context_shape[0])


def widths_of(part: str, hidden: int | Sequence[int]) -> list[int]:
    """The widths of hidden layers; a whole number stands for one layer.

    Raises:
        ValueError: if one is no whole number of at least 1.
    """
    several = isinstance(hidden, Sequence) and not isinstance(hidden, str)
    return [count(part, "hidden", width) for width in (hidden if several else [hidden])]  # type: ignore[union-attr]


def nonlinearity(part: str, activation: Callable[[], nn.Module]) -> nn.Module:
    """What `activation` makes.

    Raises:
        TypeError: for a function of tensors, or a module, where a class is wanted.
    """
    try:
        made: Any = activation()
    except TypeError:
        made = None
    if not isinstance(made, nn.Module):
        raise TypeError(f"{part}: activation is {activation!r}, wanted a class of modules, such as torch.nn.SiLU")
    return made


def takes_context(part: str, name: str, net: Any) -> bool:
    """Whether `net(value, context)` is a call that the network takes; if not, `net(value)` is.

    Raises:
        TypeError: for what is no network: no function, a class of networks, one of no argument or of more.
    """
    if not callable(net) or isinstance(net, type):
        came = f"the class {net.__name__}" if isinstance(net, type) else f"a {type(net).__name__}"
        raise TypeError(f"{part}: {name} is {came}, wanted a network: {name}(value, context) or {name}(value)")
    try:
        inner = getattr(net, "_orig_mod", net)  # of a compiled one, which takes anything itself
        signature = inspect.signature(inner.forward if isinstance(inner, nn.Module) else inner)
    except (TypeError, ValueError):  # compiled code, which may not tell
        return True
    for arguments in ((None, None), (None,)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return len(arguments) == 2
    raise TypeError(f"{part}: {name} takes {signature}, wanted a network: {name}(value, context) or {name}(value)")


def check_kind(owner: str, name: str, value: Any, kind: type, wanted: str) -> None:
    """Refuse a `value` of another kind.

    Raises:
        TypeError: naming its class, and what was wanted.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{owner}: {name} is a {type(value).__name__}, wanted {wanted}")


def check_generator(generator: Any) -> None:
    """Refuse what is no generator, such as a seed.

    Raises:
        TypeError: naming its class.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator is a {type(generator).__name__}, wanted a torch.Generator: torch.Generator().manual_seed(0)"
        )


def batched(shape: Sequence[int]) -> str:
    """An event shape with its batch dims, for messages."""
    return f"({', '.join(['*batch', *map(str, shape)])})"


def broadcasts(shape: Sequence[int], batch: Sequence[int]) -> bool:
    """Whether `shape` expands to `batch`."""
    pairs = zip(reversed(shape), reversed(batch), strict=False)
    return len(shape) <= len(batch) and all(own in (size, 1) for own, size in pairs)


def check_tensor(owner: str, name: str, value: Any) -> None:
    """Refuse what is no tensor.

    Raises:
        TypeError: for an array, a list or a number.
    """
    if not isinstance(value, Tensor):
        kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
        raise TypeError(f"{owner}: {name} is a {kind}, wanted a torch.Tensor")


def check_floating(owner: str, name: str, value: Tensor) -> None:
    """Refuse a tensor that is not floating, where a density is one of real numbers.

    Raises:
        DomainError: for integers, booleans and complex numbers.
    """
    if not value.is_floating_point():
        raise DomainError(f"{owner}: {name} is {value.dtype}, wanted a floating dtype")


def as_shape(value: int | Sequence[int], name: str = "sample_shape") -> torch.Size:
    """`value` as a size; a whole number stands for one dim.

    Args:
        value: whole numbers of at least 0, or one of them.
        name: what the value is, for the error: the part and its argument.

    Raises:
        ShapeError: for anything else.
    """
    if isinstance(value, torch.Size) and not any(type(size) is int and size < 0 for size in value):
        return value
    # A string is a sequence too, but not of whole numbers.
    sizes = [whole(size) for size in value] if isinstance(value, Sequence) else [whole(value)]
    if any(size is None or size < 0 for size in sizes):
        raise ShapeError(f"{name} is {value!r}, wanted whole numbers of at least 0, or one")
    return torch.Size(sizes)  # type: ignore[arg-type]
