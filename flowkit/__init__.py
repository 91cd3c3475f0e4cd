"""Normalizing flows on PyTorch: bijectors, dequantizers, distributions, and the models made of them."""

__version__ = "0.1.0"

from flowkit import debugging, functional, maps, metrics, nets, zoo
from flowkit.bijectors import (
    ActNorm,
    AffineCoupling,
    Conv1x1,
    Coupling,
    Elementwise,
    Flip,
    FromContext,
    Logit,
    MixLogisticCDFCoupling,
    PairChannels,
    PairCheckerboard,
    PairColumns,
    Sigmoid,
    Squeeze,
)
from flowkit.distribution import Distribution
from flowkit.distributions import Logistic, Normal, Uniform
from flowkit.errors import DomainError, NotExact, ShapeError
from flowkit.flow import Flow
from flowkit.initialization import initialize
from flowkit.surjections import UniformDequantizer, VariationalDequantizer
from flowkit.transform import Bijector, Chain, Inverse, Map, Transform, within

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "Bijector",
    "Chain",
    "Conv1x1",
    "Coupling",
    "Distribution",
    "DomainError",
    "Elementwise",
    "Flip",
    "Flow",
    "FromContext",
    "Inverse",
    "Logistic",
    "Logit",
    "Map",
    "MixLogisticCDFCoupling",
    "Normal",
    "NotExact",
    "PairChannels",
    "PairCheckerboard",
    "PairColumns",
    "ShapeError",
    "Sigmoid",
    "Squeeze",
    "Transform",
    "Uniform",
    "UniformDequantizer",
    "VariationalDequantizer",
    "debugging",
    "functional",
    "initialize",
    "maps",
    "metrics",
    "nets",
    "within",
    "zoo",
]
