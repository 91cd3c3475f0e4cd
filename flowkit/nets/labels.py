"""Nets that turn what a user says of an image, a label or a vector, into a context for every pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowkit.arguments import count
from flowkit.errors import DomainError, ShapeError
from flowkit.functional.eager import values_at_hand

__all__ = ["ClassContext", "VectorContext"]


class ClassContext(nn.Module):
    """A context image of one pixel for each label: an embedding, for `Flow(context_net=..., context_shape=())`.

    Args:
        classes: how many labels there are, from 0 on.
        out: channels.

    Shapes:
        labels: (*batch), any integer dtype; output: (*batch, out, 1, 1).

    Raises:
        DomainError: for labels that are no integers, or (in eager mode) out of range.
        ValueError: for fewer than 1 class or channel.

    >>> import torch
    >>> ClassContext(10, out=16)(torch.tensor([3, 7])).shape
    torch.Size([2, 16, 1, 1])
    """

    def __init__(self, classes: int, out: int) -> None:
        super().__init__()
        self.classes = count("ClassContext", "classes", classes)
        self.embedding = nn.Embedding(self.classes, count("ClassContext", "out", out))

    def forward(self, labels: Tensor) -> Tensor:
        """The embedded labels, (*batch, out, 1, 1)."""
        wanted = f"wanted integers from 0 to {self.classes - 1}"
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise DomainError(f"ClassContext: labels are {labels.dtype}, {wanted}")
        labels = labels.long()
        if labels.numel() and values_at_hand(labels):
            low, high = (value.item() for value in labels.aminmax())
            if low < 0 or high >= self.classes:
                raise DomainError(f"ClassContext: labels go from {low} to {high}, {wanted}")
        return self.embedding(labels)[..., None, None]


class VectorContext(nn.Module):
    """A context image of one pixel for each vector: a linear map, for `Flow(context_net=..., context_shape=(size,))`.

    Args:
        size: of the vector.
        out: channels.

    Shapes:
        vector: (*batch, size); output: (*batch, out, 1, 1).

    Raises:
        ShapeError: if the vector does not fit.

    >>> import torch
    >>> VectorContext(5, out=16)(torch.zeros(2, 5)).shape
    torch.Size([2, 16, 1, 1])
    """

    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.size = size
        self.linear = nn.Linear(size, out)

    def forward(self, vector: Tensor) -> Tensor:
        """The mapped vectors, (*batch, out, 1, 1)."""
        if vector.shape[-1:] != (self.size,):
            raise ShapeError(f"VectorContext: context has shape {tuple(vector.shape)}, wanted (*batch, {self.size})")
        return self.linear(vector)[..., None, None]
