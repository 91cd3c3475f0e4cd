"""Reads what constructors and calls are given."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkit.errors import DomainError, ShapeError

__all__ = ["as_shape", "check_floating", "check_tensor", "count", "image_shape", "vector_size", "whole"]


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


def image_shape(part: str, shape: Any) -> tuple[int, int, int]:
    """`shape` as (C, H, W).

    Raises:
        ValueError: if it is none.
    """
    sizes = tuple(whole(size) or 0 for size in shape) if isinstance(shape, Sequence) else ()
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"{part}: shape is {shape}, wanted (C, H, W), three whole numbers above 0")
    return sizes[0], sizes[1], sizes[2]


def vector_size(part: str, context_shape: Sequence[int] | None) -> int:
    """The size of a context vector; 0 for none.

    Raises:
        ValueError: for a context that is no vector.
    """
    if context_shape is None:
        return 0
    if len(context_shape) != 1:
        raise ValueError(f"{part}: context_shape is {tuple(context_shape)}, wanted (size,), or None")
    return count(part, "context_shape", context_shape[0])


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
    if isinstance(value, torch.Size):
        return value
    one = whole(value)
    # A string is a sequence too, but not of whole numbers.
    sizes = [one] if one is not None or not isinstance(value, Sequence) else [whole(size) for size in value]
    if any(size is None or size < 0 for size in sizes):
        raise ShapeError(f"{name} is {value!r}, wanted whole numbers of at least 0, or one")
    return torch.Size(sizes)  # type: ignore[arg-type]
