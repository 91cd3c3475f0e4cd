"""Bijectors on whole events."""

from flowkit.bijectors.autoregressive import Autoregressive
from flowkit.bijectors.coupling import AffineCoupling, Coupling, MixLogisticCDFCoupling
from flowkit.bijectors.elementwise import Elementwise, FromContext
from flowkit.bijectors.functions import Exp, LeakyReLU, Power, ScaleShift, Softplus
from flowkit.bijectors.linear import Conv1x1, HouseholderLinear, LUConv1x1, LULinear, MatrixExpLinear, QRLinear
from flowkit.bijectors.norm import ActNorm, BatchNorm
from flowkit.bijectors.reshape import (
    Flip,
    PairChannels,
    PairCheckerboard,
    PairColumns,
    Partition,
    Permute,
    Squeeze,
)
from flowkit.bijectors.squash import Logit, Sigmoid, Tanh

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "Autoregressive",
    "BatchNorm",
    "Conv1x1",
    "Coupling",
    "Elementwise",
    "Exp",
    "Flip",
    "FromContext",
    "HouseholderLinear",
    "LUConv1x1",
    "LULinear",
    "LeakyReLU",
    "Logit",
    "MatrixExpLinear",
    "MixLogisticCDFCoupling",
    "PairChannels",
    "PairCheckerboard",
    "PairColumns",
    "Partition",
    "Permute",
    "Power",
    "QRLinear",
    "ScaleShift",
    "Sigmoid",
    "Softplus",
    "Squeeze",
    "Tanh",
]
