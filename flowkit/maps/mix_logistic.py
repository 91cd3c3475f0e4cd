"""The logit of a mixture of logistic CDFs: Flow++'s map."""

from __future__ import annotations

from torch import Tensor

from flowkit.functional.logistic import logit_mix_logistic_cdf, logit_mix_logistic_cdf_inverse
from flowkit.functional.precision import log_term_dtype
from flowkit.maps.affine import Affine
from flowkit.transform import Map

__all__ = ["MixLogistic"]


class MixLogistic(Map):
    """z = logit(F(x)) exp(s) + t, F the CDF of a mixture of logistics; back by a bracketed Newton search.

    Log-term: log of d logit(F) / dx, plus s. The 2 + 3K parameters of an element are, in this order, (r, t) of the
    outer affine map with s = tanh(r), then K logits of the weights, K means and K log-scales. Log-scales below
    `min_log_scale` count as `min_log_scale`, without gradient. All parameters 0 is the identity.

    Args:
        components: K, at least 1.
        min_log_scale: the floor under the log-scales; the paper's code has -7.

    Shapes:
        x, z, l: (*batch); context: (*batch, 2 + 3K).

    Raises:
        ValueError: for fewer than one component.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, section 3.2.1, https://arxiv.org/abs/1902.00275.

    >>> import torch
    >>> mix = MixLogistic(components=4)
    >>> z, log_det = mix(torch.tensor([-2.0, 30.0]), torch.zeros(2, mix.num_params))
    >>> torch.allclose(z, torch.tensor([-2.0, 30.0])), torch.allclose(log_det, torch.zeros(2), atol=1e-6)
    (True, True)
    """

    def __init__(self, components: int, min_log_scale: float = -7.0) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"MixLogistic: components is {components}, wanted at least 1")
        self.components, self.min_log_scale = components, min_log_scale
        self.affine = Affine(log_scale_bound=1.0)
        self.num_params = self.affine.num_params + 3 * components

    def _split(self, params: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        affine, logits, means, log_scales = params.split([self.affine.num_params, *[self.components] * 3], dim=-1)
        return affine, (logits, means, log_scales.clamp(min=self.min_log_scale))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        affine, mixture = self._split(self.parameters_for(x, context))
        y, log_slope = logit_mix_logistic_cdf(x, *mixture)
        z, log_scale = self.affine(y, affine)
        return z, log_slope.to(log_term_dtype(x.dtype)) + log_scale

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        affine, mixture = self._split(self.parameters_for(z, context))
        y, log_scale = self.affine.inverse(z, affine)
        x, log_slope = logit_mix_logistic_cdf_inverse(y, *mixture)
        return x, log_slope.to(log_term_dtype(z.dtype)) + log_scale

    def extra_repr(self) -> str:
        return f"components={self.components}"
