"""Pictures, with matplotlib (the extra `plots`): densities, warps of a grid, log-terms, bounds, images, curves.

Every function draws into the axes it is given, or into a new figure, and returns the axes. Flows run without
gradients, in the mode in which they stand.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowkit.arguments import check_kind, check_tensor, count, finite
from flowkit.distribution import Distribution, drawn_with
from flowkit.errors import NotExact, ShapeError
from flowkit.flow import Flow, tensor_of
from flowkit.summary import Row, Summary
from flowkit.transform import Chain, Inverse, Transform, run_forward, run_inverse

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["bound_by_draws", "density", "image_grid", "log_terms", "points", "training_curves", "warps"]

GAIN, COST = "#3b6ea8", "#c8643c"  # of log-terms, and of the two families of lines of a grid


def density(
    distribution: Distribution,
    *,
    extent: Sequence[float] | None = None,
    context: Tensor | None = None,
    pixels: int = 200,
    top: float | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """The density of two numbers, as colour: the palest is 0. Outside its domain, where it is NaN, nothing is drawn.

    Args:
        distribution: over events (2,), with an exact density.
        extent: (left, right, bottom, top) of the picture; if not given, it holds nearly all of 4,096 samples.
        context: of a conditional distribution, one context without batch dims.
        pixels: on either side.
        top: the density of the darkest colour; if not given, the one that all but 1 % of the mass lies below.
        title: above the picture.
        ax: where to draw; a new figure if not given.

    Returns:
        The axes; its image holds the density, (pixels, pixels), row by row from below.

    Raises:
        NotExact: for a distribution that has only a bound on its density.
        ShapeError: for another event than (2,), or a context with batch dims.
        TypeError: for what is no distribution.
        ValueError: for an extent that is no rectangle, fewer than 2 pixels, or a top that is not above 0.
        ImportError: without matplotlib, naming the extra that brings it.

    >>> import flowkit as fk
    >>> ax = density(fk.Normal((2,)), extent=(-2, 2, -2, 2), pixels=9)
    >>> shown = ax.images[0].get_array()
    >>> shown.shape, round(float(shown[4, 4]), 4)  # 1 / (2 pi) in the middle
    ((9, 9), 0.1592)
    """
    check_kind("density", "distribution", distribution, Distribution, "a flowkit Distribution")
    if not distribution.exact:
        raise NotExact("density: distribution has only a bound on its density (exact is False)")
    batch = distribution.check_context(context)
    if batch:
        raise ShapeError(f"density: context has the batch {tuple(batch)}, wanted one context without batch dims")
    if context is None and distribution.event_shape != (2,):
        raise ShapeError(f"density: distribution has events {tuple(distribution.event_shape)}, wanted (2,)")
    count("density", "pixels", pixels, 2)
    if top is not None and not finite("density", "top", top) > 0:
        raise ValueError(f"density: top is {top!r}, wanted a number above 0")
    like = tensor_of(distribution)
    if extent is None:
        seeded = torch.Generator(like.device).manual_seed(0)
        extent = _around(distribution.sample((4096,), context, generator=seeded))
    left, right, bottom, upper = _rectangle("density", extent)
    first, second = (
        low + (torch.arange(pixels, dtype=like.dtype, device=like.device) + 0.5) * (high - low) / pixels
        for low, high in ((left, right), (bottom, upper))
    )
    places = torch.stack(torch.meshgrid(first, second, indexing="xy"), dim=-1).reshape(-1, 2)
    with torch.no_grad():
        found = torch.cat([distribution.log_prob(rows, context) for rows in places.split(8192)]).double().exp().cpu()
    if top is None:
        top = _all_but_a_hundredth(found)
    if ax is None:
        ax = _new_axes("density", (4.5, 4.5))
    ax.imshow(
        found.reshape(pixels, pixels).numpy(),
        origin="lower",
        extent=(left, right, bottom, upper),
        cmap="BuPu",
        vmin=0.0,
        vmax=top,
        interpolation="bilinear",
    )
    if title:  # one that a picture underneath has stays
        ax.set_title(title)
    return ax


def points(
    x: Tensor,
    *,
    colors: Tensor | None = None,
    extent: Sequence[float] | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Points of the plane, such as samples; the more there are, the smaller they are drawn.

    Args:
        x: (n, 2).
        colors: (n,), a number for each, such as a class; all of one colour if not given.
        extent: (left, right, bottom, top) of the picture; if not given, it holds them all.
        title: above the picture.
        ax: where to draw; a new figure if not given.

    Returns:
        The axes; its collection holds the points.

    Raises:
        ShapeError: for x that is not (n, 2), n at least 1, or colors that are not (n,).
        TypeError: for x or colors that are no tensors.
        ValueError: for an extent that is no rectangle.
        ImportError: without matplotlib, naming the extra that brings it.

    >>> import torch
    >>> ax = points(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    >>> ax.collections[0].get_offsets().tolist()
    [[0.0, 1.0], [2.0, 3.0]]
    """
    _check_points("points", "x", x, colors)
    if ax is None:
        ax = _new_axes("points", (4.5, 4.5))
    _scatter(ax, x, colors)
    if extent is not None:
        left, right, bottom, upper = _rectangle("points", extent)
        ax.set(xlim=(left, right), ylim=(bottom, upper))
    ax.set_aspect("equal")
    if title:  # one that a picture underneath has stays
        ax.set_title(title)
    return ax


