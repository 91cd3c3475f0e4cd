"""Models of papers, assembled from the parts, and their trained weights."""

from flowkit.zoo.files import WeightsError
from flowkit.zoo.flowpp import CONFIGS, FlowppConfig, flowpp
from flowkit.zoo.glow import glow
from flowkit.zoo.loading import load
from flowkit.zoo.maf import iaf, maf
from flowkit.zoo.nice import nice
from flowkit.zoo.nsf import nsf
from flowkit.zoo.realnvp import realnvp, realnvp_tabular
from flowkit.zoo.reference import flowpp_from_reference
from flowkit.zoo.registry import available, cache_folder, card, fetch_weights, save

__all__ = [
    "CONFIGS",
    "FlowppConfig",
    "WeightsError",
    "available",
    "cache_folder",
    "card",
    "fetch_weights",
    "flowpp",
    "flowpp_from_reference",
    "glow",
    "iaf",
    "load",
    "maf",
    "nice",
    "nsf",
    "realnvp",
    "realnvp_tabular",
    "save",
]
