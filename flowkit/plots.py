"""Pictures, with matplotlib (the extra `plots`)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from flowkit.errors import ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["image_grid"]


def image_grid(
    images: Tensor, *, levels: int = 256, columns: int | None = None, title: str = "", ax: Axes | None = None
) -> Axes:
    """Images in a grid, a thin gap between them.

    Args:
        images: (n, C, H, W), integers from 0 to levels - 1, with 1 channel (grey) or 3 (colour).
        levels: what counts as white is levels - 1.
        columns: images in a row; as square as possible if not given.
        title: above the grid.
        ax: where to draw; a new figure if not given.

    Returns:
        The axes.

    Raises:
        ShapeError: for another shape, or no images.
        ImportError: without matplotlib, naming the extra that brings it.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ShapeError(f"image_grid: images have shape {tuple(images.shape)}, wanted (n, 1 or 3, H, W), n at least 1")
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("image_grid: matplotlib is missing; in a clone: pip install '.[plots]'") from error
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    gap = max(1, width // 16)
    sheet = images.new_full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), levels - 1)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    picture = (sheet.movedim(0, -1).double() / (levels - 1)).cpu().numpy()
    if ax is None:
        ax = plt.figure(figsize=(5, 5 * picture.shape[0] / picture.shape[1])).add_subplot()
    ax.imshow(picture.squeeze(-1) if channels == 1 else picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(title)
    return ax
