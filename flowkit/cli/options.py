"""Reads what commands are given."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowkit.flow import Flow

__all__ = ["MODEL", "Model", "missing_path", "model", "usable_device"]

MODEL = "a name that `flowkit info` lists, the card (*.json) of weights of your own, or the folder of a training run"


@dataclass(frozen=True)
class Model:
    """What a command is to work with.

    Attributes:
        name: to call it by.
        card: what is known of it.
        load: gives the flow.
        data: what `flowkit.train.data.read` takes of the data that it was trained on; empty if that is unknown.
    """

    name: str
    card: dict[str, Any]
    load: Callable[[], Flow]
    data: dict[str, Any]


def model(text: str) -> Model:
    """A model by a listed name, the path of its card, or the folder of a run, whose newest checkpoint is taken.

    Where a folder of a run has a listed name, the listed weights are taken, and a line says so.

    Raises:
        ValueError: if it is none of them, or damaged.
    """
    from flowkit import zoo
    from flowkit.train.runs import Run

    path = Path(text)
    if path.is_dir() and text not in zoo.available():
        run = Run.open(path)
        return Model(run.recipe.name, run.card(), run.flow, run.recipe.data)
    if (path / "checkpoints").is_dir():
        # Beside the results, which programs read.
        told = f"the trained weights of that name are taken; the run in the folder here is ./{text}"
        print(f"flowkit: {text}: {told}", file=sys.stderr)
    if len(path.parts) > 1 and path.suffix != ".json":
        raise ValueError(f"{text}: there is no such folder; wanted {MODEL}")
    card = zoo.card(text)
    known = card["evaluation"] or {}
    data = card["training"].get("recipe", {}).get("data") or ({"source": known["data"]} if "data" in known else {})
    if path.suffix == ".json" and missing_path(data) and (path.parent / "checkpoints").is_dir():
        # A card has no paths of a machine, so that it can be given away; the run beside it knows.
        data = Run.open(path.parent).recipe.data
    return Model(path.stem, card, lambda: zoo.load(text), data)


def missing_path(data: Mapping[str, Any], example: str = "") -> str:
    """What to give, if `data` names a source whose files are to be given and are not; otherwise nothing.

    Args:
        data: what `flowkit.train.data.read` takes.
        example: a command up to the path.
    """
    from flowkit.train.data import WANTED

    source = data.get("source")
    if source not in WANTED or "path" in data:
        return ""
    what, path = WANTED[source]
    return f"where is the data ({source})? Nothing is downloaded. Give {what}:\n  {example}{path}"


def usable_device(name: str) -> str:
    """`name`, if tensors can be made there.

    Raises:
        ValueError: if not, with what torch says.
    """
    from flowkit.train.parallel import usable

    usable("--device", name)
    return name
