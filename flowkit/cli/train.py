"""`flowkit train`: a recipe to a trained model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

__all__ = ["DESCRIPTION", "HELP", "NAME", "arguments", "run"]

NAME = "train"
HELP = "train a model by a recipe, or go on where an earlier run stopped"
DESCRIPTION = """\
Trains a model by a recipe of the package or of a TOML file of your own. The same command again goes on from the newest
checkpoint. Ctrl-C and SIGTERM stop with a checkpoint.

  flowkit train --list
  flowkit train flowpp-digits
  flowkit train flowpp-mnist data.path=mnist.npz
  flowkit train flowpp-cifar10 data.path=cifar-10-python.tar.gz batch=32 accumulate=4
  torchrun --nproc-per-node 8 -m flowkit train flowpp-cifar10 data.path=...

In the folder: weights.safetensors (averaged weights, written at the end), run.json (all settings and how it went),
log.jsonl and log.csv, curves.png, samples-*.png, checkpoints/."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("config", nargs="?", help="a recipe of the package (see --list), or the path of a .toml file")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="other values than the recipe's: steps=100, model.filters=32, data.path=images.npz",
    )
    parser.add_argument("--out", type=Path, help="folder of the run (runs/<config>)")
    parser.add_argument("--fresh", action="store_true", help="refuse to go on from an earlier run in that folder")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--list", action="store_true", help="show the recipes, and leave")
    parser.add_argument("--show", action="store_true", help="show the recipe with its overrides as JSON, and leave")


def run(options: argparse.Namespace) -> int | None:
    """Train.

    Raises:
        ValueError: for an unknown recipe or key, bad data, or a run that cannot go on.
        OSError: if the folder cannot be written.
    """
    import torch

    from flowkit import __version__
    from flowkit.train import checkpoints, config, fit
    from flowkit.train.parallel import processes

    if options.list:
        for name, about in config.available().items():
            print(f"{name:24} {about}")
        return None
    if options.config is None:
        raise ValueError("train: which recipe? flowkit train --list shows them")
    recipe = config.recipe(options.config, options.overrides)
    if options.show:
        print(json.dumps(recipe.as_dict(), indent=2))
        return None
    out = options.out or Path("runs") / recipe.name
    split = recipe.images()
    torch.manual_seed(recipe.train.seed)
    flow = recipe.flow()
    with processes(recipe.train.device) as ours:
        if any(ours.gather(options.fresh and ours.first and (out / "checkpoints").exists())):
            raise ValueError(f"{out} holds an earlier run; without --fresh it goes on, with another --out it stays")
        count = sum(parameter.numel() for parameter in flow.parameters())
        if ours.first:
            print(f"{recipe.name}: {count:,} parameters, {len(split.train):,} images, {ours.device}, {out}")  # type: ignore[arg-type]
        trained = fit(
            flow,
            split.train,
            recipe.train,
            held_out=split.held_out,
            out=out,
            levels=split.levels,
            facts={"recipe": recipe.as_dict(), "flowkit": __version__, "torch": torch.__version__},
            progress=not options.quiet,
        )
        if trained.stopped_by is not None:
            if ours.first:
                name, steps = trained.stopped_by.name, recipe.train.steps
                print(f"stopped by {name} at step {trained.step} of {steps}; the same command goes on from there")
            return 128 + trained.stopped_by
        facts = checkpoints.export(out / "weights.safetensors", trained.flow, ours)
        if not ours.first:
            return None
        card = {
            "recipe": recipe.as_dict(),
            "parameters": count,
            "images": len(split.train),  # type: ignore[arg-type]
            "steps": trained.step,
            "skipped": trained.skipped,
            "minutes": round(trained.seconds / 60, 1),
            "processes": ours.world,
            "device": torch.cuda.get_device_name() if ours.device.type == "cuda" else str(ours.device),
            "held_out_images": None if split.held_out is None else len(split.held_out),  # type: ignore[arg-type]
            "bits_per_dim": trained.bits_per_dim,
            "bits_per_dim_standard_error": trained.standard_error,
            "importance_samples": recipe.train.final_draws,
            "flowkit": __version__,
            "torch": torch.__version__,
            "file": "weights.safetensors",
            **facts,
        }
        checkpoints.write_atomically(out / "run.json", (json.dumps(card, indent=2) + "\n").encode())
        if trained.bits_per_dim is not None:
            print(
                f"{trained.bits_per_dim:.4f} ± {trained.standard_error:.4f} bits/dim on {card['held_out_images']:,} "
                f"held-out images, {recipe.train.final_draws} draws; {card['minutes']} minutes"
            )
        print(f"{out}/weights.safetensors: averaged weights; run.json beside them says how they came about")
    return None
