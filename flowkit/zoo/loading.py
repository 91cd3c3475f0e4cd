"""Any trained model of the zoo, by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flowkit.flow import Flow
from flowkit.zoo import registry
from flowkit.zoo.files import WeightsError
from flowkit.zoo.flowpp import from_config
from flowkit.zoo.glow import glow
from flowkit.zoo.maf import iaf, maf
from flowkit.zoo.nice import nice
from flowkit.zoo.nsf import nsf
from flowkit.zoo.realnvp import realnvp, realnvp_tabular

__all__ = ["MODELS", "build", "load"]

# What makes a flow of a card's config, by the model that the card names.
MODELS: dict[str, Callable[..., Flow]] = {
    "flowpp": from_config,
    "glow": glow,
    "iaf": iaf,
    "maf": maf,
    "nice": nice,
    "nsf": nsf,
    "realnvp": realnvp,
    "realnvp_tabular": realnvp_tabular,
}


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
    return registry.restore(MODELS[found["model"]], found, tensors, str(name))


def build(model: str, sizes: Mapping[str, Any]) -> Flow:
    """An untrained flow, by the model and the config of a card.

    Raises:
        ValueError: for an unknown model, or an impossible size.
    """
    if model not in MODELS:
        raise ValueError(f"model is {model!r}, wanted one of {', '.join(MODELS)}")
    return MODELS[model](**{key: registry.tuples(value) for key, value in sizes.items()})
