"""Elementwise bijectors whose parameters arrive as context; schemes decide who supplies them."""

from flowkit.maps.additive import Additive
from flowkit.maps.affine import Affine
from flowkit.maps.mix_gaussian import MixGaussian
from flowkit.maps.mix_logistic import MixLogistic
from flowkit.maps.scale import Scale
from flowkit.maps.spline import RationalQuadratic

__all__ = ["Additive", "Affine", "MixGaussian", "MixLogistic", "RationalQuadratic", "Scale"]
