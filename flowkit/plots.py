"""Pictures, with matplotlib (the extra `plots`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from flowkit.errors import ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["image_grid", "training_curves"]


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
    if ax is None:
        plt = _pyplot("image_grid")
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


def training_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], *, ax: Axes | None = None) -> Axes:
    """Bits/dim against steps: a thin line of the training batches, dots of what is held out.

    Args:
        runs: a name, and the rows of that run's log, as `flowkit.train.read_log` gives them.
        ax: where to draw; a new figure if not given.

    Returns:
        The axes.

    Raises:
        ValueError: if no run has a row.
        ImportError: without matplotlib, naming the extra that brings it.
    """
    if not any(runs.values()):
        raise ValueError("training_curves: there are no rows")
    if ax is None:
        ax = _pyplot("training_curves").figure(figsize=(7, 4.5)).add_subplot()
    shown: list[float] = []
    for number, (name, rows) in enumerate(runs.items()):
        color = f"C{number % 10}"
        for key, label, style in (
            ("bits_per_dim", f"{name}, training", {"lw": 0.8, "alpha": 0.6}),
            ("held_out_bits_per_dim", f"{name}, held out", {"lw": 1.5, "marker": "o", "ms": 3}),
        ):
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                ax.plot(steps, values, color=color, label=label, **style)
                shown += values[len(values) // 10 :]
    if shown:  # what comes before training has got under way would press the rest flat
        low, high = min(shown), max(shown)
        ax.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3)
    ax.set_xlabel("steps")
    ax.set_ylabel("bits/dim")
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def _pyplot(asker: str) -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(f"{asker}: matplotlib is missing; in a clone: pip install '.[plots]'") from error
    return plt
