"""Layers that draw noise in one direction."""

from flowkit.surjections.dequantize import UniformDequantizer, VariationalDequantizer

__all__ = ["UniformDequantizer", "VariationalDequantizer"]
