"""Fits four densities of two dimensions by NSF, MAF and RealNVP, in flowkit and in zuko at the same size and budget.

    python -m benchmarks.densities            # prints the table
    python -m benchmarks.densities --write    # and puts it and the pictures into docs/densities.md
    python -m benchmarks.densities --quick    # a few steps, to see that it runs

Both libraries see the same batches, start from the same seeds and are scored on the same held-out points. Every fit
runs on one thread.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import flowkit as fk
from benchmarks import fitting, models, page
from flowkit.train import toy

DENSITIES: dict[str, Callable[..., Tensor]] = {
    "two moons": toy.two_moons,
    "checkerboard": toy.checkerboard,
    "pinwheel": toy.pinwheel,
    "eight Gaussians": toy.eight_gaussians,
}
HIDDEN, BINS, BOUND = (64, 64), 8, 5.0
MODELS: dict[str, dict[str, Callable[[], models.Model]]] = {
    "NSF": {
        "flowkit": lambda: models.flowkit_nsf(2, 3, HIDDEN, BINS, BOUND),
        "zuko": lambda: models.zuko_model("NSF", 2, 3, HIDDEN, bins=BINS),
    },
    "MAF": {
        "flowkit": lambda: models.flowkit_maf(2, 6, HIDDEN),
        "zuko": lambda: models.zuko_model("MAF", 2, 6, HIDDEN),
    },
    "RealNVP": {
        "flowkit": lambda: models.flowkit_realnvp(2, 8, HIDDEN),
        "zuko": lambda: models.zuko_model("RealNVP", 2, 8, HIDDEN),
    },
}
BATCH, LEARNING_RATE, HELD_OUT = 256, 2e-3, 20_000
EXTENT, GRID, SHOWN = 4.6, 240, 5_000  # half the side of a picture, its pixels, its samples
ASSETS = page.DOCS / "assets"


class Fit(NamedTuple):
    """How one fit went, and for a picture the density on a grid and samples."""

    log_prob: float
    seconds: float
    parameters: int
    density: Tensor | None
    samples: Tensor | None


def fit(task: tuple[str, str, str, int], steps: int) -> Fit:
    """One model of one library on one density from one seed."""
    torch.set_num_threads(1)
    density, model, library, seed = task
    draw = DENSITIES[density]
    torch.manual_seed(seed)
    flow = MODELS[model][library]()
    start = time.process_time()
    generator = torch.Generator().manual_seed(1000 + seed)
    for _ in fitting.optimize(flow, _endless(draw, generator), steps, LEARNING_RATE):
        pass
    seconds = time.process_time() - start
    with torch.no_grad():
        held_out = draw(HELD_OUT, generator=torch.Generator().manual_seed(0))
        log_prob = flow.log_prob(held_out).double().mean().item()
        picture = (None, None)
        if seed == 0 and isinstance(flow.module, fk.Flow):
            log_density = torch.cat([flow.log_prob(rows) for rows in pixels().split(8192)])
            if log_density.isnan().any():
                raise RuntimeError(f"{density}, {model}: the density is undefined at points of the picture")
            samples = flow.module.sample((SHOWN,), generator=torch.Generator().manual_seed(1))
            picture = (log_density.exp().reshape(GRID, GRID), samples)
    return Fit(log_prob, seconds, flow.parameters, *picture)


def _endless(draw: Callable[..., Tensor], generator: torch.Generator):
    while True:
        yield draw(BATCH, generator=generator)


def pixels() -> Tensor:
    """The middles of the pixels of a picture, (GRID^2, 2), row by row from below."""
    middles = (torch.arange(GRID) + 0.5) / GRID * 2 * EXTENT - EXTENT
    second, first = torch.meshgrid(middles, middles, indexing="ij")
    return torch.stack([first, second], dim=-1).reshape(-1, 2)


def histogram(x: Tensor) -> Tensor:
    """The density of very many points on the grid of the pictures, (GRID, GRID)."""
    place = ((x + EXTENT) / (2 * EXTENT) * GRID).floor().long()
    first, second = place[((place >= 0) & (place < GRID)).all(-1)].unbind(-1)
    counts = torch.bincount(second * GRID + first, minlength=GRID * GRID)
    return counts.reshape(GRID, GRID) / len(x) / (2 * EXTENT / GRID) ** 2


def draw_pictures(fits: dict[tuple[str, str, str, int], Fit], folder: Path) -> None:
    """Densities and samples, a row for each density: the data first, then what each model of flowkit made of it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = ["data", *MODELS]
    for kind in ("densities", "samples"):
        figure, axes = plt.subplots(len(DENSITIES), len(columns), figsize=(8, 8.3), dpi=115)
        for row, (name, draw) in enumerate(DENSITIES.items()):
            many = draw(8_000_000 if kind == "densities" else SHOWN, generator=torch.Generator().manual_seed(2))
            truth = histogram(many) if kind == "densities" else None
            for column, model in enumerate(columns):
                ax = axes[row, column]
                fitted = fits.get((name, model, "flowkit", 0))
                if kind == "densities":
                    # One scale for a row, by the data, so that the models can be compared by eye.
                    top = truth.quantile(0.99).item()
                    image = truth if fitted is None else fitted.density
                    ax.imshow(
                        image, origin="lower", cmap="BuPu", vmin=0, vmax=top, extent=[-EXTENT, EXTENT] * 2,
                        interpolation="bilinear",
                    )  # fmt: skip
                else:
                    x = many if fitted is None else fitted.samples
                    ax.scatter(*x.T, s=0.8, linewidths=0, alpha=0.5, color="#4d004b")
                    ax.set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), aspect="equal")
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_color("#cccccc")
                if row == 0:
                    ax.set_title(model, fontsize=12)
                if column == 0:
                    ax.set_ylabel(name, fontsize=12, labelpad=8)
        figure.subplots_adjust(left=0.045, right=0.995, bottom=0.005, top=0.96, wspace=0.03, hspace=0.03)
        figure.savefig(folder / f"{kind}.png")
        plt.close(figure)


