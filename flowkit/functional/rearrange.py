"""Moves of elements: pairs of columns, of a checkerboard, of channels; space to depth.

Images are (*batch, C, H, W). A pair makes the two halves an axis of its own, (*batch, 2, C, H, W), of the halves' size.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "pair_channels",
    "pair_checkerboard",
    "pair_columns",
    "squeeze",
    "unpair_channels",
    "unpair_checkerboard",
    "unpair_columns",
    "unsqueeze",
]


def pair_columns(x: Tensor) -> Tensor:
    """Even columns and odd columns: (*batch, C, H, W) to (*batch, 2, C, H, W/2)."""
    return x.unflatten(-1, (x.shape[-1] // 2, 2)).movedim(-1, -4)


def unpair_columns(pair: Tensor) -> Tensor:
    """Inverse of `pair_columns`: (*batch, 2, C, H, W/2) to (*batch, C, H, W)."""
    return pair.movedim(-4, -1).flatten(-2)


def _exchange_in_odd_rows(neighbours: Tensor) -> Tensor:
    """Swap the two columns of (*batch, C, H, W/2, 2) in every odd row."""
    odd = torch.arange(neighbours.shape[-3], device=neighbours.device).remainder(2).bool()
    return torch.where(odd[:, None, None], neighbours.flip(-1), neighbours)


def pair_checkerboard(x: Tensor) -> Tensor:
    """Squares with even row + column, and the others: (*batch, C, H, W) to (*batch, 2, C, H, W/2)."""
    return _exchange_in_odd_rows(x.unflatten(-1, (x.shape[-1] // 2, 2))).movedim(-1, -4)


def unpair_checkerboard(pair: Tensor) -> Tensor:
    """Inverse of `pair_checkerboard`: (*batch, 2, C, H, W/2) to (*batch, C, H, W)."""
    return _exchange_in_odd_rows(pair.movedim(-4, -1)).flatten(-2)


def pair_channels(x: Tensor) -> Tensor:
    """First half of the channels and second half: (*batch, C, H, W) to (*batch, 2, C/2, H, W)."""
    return x.unflatten(-3, (2, x.shape[-3] // 2))


def unpair_channels(pair: Tensor) -> Tensor:
    """Inverse of `pair_channels`: (*batch, 2, C/2, H, W) to (*batch, C, H, W)."""
    return pair.flatten(-4, -3)


def squeeze(x: Tensor, factor: int = 2, color_fastest: bool = False) -> Tensor:
    """Space to depth: (*batch, C, H, W) to (*batch, f^2 C, H/f, W/f).

    Element (c, f y + dy, f x + dx) goes to channel c f^2 + f dy + dx (the order of `torch.pixel_unshuffle`), or, with
    `color_fastest`, to channel (f dy + dx) C + c (the order of TensorFlow's `space_to_depth`, and of Flow++).

    Reference:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, section 3.6,
        https://arxiv.org/abs/1605.08803.
    """
    height, width = x.shape[-2:]
    blocks = x.unflatten(-1, (width // factor, factor)).unflatten(-3, (height // factor, factor))
    first = (-5, -4) if color_fastest else (-4, -3)
    return blocks.movedim((-3, -1), first).flatten(-5, -3)


def unsqueeze(x: Tensor, factor: int = 2, color_fastest: bool = False) -> Tensor:
    """Depth to space, the inverse of `squeeze`: (*batch, f^2 C, H, W) to (*batch, C, f H, f W)."""
    channels = x.shape[-3] // factor**2
    first = (-5, -4) if color_fastest else (-4, -3)
    blocks = x.unflatten(-3, (factor, factor, channels) if color_fastest else (channels, factor, factor))
    return blocks.movedim(first, (-3, -1)).flatten(-4, -3).flatten(-2)
