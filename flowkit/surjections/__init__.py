"""Layers that draw noise in one direction."""

from flowkit.surjections.dequantize import UniformDequantizer, VariationalDequantizer
from flowkit.surjections.slice import Slice

__all__ = [
    "Slice",
    "UniformDequantizer",
    "VariationalDequantizer",
]
