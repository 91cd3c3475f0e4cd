"""Trained weights: names, files, hashes, cards; safetensors in and out."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["WeightsError", "available", "card", "load", "read"]


class WeightsError(ValueError):
    """A weights file is damaged, foreign, or does not fit the model."""


def _folder() -> Traversable:
    return resources.files("flowkit.zoo") / "weights"


def _cards(model: str) -> dict[str, dict[str, Any]]:
    """The cards of a model's weights, by the name the user gives."""
    prefix, suffix = f"{model}-", ".json"
    return {
        file.name.removeprefix(prefix).removesuffix(suffix): json.loads(file.read_text())
        for file in sorted(_folder().iterdir(), key=lambda file: file.name)
        if file.name.startswith(prefix) and file.name.endswith(suffix)
    }


def available(model: str = "flowpp") -> dict[str, float]:
    """The names of a model's trained weights, with their bits/dim on held-out data.

    >>> sorted(available())
    ['digits']
    """
    return {name: card["bits_per_dim"] for name, card in _cards(model).items()}


def card(model: str, name: str) -> dict[str, Any]:
    """What is known of trained weights: data, split, steps, seed, bits/dim and how it was measured, hash, config.

    Raises:
        ValueError: for an unknown name, with those there are.
    """
    cards = _cards(model)
    if name not in cards:
        raise ValueError(f"{model}: pretrained is {name!r}, wanted one of {', '.join(cards) or '(there are none)'}")
    return cards[name]


def read(model: str, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Card and tensors of trained weights, after their hash was checked. Nothing is ever unpickled.

    Raises:
        ValueError: for an unknown name.
        WeightsError: if the file is not the one that the card describes.
    """
    found = card(model, name)
    try:
        content = (_folder() / f"{model}-{name}.safetensors").read_bytes()
    except FileNotFoundError:
        raise WeightsError(f"{model}-{name}.safetensors: the card is there, but not the weights beside it") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != found["sha256"]:
        raise WeightsError(
            f"{model}-{name}.safetensors: {len(content)} bytes with SHA-256 {digest}, "
            f"wanted {found['size']} bytes with {found['sha256']}: the file is damaged or not this release's"
        )
    return found, parse(content, f"{model}-{name}.safetensors")


def parse(content: bytes, source: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        WeightsError: if it is none, or cut short.
    """
    try:
        return load_safetensors(content)
    except SafetensorError as error:
        raise WeightsError(f"{source}: not a whole safetensors file ({error})") from None


def load(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Copy `tensors` into `module`; every key and every shape must fit.

    Raises:
        WeightsError: naming the keys that are missing or too many, or the shape that differs.
    """
    wanted = module.state_dict()
    for what, keys in (("lacks", wanted.keys() - tensors.keys()), ("has unknown", tensors.keys() - wanted.keys())):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise WeightsError(f"{source} {what} {min(keys)}{more}")
    for key, value in wanted.items():
        if tensors[key].shape != value.shape:
            raise WeightsError(f"{source}: {key} is {tuple(tensors[key].shape)}, wanted {tuple(value.shape)}")
    with torch.no_grad():
        module.load_state_dict(tensors)
