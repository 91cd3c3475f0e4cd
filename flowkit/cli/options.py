"""Reads what commands are given."""

from __future__ import annotations

__all__ = ["usable_device"]


def usable_device(name: str) -> str:
    """`name`, if tensors can be made there.

    Raises:
        ValueError: if not, with what torch says.
    """
    import torch

    try:
        torch.empty((), device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device is {name!r}: {str(error).splitlines()[0]}") from None
    return name
