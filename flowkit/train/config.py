"""Recipes: small TOML files that say what to train, on what, and how; every value can be overridden."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from inspect import Parameter, signature
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

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
        """What makes the model, all of it, defaults too: what a card calls its config.

        Raises:
            ValueError: for an impossible size.
        """
        given = {key: value for key, value in self.model.items() if key != "name"}
        if self.model["name"] != "flowpp":
            return _with_defaults(self.model["name"], given)
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
        if card["model"] != self.model["name"]:
            raise ValueError(f"{start}: model is {card['model']!r}, and that of the recipe {self.model['name']!r}")
        # A card lacks the sizes that were left at their defaults, and those that came in a later release.
        mine, theirs = self.sizes(), _with_defaults(card["model"], card["config"])
        for key in {**mine, **theirs}:
            if mine.get(key) != theirs.get(key):
                raise ValueError(f"{start}: {key} is {theirs.get(key)!r}, and that of the recipe {mine.get(key)!r}")
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
        return split_name("held-out", self.data.get("hold_out"))

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


def check_levels(recipe: Recipe, split: Split) -> None:
    """Refuse images whose integers end elsewhere than the model's.

    With fewer levels than the model's all goes well, and the figure is that of other images than those that
    `flowkit evaluate` and readers of the card take it to be of. A model without levels is left alone.

    Raises:
        ValueError: naming both, and what to give.
    """
    levels = recipe.sizes().get("levels")
    if not isinstance(levels, int) or levels == split.levels:
        return
    wanted = f"model.levels={split.levels}"
    if recipe.data["source"] != "digits" and levels in [2**bits for bits in range(1, 9)]:
        wanted += f", or data.bits={levels.bit_length() - 1}"
    raise ValueError(f"model.levels is {levels}, and {recipe.data_name()} has {split.levels} levels; wanted {wanted}")


def split_name(part: str, hold_out: int | None) -> str:
    """What cards call a part of the data, "held-out" or "train", of which perhaps every nth training image is held out.

    >>> split_name("held-out", None), split_name("held-out", 6), split_name("train", 6)
    ('held-out', 'every 6th training image', 'train without every 6th image')
    """
    if hold_out is None:
        return part
    return f"every {hold_out}th training image" if part == "held-out" else f"train without every {hold_out}th image"


def available() -> dict[str, str]:
    """The configs in the package, and what each says of itself.

    Raises:
        ValueError: if one of them is damaged.

    >>> sorted(available())[:3]
    ['flowpp-celeba128-5bit', 'flowpp-celeba64-3bit', 'flowpp-celeba64-5bit']
    """
    folder = resources.files("flowkit.train") / "configs"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return {file.name.removesuffix(".toml"): tomllib.loads(_text(file)).get("about", "") for file in files}


def recipe(config: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a config.

    Args:
        config: the name of one in the package, or the path of a TOML file.
        overrides: texts "key=value". A key is one of the section `train`, or has its section before it:
            "steps=100", "model.filters=32", "data.path=images.npz". A value is read as TOML; what is no TOML is a text.

    Raises:
        ValueError: for an unknown config, section or key, with those there are, or a value of the wrong kind.
        OSError: if the file cannot be read.

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
    for section in known:
        if not isinstance(content.get(section, {}), dict):
            raise ValueError(f"{config}: {section} is {content[section]!r}, wanted a table, [{section}]")
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
    sizes = _kinds(name_of_model)
    known["model"] |= sizes.keys()
    for section, values in sections.items():
        for key in values:
            if key not in known[section]:
                raise ValueError(f"{section} has no {key!r}; there are {', '.join(sorted(known[section]))}")
    without_default = [("model", size) for size in _parameters(name_of_model) if size not in _defaults(name_of_model)]
    for section, needed in (("train", "steps"), ("data", "source"), *without_default):
        if needed not in sections[section]:
            raise ValueError(f"{config}: {section}.{needed} is missing")
    for section, hints in (("model", sizes), ("data", get_type_hints(read))):
        for key, value in sections[section].items():
            if key in hints and not _is_of(value, hints[key]):
                raise ValueError(f"{section}.{key} is {value!r}, wanted {_in_words(hints[key])}")
    kinds = {field.name: field.type for field in fields(Settings)}
    for key, value in sections["train"].items():
        if kinds[key] == "float" and isinstance(value, int) and not isinstance(value, bool):
            sections["train"][key] = float(value)
    return Recipe(name, sections["model"], sections["data"], Settings(**sections["train"]), about)


def _parameters(model: str) -> Mapping[str, Parameter]:
    """The sizes of a model, as a card has them."""
    return signature(zoo.FlowppConfig if model == "flowpp" else MODELS[model]).parameters


def _kinds(model: str) -> dict[str, Any]:
    """What a recipe may say of a model, and the kind of each."""
    hints = get_type_hints(zoo.FlowppConfig if model == "flowpp" else MODELS[model])
    known = {size: hints[size] for size in _parameters(model)}
    return {"config": str, **known} if model == "flowpp" else known


def _defaults(model: str) -> dict[str, Any]:
    return {size: each.default for size, each in _parameters(model).items() if each.default is not Parameter.empty}


def _with_defaults(model: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """All sizes of a model, lists as tuples, so that two that build the same are the same."""
    return {**_defaults(model), **{key: tuples(value) for key, value in sizes.items()}}


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value of TOML is of a kind; a list stands for a tuple, a whole number for a number."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_is_of(value, each) for each in inner)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in inner)
    if origin is tuple and Ellipsis not in inner:
        return isinstance(value, list) and len(value) == len(inner) and all(map(_is_of, value, inner))
    if origin in (tuple, Sequence):
        return isinstance(value, list) and all(_is_of(each, inner[0]) for each in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _in_words(hint: Any) -> str:
    """A kind, for messages; TOML has no None."""
    origin, inner = get_origin(hint), [each for each in get_args(hint) if each is not type(None)]
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_in_words, inner)))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple and Ellipsis not in inner:
        return f"[{', '.join(map(_in_words, inner))}]"
    if origin in (tuple, Sequence):
        return f"a list, of {_in_words(inner[0])} each"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a text"}
    return words[hint]


def _text(file: Any) -> str:
    """What is in a file of TOML, which is UTF-8 whatever the machine's own encoding.

    Raises:
        ValueError: if it is of another encoding.
        OSError: if it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not TOML, which is UTF-8: {error}") from None


def _content(config: str) -> tuple[str, dict[str, Any]]:
    path = Path(config)
    if path.suffix == ".toml":
        text, name = _text(path), path.stem
    else:
        file = resources.files("flowkit.train") / "configs" / f"{config}.toml"
        if config not in available():
            raise ValueError(f"config is {config!r}, wanted a path ending in .toml, or one of {', '.join(available())}")
        text, name = _text(file), config
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
