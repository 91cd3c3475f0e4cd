"""Conditioners: torch in, torch out. They produce parameters and know nothing of the maps that use them."""

from flowkit.nets.conv import ConvNet, ResidualConvNet, ZeroConv2d
from flowkit.nets.gated import GatedAttention, GatedConv, GatedConvAttention, GatedMaxout, ImageContext
from flowkit.nets.labels import ClassContext, VectorContext
from flowkit.nets.layers import ChannelNorm, Conv2d
from flowkit.nets.made import MADE
from flowkit.nets.mlp import MLP

__all__ = [
    "MADE",
    "MLP",
    "ChannelNorm",
    "ClassContext",
    "Conv2d",
    "ConvNet",
    "GatedAttention",
    "GatedConv",
    "GatedConvAttention",
    "GatedMaxout",
    "ImageContext",
    "ResidualConvNet",
    "VectorContext",
    "ZeroConv2d",
]
