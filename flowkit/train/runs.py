"""Runs of `flowkit train`: the card and the weights that they end with, and what there is of them before that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flowkit import zoo
from flowkit.flow import Flow
from flowkit.train import checkpoints
from flowkit.train.checkpoints import CheckpointError, Found
from flowkit.train.config import Recipe
from flowkit.train.data import Split
from flowkit.train.evaluation import code_version, data_sha256
from flowkit.train.loop import Trained
from flowkit.train.parallel import Processes, whole

__all__ = ["Run", "check_goes_on", "facts", "finish"]


def facts(recipe: Recipe) -> dict[str, Any]:
    """What a checkpoint says of its run, beside what `fit` puts there."""
    return {"recipe": recipe.as_dict(), **_start(recipe), **code_version()}


def check_goes_on(out: Path, recipe: Recipe) -> None:
    """Refuse to go on from the run in a folder as if it had had other data, or had started elsewhere.

    Raises:
        ValueError: naming what differs.
    """
    found = next(checkpoints.newest(out / "checkpoints", lambda _: None), None)
    then = None if found is None else found.manifest["of"]
    if then is None or "recipe" not in then:
        return
    anew = "; with another --out it begins anew"
    before, now = then["recipe"]["data"], recipe.as_dict()["data"]
    for key in sorted({*before, *now} - {"path"}):  # files may have moved
        if before.get(key) != now.get(key):
            raise ValueError(f"{out} holds a run with data.{key}={before.get(key)}, not {now.get(key)}{anew}")
    started, starts = then.get("started_from"), _start(recipe).get("started_from")
    if (started or {}).get("sha256") != (starts or {}).get("sha256"):
        which = f"started from {started['name']}" if started else "started from random weights"
        wanted = f"--from {started['name']}" if started else "no --from"
        raise ValueError(f"{out} holds a run that {which}; it goes on with {wanted}{anew}")


def finish(
    out: Path, recipe: Recipe, split: Split, trained: Trained, ours: Processes, *, command: str
) -> dict[str, Any] | None:
    """Write the averaged weights and their card, `out/<recipe>.json`, as `flowkit.zoo.save` does.

    Every process calls it. No path of this machine goes onto the card.

    Returns:
        The card, on the first process; nothing elsewhere.

    Raises:
        WeightsError: for values that are not finite.
        OSError: if the files cannot be written.
    """
    state = {key: whole(value).cpu() for key, value in trained.flow.state_dict().items()}
    if not ours.first:
        return None
    flow = recipe.flow()
    flow.load_state_dict(state)
    train, held_out = _count(split.train), 0 if split.held_out is None else _count(split.held_out)
    evaluation = trained.evaluation and replace(
        trained.evaluation, model=recipe.name, data=recipe.data_name(), split=recipe.held_out_name()
    )
    training = {
        "command": command,
        "data": recipe.data_name(),
        "split": f"{train} images to train on, {held_out} held out",
        "data_sha256": data_sha256(split.train)[0],
        "steps": trained.step,
        "batch": recipe.train.batch,
        **_start(recipe),
        "seed": recipe.train.seed,
        "ema": recipe.train.ema,
        "peak_learning_rate": recipe.train.rate,
        "skipped": trained.skipped,
        "minutes": round(trained.seconds / 60, 1),
        "device": torch.cuda.get_device_name() if ours.device.type == "cuda" else str(ours.device),
        "processes": ours.world,
        "recipe": _without_path(recipe),
        **code_version(),
    }
    return zoo.save(
        flow,
        out / f"{recipe.name}.json",
        model=recipe.model["name"],
        config=recipe.sizes(),
        training=training,
        evaluation=None if evaluation is None else asdict(evaluation),
    )


@dataclass(frozen=True)
class Run:
    """A run that is going on, was stopped, or has ended, as its newest whole checkpoint has it.

    Attributes:
        recipe: what it trains.
        found: the checkpoint.
    """

    recipe: Recipe
    found: Found

    @staticmethod
    def open(folder: Path) -> Run:
        """The run in a folder.

        Raises:
            CheckpointError: if no run is there, or none of its checkpoints is whole, or no recipe is known.
        """
        refused: list[str] = []
        found = next(checkpoints.newest(folder / "checkpoints", refused.append), None)
        if found is None:
            why = "; ".join(refused) or "there is none; a run has its first after `save_every` steps"
            raise CheckpointError(f"{folder}: no checkpoint of a run: {why}")
        recipe: Mapping[str, Any] | None = found.manifest["of"].get("recipe")
        if recipe is None:
            raise CheckpointError(
                f"{found.path}: a run of `fit`, of which no recipe is known. Build its flow and load ema.safetensors "
                "into it"
            )
        return Run(Recipe.of(recipe), found)

    def flow(self) -> Flow:
        """The averaged flow, in eval mode.

        Raises:
            CheckpointError: if the weights do not fit the recipe.
        """
        flow = self.recipe.flow()
        self.found.average(flow)
        return flow.eval()

    def card(self) -> dict[str, Any]:
        """What is known of it, in the form of a card of `flowkit.zoo`."""
        files = [
            {"file": name, **fact}
            for name, fact in self.found.manifest["files"].items()
            if name == "ema.safetensors" or name.startswith("shards/")
        ]
        training = {
            "data": self.recipe.data_name(),
            "steps": self.found.step,
            "steps_of_recipe": self.recipe.train.steps,
            "batch": self.recipe.train.batch,
            "seed": self.recipe.train.seed,
            "ema": self.recipe.train.ema,
            "peak_learning_rate": self.recipe.train.rate,
            "processes": self.found.manifest["processes"],
            "bits_per_dim": self.found.manifest["bits_per_dim"],
            "recipe": _without_path(self.recipe),
        }
        return {
            "model": self.recipe.model["name"],
            "config": self.recipe.sizes(),
            "parameters": sum(parameter.numel() for parameter in self.recipe.flow().parameters()),
            "dtype": "float32",
            "size": sum(entry["size"] for entry in files),
            "sha256": files[0]["sha256"] if len(files) == 1 else None,
            "files": files,
            "training": training,
            "evaluation": None,
        }


def _start(recipe: Recipe) -> dict[str, Any]:
    """What went before: the weights that the run started from, and how they had been trained."""
    if recipe.start is None:
        return {}
    card = zoo.card(recipe.start)
    return {"started_from": {"name": Path(recipe.start).stem, "sha256": card["sha256"], "training": card["training"]}}


def _without_path(recipe: Recipe) -> dict[str, Any]:
    told = recipe.as_dict()
    return {**told, "data": {key: value for key, value in told["data"].items() if key != "path"}}


def _count(images: Any) -> int:
    return len(images)
