"""Recipes: small TOML files that say what to train, on what, and how; every value can be overridden."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from inspect import signature
from pathlib import Path
from typing import Any

from flowkit import zoo
from flowkit.flow import Flow
from flowkit.train.data import Split, name_of, read
from flowkit.train.loop import Settings
from flowkit.zoo.flowpp import configuration
from flowkit.zoo.loading import MODELS, build
from flowkit.zoo.registry import tuples

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Recipe", "available", "recipe"]


@dataclass(frozen=True)
class Recipe:
    """What to train, on what, and how: a config file read, with its overrides.

    Attributes:
        name: of the config.
        model: `name`, one of the functions of `flowkit.zoo`, and what it takes.
        data: what `flowkit.train.data.read` takes.
        train: the settings of the loop.
        about: what the config says of itself.
        start: trained weights that the model starts from; None for random ones.
    """

    name: str
    model: dict[str, Any]
    data: dict[str, Any]
    train: Settings
    about: str = field(default="", compare=False)
    start: str | None = field(default=None, compare=False)

    def sizes(self) -> dict[str, Any]:
        """What makes the model, all of it: what a card calls its config.

        Raises:
            ValueError: for an impossible size.
        """
        given = {key: value for key, value in self.model.items() if key != "name"}
        if self.model["name"] != "flowpp":
            return given
        return asdict(configuration(given.pop("config", "cifar10"), **given))

    def flow(self) -> Flow:
        """The model, with random weights or those it starts from.

        Raises:
            ValueError: for an impossible size.
            WeightsError: if the weights cannot be had.
        """
        return build(self.model["name"], self.sizes()) if self.start is None else zoo.load(self.start)

    def starting_from(self, start: str) -> Recipe:
        """The same, from trained weights: nothing is set from data, and optimizer and schedule begin anew.

        Args:
            start: a name of `flowkit.zoo.available`, or the path of a card.

        Raises:
            ValueError: for an unknown name, or weights of another model or size than the recipe's, naming what differs.
            WeightsError: if the card is damaged.
        """
        card = zoo.card(start)
        mine = {"model": self.model["name"], **self.sizes()}
        theirs = {"model": card["model"], **{key: tuples(value) for key, value in card["config"].items()}}
        for key in [*mine, *theirs]:
            # A card of an earlier release lacks the sizes that came later, at their defaults.
            if key in theirs and mine.get(key) != theirs[key]:
                raise ValueError(f"{start}: {key} is {theirs[key]!r}, and that of the recipe {mine.get(key)!r}")
        return replace(self, start=start, train=replace(self.train, init_batch=0))

    def images(self) -> Split:
        """The data.

        Raises:
            DataError: if it is missing or damaged.
        """
        return read(**self.data)

    def data_name(self) -> str:
        """What cards call the data."""
        return name_of(self.data["source"], self.data.get("path"), self.data.get("bits", 8))

    def held_out_name(self) -> str:
        """What cards call the images held out."""
        nth = self.data.get("hold_out")
        return "held-out" if nth is None else f"every {nth}th training image"

    @staticmethod
    def of(told: Mapping[str, Any]) -> Recipe:
        """The recipe of which `as_dict` told.

        >>> Recipe.of(recipe("flowpp-digits").as_dict()) == recipe("flowpp-digits")
        True
        """
        return Recipe(told["name"], told["model"], told["data"], Settings(**told["train"]))

    def as_dict(self) -> dict[str, Any]:
        """Everything in it, for JSON."""
        return {"name": self.name, "model": self.model, "data": self.data, "train": asdict(self.train)}


def available() -> dict[str, str]:
    """The configs in the package, and what each says of itself.

    >>> sorted(available())[:3]
    ['flowpp-celeba128-5bit', 'flowpp-celeba64-3bit', 'flowpp-celeba64-5bit']
    """
    folder = resources.files("flowkit.train") / "configs"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return {file.name.removesuffix(".toml"): tomllib.loads(file.read_text()).get("about", "") for file in files}


def recipe(config: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a config.

    Args:
        config: the name of one in the package, or the path of a TOML file.
        overrides: texts "key=value". A key is one of the section `train`, or has its section before it:
            "steps=100", "model.filters=32", "data.path=images.npz". A value is read as TOML; what is no TOML is a text.

    Raises:
        ValueError: for an unknown config, section or key, with those there are, or a value of the wrong kind.

    >>> made = recipe("flowpp-digits", ["steps=10", "model.filters=8"])
    >>> made.train.steps, made.train.batch, made.model
    (10, 64, {'name': 'flowpp', 'config': 'digits', 'filters': 8})
    """
    name, content = _content(config)
    known = {
        "model": {"name"},
        "data": set(signature(read).parameters),
        "train": {field.name for field in fields(Settings)},
    }
    sections: dict[str, dict[str, Any]] = {section: dict(content.pop(section, {})) for section in known}
    about = content.pop("about", "")
    if content:
        raise ValueError(f"{config}: unknown {next(iter(content))!r}; a config has {', '.join(known)} and about")
    for override in overrides:
        key, equals, value = override.partition("=")
        section, _, key = key.strip().rpartition(".")
        section = section or "train"
        if not equals or section not in known:
            raise ValueError(f"{override!r} is no override; wanted key=value, the key with its section: {_ways(known)}")
        sections[section][key] = _value(value.strip())
    name_of_model = sections["model"].get("name")
    if name_of_model not in MODELS:
        raise ValueError(f"model.name is {name_of_model!r}, wanted one of {', '.join(MODELS)}")
    known["model"] |= _sizes(name_of_model)
    for section, values in sections.items():
        for key in values:
            if key not in known[section]:
                raise ValueError(f"{section} has no {key!r}; there are {', '.join(sorted(known[section]))}")
    for section, needed in (("train", "steps"), ("data", "source")):
        if needed not in sections[section]:
            raise ValueError(f"{config}: {section}.{needed} is missing")
    kinds = {field.name: field.type for field in fields(Settings)}
    for key, value in sections["train"].items():
        if kinds[key] == "float" and isinstance(value, int) and not isinstance(value, bool):
            sections["train"][key] = float(value)
    return Recipe(name, sections["model"], sections["data"], Settings(**sections["train"]), about)


def _sizes(model: str) -> set[str]:
    """What the function of a model takes."""
    if model == "flowpp":
        return {"config", *(field.name for field in fields(zoo.FlowppConfig))}
    return set(signature(MODELS[model]).parameters)


def _content(config: str) -> tuple[str, dict[str, Any]]:
    path = Path(config)
    if path.suffix == ".toml":
        text, name = path.read_text(), path.stem
    else:
        file = resources.files("flowkit.train") / "configs" / f"{config}.toml"
        if config not in available():
            raise ValueError(f"config is {config!r}, wanted a path ending in .toml, or one of {', '.join(available())}")
        text, name = file.read_text(), config
    try:
        return name, tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{config}: not TOML: {error}") from None


def _value(text: str) -> Any:
    for attempt in (text, json.dumps(text)):
        try:
            return tomllib.loads(f"value = {attempt}")["value"]
        except tomllib.TOMLDecodeError:
            continue
    raise ValueError(f"{text!r} is no value")


def _ways(known: Mapping[str, Any]) -> str:
    return ", ".join("steps=100" if section == "train" else f"{section}.key=value" for section in known)
