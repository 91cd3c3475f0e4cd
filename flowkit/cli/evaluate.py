"""`flowkit evaluate`: score a trained flow on a whole split."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["DESCRIPTION", "HELP", "NAME", "arguments", "run"]

DTYPES = ("float32", "float64")


NAME = "evaluate"
HELP = "score trained weights on held-out data, in bits/dim"
DESCRIPTION = """\
Scores every image of a split in bits per dimension (lower is better), with the standard error of the mean, and says how
it was measured.

  flowkit evaluate flowpp-digits
  flowkit evaluate flowpp-digits --draws 64 --uniform --out card.json
  flowkit evaluate runs/mine/flowpp-mine.json --data digits --against card.json

Flows on integer images have only a bound on their likelihood: one sample of the noise gives a loose one, many samples,
combined by importance weighting, a tight one. The Flow++ paper takes 4096. Time grows with the samples; --scores lets a
long evaluation be interrupted and taken up again."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("model", help="a name that `flowkit info` lists, or the card (*.json) of weights of your own")
    parser.add_argument("--data", metavar="NAME", help="data set; that of the model's card if not given")
    parser.add_argument(
        "--split", choices=("held-out", "train"), default="held-out", help="which part of the data (%(default)s)"
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
    from flowkit.cli.options import usable_device
    from flowkit.train import Evaluation, compare, evaluate

    for name in ("draws", "batch"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} is {getattr(options, name)}, wanted at least 1")
    card = zoo.card(options.model)
    known = card["evaluation"] or {}
    # Before the long work, what would be refused after it.
    against = None
    if options.against is not None:
        against = (
            Evaluation.read(options.against)
            if options.against.endswith(".json")
            else Evaluation.of(zoo.card(options.against)["evaluation"])
        )
    data_name = options.data or known.get("data")
    if data_name is None:
        raise ValueError(f"{options.model}: its card names no data set; give one with --data")
    images = _images(data_name, options.split)
    result = evaluate(
        zoo.load(options.model).to(usable_device(options.device)),
        images,
        data_name=data_name,
        split=options.split,
        draws=options.draws,
        batch=options.batch,
        seed=options.seed,
        uniform=options.uniform,
        dtype=getattr(torch, options.dtype),
        model=Path(options.model).stem,
        steps=card["training"].get("steps"),
        ema=card["training"].get("ema"),
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


def _images(name: str, split: str) -> Any:
    """The images of a split.

    Raises:
        ValueError: for an unknown data set.
    """
    from flowkit.train import digits

    if name != "digits":
        raise ValueError(f"--data is {name!r}, wanted digits")
    train, held_out = digits()
    return train if split == "train" else held_out
