"""Models of papers, assembled from the parts, and their trained weights."""

from flowkit.zoo.flowpp import CONFIGS, FlowppConfig, flowpp
from flowkit.zoo.glow import glow
from flowkit.zoo.maf import iaf, maf
from flowkit.zoo.nice import nice
from flowkit.zoo.nsf import nsf
from flowkit.zoo.realnvp import realnvp, realnvp_tabular
from flowkit.zoo.reference import flowpp_from_reference
from flowkit.zoo.registry import WeightsError, available, card

__all__ = [
    "CONFIGS",
    "FlowppConfig",
    "WeightsError",
    "available",
    "card",
    "flowpp",
    "flowpp_from_reference",
    "glow",
    "iaf",
    "maf",
    "nice",
    "nsf",
    "realnvp",
    "realnvp_tabular",
]
