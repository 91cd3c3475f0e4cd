"""`flowkit evaluate`: score a trained flow on a whole split."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowkit.cli.options import MODEL, Model

__all__ = ["DESCRIPTION", "HELP", "NAME", "arguments", "run"]

DTYPES = ("float32", "float64")


NAME = "evaluate"
HELP = "score trained weights on held-out data, in bits/dim"
DESCRIPTION = """\
Scores every image of a split in bits per dimension (lower is better), with the standard error of the mean, and says how
it was measured.

  flowkit evaluate flowpp-digits
  flowkit evaluate flowpp-digits --draws 64 --uniform --out card.json
  flowkit evaluate runs/flowpp-digits                                  a run, by its newest checkpoint
  flowkit evaluate runs/flowpp-mnist/flowpp-mnist.json --path mnist.npz --against card.json

Flows on integer images have only a bound on their likelihood: one sample of the noise gives a loose one, many samples,
combined by importance weighting, a tight one. The Flow++ paper takes 4096. Time grows with the samples; --scores lets a
long evaluation be interrupted and taken up again."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("model", help=MODEL)
    parser.add_argument(
        "--data",
        metavar="NAME",
        help="digits, mnist, cifar10, arrays or folder; what the model was trained on if not given",
    )
    parser.add_argument("--path", metavar="PATH", help="its file or folder, as `flowkit train` takes it in data.path")
    parser.add_argument(
        "--split",
        choices=("held-out", "train", "test"),
        default="held-out",
        help="which part of the data (%(default)s): what was held out in training, what was trained on, or the test "
        "images, which are those held out unless the model was trained with data.hold_out",
    )
    parser.add_argument("--draws", type=int, default=1, metavar="K", help="importance samples per image (%(default)s)")
    parser.add_argument("--uniform", action="store_true", help="score with uniform noise too, in place of the learned")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images scored together (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the arithmetic; sums are float64 (%(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")
    parser.add_argument("--scores", type=Path, metavar="FILE", help="keep finished batches here and go on from them")
    parser.add_argument("--out", type=Path, metavar="CARD", help="write the result as a card, JSON")
    parser.add_argument(
        "--against", metavar="CARD", help="compare with another card, or a model's; refused if it was measured unlike"
    )


def run(options: argparse.Namespace) -> None:
    """Score, print, write.

    Raises:
        ValueError: for a name or setting that is none, or a comparison of what was measured unlike.
        OSError: if the card cannot be written.
    """
    import torch

    from flowkit import zoo
    from flowkit.cli.options import model, usable_device
    from flowkit.train import Evaluation, compare, evaluate
    from flowkit.train.evaluation import check_seed

    for name in ("draws", "batch"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} is {getattr(options, name)}, wanted at least 1")
    check_seed("--seed", options.seed)
    for name in ("scores", "out"):
        if getattr(options, name) is not None and getattr(options, name).is_dir():
            raise ValueError(f"--{name} is {str(getattr(options, name))!r}, a folder; wanted the path of a file")
    usable_device(options.device)
    opened = model(options.model)
    against = None
    if options.against is not None:
        against = (
            Evaluation.read(options.against)
            if options.against.endswith(".json")
            else Evaluation.of(zoo.card(options.against)["evaluation"])
        )
    images, data_name, split = _images(options, opened)
    result = evaluate(
        opened.load().to(options.device),
        images,
        data_name=data_name,
        split=split,
        draws=options.draws,
        batch=options.batch,
        seed=options.seed,
        uniform=options.uniform,
        dtype=getattr(torch, options.dtype),
        model=opened.name,
        steps=opened.card["training"].get("steps"),
        ema=opened.card["training"].get("ema"),
        against=against,
        scores=options.scores,
        progress=True,
    )
    print(result)
    if options.out is not None:
        result.write(options.out)
        print(f"{options.out}: the card of this evaluation")
    if against is not None:
        difference, error = compare(result, against)
        better = f"below zero: {result.model} is better"
        print(f"{difference:+.4f} ± {error:.4f} bits/dim against {against.model} ({better})")


def _images(options: argparse.Namespace, opened: Model) -> tuple[Any, str, str]:
    """The images of a split, all of them, and what a card calls data and split.

    Raises:
        ValueError: for an unknown data set, a path that is missing, or a split that is.
    """
    from flowkit.cli.options import missing_path
    from flowkit.train.config import split_name
    from flowkit.train.data import SOURCES, name_of, read

    # As in training, so that the figure on the card can be had again; but of its test images data has one kind alone.
    reading = {key: value for key, value in opened.data.items() if key != "hold_out" or options.split != "test"}
    if options.data is not None and options.data != reading.get("source"):
        reading = {"source": options.data}
    source = reading.get("source")
    if source is None:
        raise ValueError(f"{options.model}: its card names no data set; give one with --data")
    if source not in SOURCES:
        raise ValueError(f"--data is {source!r}, wanted one of {', '.join(SOURCES)}")
    levels = opened.card["config"].get("levels", 256)
    if "bits" not in reading and source != "digits" and levels in [2**bits for bits in range(1, 9)]:
        reading["bits"] = levels.bit_length() - 1
    if options.path is not None:
        reading["path"] = options.path
    if missing_path(reading):
        raise ValueError(missing_path(reading, f"flowkit evaluate {options.model} --data {source} --path "))
    split = read(**reading)
    images = split.train if options.split == "train" else split.held_out
    if images is None:
        raise ValueError(f"{reading['path']}: no images held out there; --split train scores those to train on")
    named = split_name("train" if options.split == "train" else "held-out", reading.get("hold_out"))
    return images, name_of(source, reading.get("path"), reading.get("bits", 8)), named
