"""`flowkit train`: a recipe to a trained model."""

from __future__ import annotations

import argparse
import json
import shlex
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
  flowkit train flowpp-mnist data.path=mnist.npz rate=2e-4 --from flowpp-mnist --out runs/longer
  torchrun --nproc-per-node 8 -m flowkit train flowpp-cifar10 data.path=...

In the folder: log.jsonl and log.csv, curves.png, samples-*.png, checkpoints/, and at the end <config>.json, the card of
the model, beside its averaged weights, <config>.safetensors. While it runs, and afterwards:

  flowkit evaluate runs/flowpp-digits                         the newest checkpoint
  flowkit sample runs/flowpp-digits/flowpp-digits.json        the model at the end"""


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
    parser.add_argument(
        "--from",
        dest="start",
        metavar="WEIGHTS",
        help="start from trained weights, not from random ones: a name that flowkit info lists, or the path of a card",
    )
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

    from flowkit.cli.options import missing_path
    from flowkit.train import Evaluation, config, fit
    from flowkit.train.parallel import processes
    from flowkit.train.runs import check_goes_on, facts, finish

    if options.list:
        recipes = config.available()
        width = max(map(len, recipes))
        for name, about in recipes.items():
            print(f"{name:{width}}  {about}")
        return None
    if options.config is None:
        raise ValueError("train: which recipe? flowkit train --list shows them")
    recipe = config.recipe(options.config, options.overrides)
    if options.show:
        print(json.dumps(recipe.as_dict(), indent=2))
        return None
    if missing_path(recipe.data):
        given = " ".join([options.config, *options.overrides])
        raise ValueError(missing_path(recipe.data, f"flowkit train {given} data.path="))
    out = options.out or Path("runs") / recipe.name
    split = recipe.images()
    config.check_levels(recipe, split)
    torch.manual_seed(recipe.train.seed)
    if options.start is not None:
        recipe = recipe.starting_from(options.start)
    flow = recipe.flow()
    with processes(recipe.train.device) as ours:
        if any(ours.gather(options.fresh and ours.first and (out / "checkpoints").exists())):
            raise ValueError(f"{out} holds an earlier run; without --fresh it goes on, with another --out it stays")
        check_goes_on(out, recipe)
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
            facts=facts(recipe),
            progress=not options.quiet,
        )
        if trained.stopped_by is not None:
            if ours.first:
                name, steps = trained.stopped_by.name, recipe.train.steps
                print(f"stopped by {name} at step {trained.step} of {steps}; the same command goes on from there")
            return 128 + trained.stopped_by
        card = finish(out, recipe, split, trained, ours, command=_command(options))
        if card is not None:
            if card["evaluation"] is not None:
                print(Evaluation.of(card["evaluation"]))
            print(f"{out / recipe.name}.json: the model, after {card['training']['minutes']} minutes of training")
    return None


def _command(options: argparse.Namespace) -> str:
    """What gives this model again, without the paths of this machine."""
    pairs = [[part.strip() for part in text.split("=", 1)] for text in options.overrides]
    named = [f"{key}={Path(value).name if key == 'data.path' else value}" for key, value in pairs]
    start = [] if options.start is None else ["--from", Path(options.start).stem]
    return shlex.join(["flowkit", "train", Path(options.config).name, *named, *start])
