"""What goes wrong, as exceptions that name the part, what came and what was wanted."""

from __future__ import annotations

__all__ = ["DomainError", "NotExact", "ShapeError"]


class ShapeError(ValueError):
    """A tensor or a part has a shape that does not fit."""


class DomainError(ValueError):
    """A value lies outside the set on which a part is defined: wrong dtype, out of range, not a number."""


class NotExact(ValueError):
    """A density was asked of a flow that has only a bound, or a gradient of a sample that has none."""
