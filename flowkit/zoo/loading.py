"""Any trained model of the zoo, by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from flowkit.flow import Flow
from flowkit.zoo import registry
from flowkit.zoo.files import WeightsError
from flowkit.zoo.flowpp import restore

__all__ = ["load"]

# What makes a flow of a card and its tensors, by the model that the card names.
MODELS: dict[str, Callable[[dict[str, Any], dict[str, Tensor], str], Flow]] = {"flowpp": restore}


def load(name: str | Path) -> Flow:
    """A trained flow, in eval mode; its files are fetched if need be.

    Args:
        name: one of `available`; or the path of a card, `*.json`, that `save` wrote.

    Raises:
        ValueError: for an unknown name, with those there are.
        WeightsError: if the card is damaged, or the files cannot be had or are not those that the card describes.

    >>> flow = load("flowpp-digits")
    >>> tuple(flow.event_shape), flow.training
    ((1, 8, 8), False)
    """
    found, tensors = registry.read(name)
    if found["model"] not in MODELS:
        raise WeightsError(f"{name}: model is {found['model']!r}, wanted one of {', '.join(MODELS)}")
    return MODELS[found["model"]](found, tensors, str(name))
