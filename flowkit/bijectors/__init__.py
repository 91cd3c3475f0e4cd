"""Bijectors on whole events."""

from flowkit.bijectors.coupling import AffineCoupling, Coupling, MixLogisticCDFCoupling
from flowkit.bijectors.elementwise import Elementwise, FromContext
from flowkit.bijectors.linear import Conv1x1
from flowkit.bijectors.norm import ActNorm
from flowkit.bijectors.reshape import Flip, PairChannels, PairCheckerboard, PairColumns, Squeeze
from flowkit.bijectors.squash import Logit, Sigmoid

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "Conv1x1",
    "Coupling",
    "Elementwise",
    "Flip",
    "FromContext",
    "Logit",
    "MixLogisticCDFCoupling",
    "PairChannels",
    "PairCheckerboard",
    "PairColumns",
    "Sigmoid",
    "Squeeze",
]
