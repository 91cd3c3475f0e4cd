"""Layers that draw noise in one direction."""

from flowkit.surjections.dequantize import (
    ArgmaxDequantizer,
    BinaryDequantizer,
    UniformDequantizer,
    VariationalDequantizer,
)
from flowkit.surjections.slice import Slice

__all__ = [
    "ArgmaxDequantizer",
    "BinaryDequantizer",
    "Slice",
    "UniformDequantizer",
    "VariationalDequantizer",
]
