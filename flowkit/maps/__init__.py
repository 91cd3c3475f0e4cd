"""Elementwise bijectors whose parameters arrive as context; schemes decide who supplies them."""

from flowkit.maps.affine import Affine
from flowkit.maps.mix_logistic import MixLogistic

__all__ = ["Affine", "MixLogistic"]
