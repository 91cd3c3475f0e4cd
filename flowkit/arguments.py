"""Reads what constructors are given."""

from __future__ import annotations

import operator
from typing import Any

__all__ = ["whole"]


def whole(value: Any) -> int | None:
    """`value` as an int, if it is a whole number of any library's; None if not."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
