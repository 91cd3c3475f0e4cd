"""Sums over event dims, and the one batch dim that networks want."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

__all__ = ["flatten_batch", "sum_rightmost"]


def sum_rightmost(value: Tensor, dims: int) -> Tensor:
    """Sum over the `dims` rightmost dims; none for `dims=0`.

    Shapes:
        value: (*batch, *event of `dims` dims); the sum: (*batch).
    """
    return value.sum(tuple(range(-dims, 0))) if dims else value


def flatten_batch(net: Callable[[Tensor], Tensor], value: Tensor, event_ndim: int) -> Tensor:
    """`net(value)` for a network that wants exactly one batch dim, with any number of them (none, several, empty).

    Args:
        net: takes (batch, *event of `event_ndim` dims), returns (batch, *anything).
        value: (*batch, *event).

    Returns:
        (*batch, *anything).
    """
    batch = value.shape[: value.ndim - event_ndim]
    if len(batch) == 1:
        return net(value)
    flat = value.reshape(math.prod(batch), *value.shape[value.ndim - event_ndim :])
    return net(flat).unflatten(0, batch) if batch else net(flat).squeeze(0)