def warps(
    flow: Flow,
    *,
    inverse: bool = False,
    reach: float = 3.0,
    lines: int = 13,
    points: Tensor | None = None,
    colors: Tensor | None = None,
    context: Tensor | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """What each layer does to the plane: a square grid, and points if they are given, before and after every layer.

    Where the grid is thrown far out, as it may be where there are no data, the view keeps to the points, or to most of
    the grid. A layer is a part of the flow's chain; a chain in it counts as one layer, so that
    `Chain(first=Chain(couple, flip), ...)` has one picture for each pair.

    Args:
        flow: over events (2,), with latents of two numbers; no layer draws noise in the direction that is shown.
        inverse: whether to show the way from latent to data, in place of that from data to latent.
        reach: the grid lies in [-reach, reach]^2.
        lines: of the grid, in either direction.
        points: (n, 2), to be carried along: data, or latents if `inverse`.
        colors: (n,), a number for each of the points.
        context: of a conditional flow, one context without batch dims.
        axes: where to draw, one more than there are layers; a new figure if not given.

    Returns:
        The axes, in the order in which the layers are passed; the first one shows what enters. The title of each is the
        name of the layer.

    Raises:
        NotExact: for a layer that draws noise in this direction.
        ShapeError: for another event than (2,), points that are not (n, 2), n at least 1, colors that are not (n,), a
            context with batch dims, or a layer that gives something other than two numbers for a point.
        TypeError: for what is no flow.
        ValueError: for a reach that is not above 0, fewer than 2 lines, another number of axes, or colors without
            points.
        ImportError: without matplotlib, naming the extra that brings it.

    >>> import torch, flowkit as fk
    >>> flow = fk.Flow(fk.Chain(mix=fk.LULinear(2), flip=fk.Flip(dim=-1)), fk.Normal((2,)))
    >>> [ax.get_title() for ax in warps(flow, points=torch.zeros(1, 2))]
    ['data', 'mix', 'flip']
    """
    check_kind("warps", "flow", flow, Flow, "a flowkit Flow")
    batch = flow.check_context(context)
    if batch:
        raise ShapeError(f"warps: context has the batch {tuple(batch)}, wanted one context without batch dims")
    if context is None and flow.event_shape != (2,):
        raise ShapeError(f"warps: flow has events {tuple(flow.event_shape)}, wanted (2,)")
    if not finite("warps", "reach", reach) > 0:
        raise ValueError(f"warps: reach is {reach!r}, wanted a number above 0")
    count("warps", "lines", lines, 2)
    if points is not None:
        _check_points("warps", "points", points, colors)
    elif colors is not None:
        raise ValueError("warps: colors are given without points")
    stages = list(_stages(flow.transform, inverse))
    names = ["latent" if inverse else "data", *(name for name, _, _ in stages)]
    for name, part, backwards in stages:
        if part.stochastic_inverse if backwards else part.stochastic_forward:
            raise NotExact(f"warps: {name} ({type(part).__name__}) draws noise in this direction; wanted fixed layers")
    if axes is not None and len(axes) != len(names):
        raise ValueError(f"warps: axes are {len(axes)}, wanted {len(names)}: one more than there are layers")

    like = tensor_of(flow)
    grid = _grid(reach, lines).to(like)
    carried = grid if points is None else torch.cat([grid, points.to(like)])
    values = [carried]
    with torch.no_grad():
        value = carried.reshape(len(carried), *(flow.base.event_shape if inverse else (2,)))
        if context is not None:
            context = context if flow.context_net is None else flow.context_net(context)
            context = context.expand(len(carried), *context.shape)
        for name, part, backwards in stages:
            value, _ = (run_inverse if backwards else run_forward)(part, value, context, None)
            if value[0].numel() != 2:
                raise ShapeError(f"warps: {name} gives {tuple(value.shape[1:])} for a point, wanted two numbers")
            values.append(value.reshape(-1, 2))

    if axes is None:
        rows = math.ceil(len(names) / 5)
        columns = math.ceil(len(names) / rows)
        figure = _pyplot("warps").figure(figsize=(2.3 * columns, 2.4 * rows), layout="constrained")
        axes = [figure.add_subplot(rows, columns, 1 + i) for i in range(len(names))]
    for ax, name, value in zip(axes, names, values, strict=True):
        _draw_grid(ax, value[: len(grid)], lines)
        if points is not None:
            _scatter(ax, value[len(grid) :], colors)
        left, right, bottom, top = _around(value if points is None else value[len(grid) :])
        ax.set(xlim=(left, right), ylim=(bottom, top), aspect="auto", title=name)
    return list(axes)


def log_terms(summary: Summary, *, depth: int = 1, unit: str = "nats", ax: Axes | None = None) -> Axes:
    """Bars of what each layer and the base add to the log-likelihood, as means over the examples of a summary.

    Args:
        summary: of `flow.summary(x=...)` or `flow.summary(samples=...)`, which has measured them.
        depth: how far chains are opened: 1 for the parts of the flow's transform, 0 for the transform as a whole,
            2 for the parts of chains in it.
        unit: "nats", where more is better; or "bits/dim", the shares of `metrics.bits_per_dim`, where less is.
        ax: where to draw; a new figure if not given.

    Returns:
        The axes; one bar for each layer, from the data downwards. They add up to the figure in the title.

    Raises:
        TypeError: for what is no summary.
        ValueError: for a summary without data, a log-term that is not finite, a negative depth, or another unit.
        ImportError: without matplotlib, naming the extra that brings it.

    >>> import torch, flowkit as fk
    >>> flow = fk.Flow(fk.Chain(scale=fk.ActNorm((2,)), squash=fk.Sigmoid()), fk.Uniform((2,)))
    >>> ax = log_terms(flow.summary(x=torch.zeros(3, 2)))
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['scale', 'squash', 'base']
    >>> [round(float(bar.get_width()), 4) for bar in ax.patches]  # 2 log(1/4)
    [0.0, -2.7726, 0.0]
    """
    check_kind("log_terms", "summary", summary, Summary, "what flow.summary(x=...) gives")
    count("log_terms", "depth", depth, 0)
    if unit not in ("nats", "bits/dim"):
        raise ValueError(f"log_terms: unit is {unit!r}, wanted 'nats' or 'bits/dim'")
    if summary.total.log_term is None or summary.total.bits_per_dim is None:
        raise ValueError("log_terms: summary has no log-terms, wanted one with data: flow.summary(x=...)")
    rows = list(_opened(summary.rows, depth))
    for row in rows:
        if not math.isfinite(row.log_term or 0.0):
            raise ValueError(f"log_terms: the log-term of {row.path} is {row.log_term}, wanted a finite one")
    in_nats = unit == "nats"
    values = [(row.log_term if in_nats else row.bits_per_dim) or 0.0 for row in rows]
    total = summary.total.log_term if in_nats else summary.total.bits_per_dim
    if ax is None:
        ax = _new_axes("log_terms", (6.5, 0.9 + 0.32 * len(rows)))
    labels = [re.sub(r"^(transform\.)+", "", row.path) for row in rows]
    colors = [GAIN if (value > 0) == in_nats else COST for value in values]
    bars = ax.barh(range(len(rows)), values, color=colors)
    ax.set_yticks(range(len(rows)), labels)
    ax.invert_yaxis()
    ax.bar_label(bars, [f"{round(value, 2) + 0.0:+.2f}" for value in values], padding=3, fontsize="small")
    ax.margins(x=0.15)
    ax.axvline(0, color="0.2", lw=0.8)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("nats, more is better" if in_nats else "bits/dim, less is better")
    ax.set_title(f"mean {'log_prob' if in_nats else 'bits/dim'} {total:.2f}")
    return ax


def bound_by_draws(
    flow: Distribution,
    x: Tensor,
    *,
    draws: int = 64,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
    label: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Bits/dim against the number of importance samples: what is left to gain to the right is the gap of the bound.

    One line, the mean over the examples of `metrics.bits_per_dim` at 1, 2, 4, ... draws. All of them use the same
    draws, in as many groups as there are, so that the line falls smoothly.

    Args:
        flow: its `log_prob` is one draw of a bound.
        x: (n, *event), n at least 1.
        draws: the most importance samples; that many times `log_prob` runs.
        context: as for `flow.log_prob`.
        generator: for the noise.
        label: of the line, in the legend.
        ax: where to draw, perhaps beside the line of another flow; a new figure if not given.

    Returns:
        The axes; its last line holds the numbers of draws and the bits/dim.

    Raises:
        TypeError: for what is no distribution, or x that is no tensor.
        ShapeError: for x without elements.
        ValueError: for an exact flow, which has no gap, or fewer than 1 draw.
        ImportError: without matplotlib, naming the extra that brings it.

    Reference:
        Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders", 2016, https://arxiv.org/abs/1509.00519.

    >>> import torch, flowkit as fk
    >>> flow = fk.Flow(fk.Chain(fk.UniformDequantizer(levels=4), fk.Logit(margin=0.05)), fk.Normal((3,)))
    >>> ax = bound_by_draws(flow, torch.tensor([[0, 1, 3]]), draws=8)
    >>> ax.lines[-1].get_xdata().tolist()
    [1, 2, 4, 8]
    """
    check_kind("bound_by_draws", "flow", flow, Distribution, "a flowkit Distribution")
    check_tensor("bound_by_draws", "x", x)
    count("bound_by_draws", "draws", draws)
    if flow.exact:
        raise ValueError("bound_by_draws: flow is exact, its log_prob draws no noise and has no gap")
    if not x.numel():
        raise ShapeError(f"bound_by_draws: x has shape {tuple(x.shape)}, with no elements")
    with torch.no_grad():
        each = torch.stack([flow.log_prob(x, context, **drawn_with(generator)).double() for _ in range(draws)])
    each = each.reshape(draws, -1).cpu()
    dims = math.prod(x.shape[x.ndim - flow.event_ndim :])
    sizes, bits = [2**i for i in range(draws.bit_length())], []
    for size in sizes:
        groups = each[: draws // size * size].reshape(-1, size, each.shape[1])
        bound = groups.logsumexp(1) - math.log(size)
        bits.append(-bound.mean().item() / (dims * math.log(2)))
    if ax is None:
        ax = _new_axes("bound_by_draws", (6, 3.6))
    ax.plot(sizes, bits, marker="o", ms=4, label=label or None)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.minorticks_off()
    ax.set_xlabel("importance samples of each example")
    ax.set_ylabel("bits/dim")
    ax.grid(alpha=0.3)
    if label:
        ax.legend()
    return ax


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
        TypeError: for images that are no tensor.
        ValueError: for fewer than 2 levels, or fewer than 1 column.
        ImportError: without matplotlib, naming the extra that brings it.
    """
    check_tensor("image_grid", "images", images)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ShapeError(f"image_grid: images have shape {tuple(images.shape)}, wanted (n, 1 or 3, H, W), n at least 1")
    count("image_grid", "levels", levels, 2)
    n, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else count("image_grid", "columns", columns)
    rows = math.ceil(n / columns)
    gap = max(1, width // 16)
    sheet = images.new_full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), levels - 1)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    picture = (sheet.movedim(0, -1).double() / (levels - 1)).cpu().numpy()
    if ax is None:
        ax = _new_axes("image_grid", (5, 5 * picture.shape[0] / picture.shape[1]))
    ax.imshow(picture.squeeze(-1) if channels == 1 else picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    if title:  # one that a picture underneath has stays
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
        ax = _new_axes("training_curves", (7, 4.5))
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


def _new_axes(asker: str, size: tuple[float, float]) -> Axes:
    return _pyplot(asker).figure(figsize=size, layout="constrained").add_subplot()


# ---------------------------------------------------------------------------------------------------------------------
# The plane


def _rectangle(asker: str, extent: Sequence[float]) -> tuple[float, float, float, float]:
    """`extent` as numbers, if it is a rectangle."""
    sides = tuple(finite(asker, "extent", side) for side in extent)
    if len(sides) != 4 or not (sides[0] < sides[1] and sides[2] < sides[3]):
        raise ValueError(f"{asker}: extent is {extent!r}, wanted (left, right, bottom, top), each pair increasing")
    return sides


def _check_points(asker: str, name: str, x: Tensor, colors: Tensor | None) -> None:
    check_tensor(asker, name, x)
    if x.ndim != 2 or x.shape[1] != 2 or not len(x):
        raise ShapeError(f"{asker}: {name} has shape {tuple(x.shape)}, wanted (n, 2), n at least 1")
    if colors is not None:
        check_tensor(asker, "colors", colors)
        if colors.shape != x.shape[:1]:
            raise ShapeError(f"{asker}: colors has shape {tuple(colors.shape)}, wanted {tuple(x.shape[:1])}")


def _around(x: Tensor) -> tuple[float, float, float, float]:
    """A rectangle that holds all but the farthest of many points, with a margin."""
    low, high = (x.double().quantile(q, dim=0) for q in (0.005, 0.995))
    margin = torch.where(high > low, 0.15 * (high - low), 1.0)
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    return left, right, bottom, top


def _all_but_a_hundredth(found: Tensor) -> float:
    """The density above which lies 1 % of the mass: a narrow peak does not leave the rest pale."""
    ordered = found[found.isfinite()].sort(descending=True).values
    if not len(ordered) or not ordered[0] > 0:
        return 1.0
    mass = ordered.cumsum(0) / ordered.sum()
    return ordered[int((mass < 0.01).sum())].item()


def _scatter(ax: Axes, x: Tensor, colors: Tensor | None) -> None:
    first, second = x.detach().double().cpu().unbind(-1)
    color: dict[str, Any] = {"color": "#4d004b"} if colors is None else {"c": colors.cpu().numpy(), "cmap": "viridis"}
    size = min(max(6000 / len(x), 0.8), 12)
    ax.scatter(first.numpy(), second.numpy(), s=size, linewidths=0, alpha=0.6, zorder=2, **color)


def _grid(reach: float, lines: int, steps: int = 121) -> Tensor:
    """Upright lines, then level ones, each of `steps` places: (2 lines steps, 2)."""
    fixed, along = torch.meshgrid(
        torch.linspace(-reach, reach, lines), torch.linspace(-reach, reach, steps), indexing="ij"
    )
    upright, level = torch.stack([fixed, along], -1), torch.stack([along, fixed], -1)
    return torch.cat([upright, level]).reshape(-1, 2)


def _draw_grid(ax: Axes, places: Tensor, lines: int) -> None:
    from matplotlib.collections import LineCollection

    every = places.double().cpu().reshape(2 * lines, -1, 2).numpy()
    for family, color in ((every[:lines], GAIN), (every[lines:], COST)):
        ax.add_collection(LineCollection(list(family), colors=color, linewidths=0.8, alpha=0.8, zorder=1))


def _stages(transform: Transform, backwards: bool) -> Iterator[tuple[str, Transform, bool]]:
    """The parts in the order in which they are passed: name, part, and whether its inverse runs."""
    while isinstance(transform, Inverse):
        transform, backwards = transform.transform, not backwards
    if not isinstance(transform, Chain):
        yield type(transform).__name__, transform, backwards
        return
    named = list(transform.named_children())
    for name, part in reversed(named) if backwards else named:
        yield name, part, backwards  # type: ignore[misc]


def _opened(rows: Sequence[Row], depth: int) -> Iterator[Row]:
    """Rows that add up to the whole: down to `depth` chains give way to their parts, other layers stand for theirs."""
    whole: Row | None = None
    for row in rows:
        if row.log_term is None or (whole is not None and row.path.startswith(f"{whole.path}.")):
            continue
        whole = None if row.kind == "Chain" and row.depth < depth else row
        if whole is not None:
            yield row
