"""`flowkit sample`: draw from a trained flow."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flowkit.cli.options import MODEL

if TYPE_CHECKING:
    import torch

    from flowkit.flow import Flow

__all__ = ["DESCRIPTION", "HELP", "NAME", "arguments", "run"]


NAME = "sample"
HELP = "draw samples of trained weights, as a picture or an array"
DESCRIPTION = """\
Draws samples from a trained flow and writes them as one picture (*.png, needs the extra `plots`) or as an array of
integers (*.npy, shape (count, channels, height, width)).

  flowkit sample flowpp-digits
  flowkit sample flowpp-digits --count 1000 --out samples.npy
  flowkit sample flowpp-digits --temperature 0.7 --seed 1
  flowkit sample runs/flowpp-digits                  a run, by its newest checkpoint"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("model", help=MODEL)
    parser.add_argument("--count", type=int, default=64, metavar="N", help="how many (%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("samples.png"), metavar="FILE", help="*.png or *.npy (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same samples (%(default)s)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="factor on the deviation of the latent: 1 samples the model; less gives cleaner images of less variety "
        "(%(default)s)",
    )
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="samples drawn together (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")


def run(options: argparse.Namespace) -> None:
    """Draw and write.

    Raises:
        ValueError: for a name or setting that is none.
        ImportError: for a picture without matplotlib.
        OSError: if the file cannot be written.
    """
    for name in ("count", "batch"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} is {getattr(options, name)}, wanted at least 1")
    if not 0 <= options.temperature < float("inf"):
        raise ValueError(f"--temperature is {options.temperature}, wanted at least 0, and finite")
    if options.out.suffix not in (".png", ".npy"):
        raise ValueError(f"--out is {options.out}, wanted *.png or *.npy")
    import numpy as np
    import torch

    from flowkit.cli.options import model, usable_device
    from flowkit.progress import progress_bar

    opened = model(options.model)
    flow = opened.load().to(usable_device(options.device))
    generator = torch.Generator(options.device).manual_seed(options.seed)
    parts = []
    with progress_bar(options.count, "sampling", unit="image") as bar:
        for start in range(0, options.count, options.batch):
            size = min(options.batch, options.count - start)
            parts.append(_sample(flow, size, options.temperature, generator).cpu())
            bar.update(size)
    samples = torch.cat(parts)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.out.suffix == ".npy":
        np.save(options.out, samples.numpy())
    else:
        _picture(samples, opened.card["config"].get("levels", 256), options.out)
    print(f"{options.out}: {options.count} samples of {opened.name}")


def _sample(flow: Flow, count: int, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """Samples with the deviation of the latent multiplied by `temperature`.

    Raises:
        ValueError: for a temperature other than 1 where not all noise of the flow is a normal latent.
    """
    import torch

    from flowkit.distributions import Normal

    if temperature == 1:
        return flow.sample((count,), generator=generator)
    if not isinstance(flow.base, Normal) or flow.transform.stochastic_inverse:
        raise ValueError("--temperature is for flows whose samples are functions of one normal latent alone")
    with torch.no_grad():
        z = flow.base.sample((count,), generator=generator)
        return flow.from_latent(flow.base.loc + temperature * (z - flow.base.loc))


def _picture(samples: torch.Tensor, levels: int, path: Path) -> None:
    """A grid of samples as PNG."""
    from flowkit.plots import image_grid

    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("sample: matplotlib is missing; take --out *.npy, or pip install '.[plots]'") from error
    plt.switch_backend("agg")
    figure = plt.figure(figsize=(6, 6))
    image_grid(samples, levels=levels, ax=figure.add_axes((0, 0, 1, 1)))
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.05)
    plt.close(figure)
