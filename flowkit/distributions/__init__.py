"""Bases: densities in closed form, to start a flow from."""

from flowkit.distributions.location_scale import Logistic, Normal
from flowkit.distributions.uniform import Uniform

__all__ = ["Logistic", "Normal", "Uniform"]
