"""What the models on vectors say of their context."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["width_of"]


def width_of(model: str, context_shape: Sequence[int] | None) -> int:
    """How wide the vectors are that a model is conditional on; 0 for none.

    Raises:
        ValueError: for any other shape.
    """
    if context_shape is None:
        return 0
    if len(context_shape) != 1 or context_shape[0] < 1:
        raise ValueError(f"{model}: context_shape is {tuple(context_shape)}, wanted (C,): one vector for each x")
    return context_shape[0]
