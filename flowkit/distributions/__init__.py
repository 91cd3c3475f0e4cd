"""Bases: densities in closed form, to start a flow from."""

from flowkit.distributions.family import Family, Given
from flowkit.distributions.location_scale import Logistic, Normal, StudentT
from flowkit.distributions.mixture import Mixture, MixtureOfNormals
from flowkit.distributions.multivariate_normal import MultivariateNormal
from flowkit.distributions.uniform import Uniform

__all__ = [
    "Family",
    "Given",
    "Logistic",
    "Mixture",
    "MixtureOfNormals",
    "MultivariateNormal",
    "Normal",
    "StudentT",
    "Uniform",
]