def rows(fits: dict[tuple[str, str, str, int], Fit], seeds: Sequence[int]):
    """A row of the table for each density and model."""
    for density, model in itertools.product(DENSITIES, MODELS):
        ours, theirs = ([fits[density, model, library, seed] for seed in seeds] for library in ("flowkit", "zuko"))
        yield (
            density,
            model,
            f"{ours[0].parameters:,}",
            f"{theirs[0].parameters:,}",
            *(fitting.mean_and_error([fit.log_prob for fit in each]) for each in (ours, theirs)),
            fitting.mean_and_error([a.log_prob - b.log_prob for a, b in zip(ours, theirs, strict=True)]),
            *(f"{statistics.median(fit.seconds for fit in each):.1f}" for each in (ours, theirs)),
        )


def main() -> None:
    """Fit, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="put the table and the pictures into the docs")
    parser.add_argument("--quick", action="store_true", help="20 steps and 2 seeds")
    options = parser.parse_args()
    steps, seeds = (20, range(2)) if options.quick else (options.steps, range(options.seeds))

    tasks = list(itertools.product(DENSITIES, MODELS, ("flowkit", "zuko"), seeds))
    with ProcessPoolExecutor(options.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        fits = dict(zip(tasks, pool.map(fit, tasks, itertools.repeat(steps)), strict=True))
    columns = [
        "density", "model", "parameters", "zuko's", "flowkit, nats", "zuko, nats", "difference", "flowkit, s", "zuko, s"
    ]  # fmt: skip
    table = page.table(columns, rows(fits, seeds))
    print(table)
    if options.write:
        page.write_between_marks(page.DOCS / "densities.md", "densities", table)
        draw_pictures(fits, ASSETS)


if __name__ == "__main__":
    main()
