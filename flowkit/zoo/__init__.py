"""Models of papers, assembled from the parts, and their trained weights."""

from flowkit.zoo.flowpp import CONFIGS, FlowppConfig, flowpp
from flowkit.zoo.reference import flowpp_from_reference
from flowkit.zoo.registry import WeightsError, available, card

__all__ = ["CONFIGS", "FlowppConfig", "WeightsError", "available", "card", "flowpp", "flowpp_from_reference"]
