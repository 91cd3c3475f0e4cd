"""What maps by the CDF of a mixture share."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from flowkit.arguments import count, finite
from flowkit.functional.precision import log_term_dtype
from flowkit.maps.affine import Affine
from flowkit.transform import Map

__all__ = ["Mixture"]


class Mixture(Map):
    """A quantile function of the CDF of a mixture of its own kind, then an affine map with a bounded scale."""

    @staticmethod
    @abstractmethod
    def _cdf(x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx."""

    @staticmethod
    @abstractmethod
    def _cdf_inverse(y: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        """x and log dx/dy."""

    def __init__(self, components: int, min_log_scale: float = -7.0) -> None:
        super().__init__()
        part = type(self).__name__
        self.components = count(part, "components", components)
        self.min_log_scale = finite(part, "min_log_scale", min_log_scale)
        self.affine = Affine(log_scale_bound=1.0)
        self.num_params = self.affine.num_params + 3 * self.components

    @property
    def start(self) -> Tensor:
        """Means from -1 to 1, and 0 otherwise: components that are alike have one gradient, and stay alike."""
        start = super().start
        _, (_, means, _) = self._split(start)
        if self.components > 1:
            means.copy_(torch.linspace(-1, 1, self.components))
        return start

    def _split(self, params: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        affine, logits, means, log_scales = params.split([self.affine.num_params, *[self.components] * 3], dim=-1)
        return affine, (logits, means, log_scales.clamp(min=self.min_log_scale))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.refuse_half("x", x)
        affine, mixture = self._split(self.parameters_for(x, context))
        y, log_slope = self._cdf(x, *mixture)
        z, log_scale = self.affine(y, affine)
        return z, log_slope.to(log_term_dtype(x.dtype)) + log_scale

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.refuse_half("z", z)
        affine, mixture = self._split(self.parameters_for(z, context))
        y, log_scale = self.affine.inverse(z, affine)
        x, log_slope = self._cdf_inverse(y, *mixture)
        return x, log_slope.to(log_term_dtype(z.dtype)) + log_scale

    def named_params(self, params: Tensor) -> dict[str, Tensor]:
        affine, mixture = self._split(params)
        named = dict(zip(("logits", "means", "log_scales"), mixture, strict=True))
        return {**named, **self.affine.named_params(affine)}

    def extra_repr(self) -> str:
        return f"components={self.components}"
