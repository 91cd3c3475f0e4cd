"""The logit of a mixture of logistic CDFs: Flow++'s map."""

from __future__ import annotations

from flowkit.functional.logistic import logit_mix_logistic_cdf, logit_mix_logistic_cdf_inverse
from flowkit.maps.mixture import Mixture

__all__ = ["MixLogistic"]


class MixLogistic(Mixture):
    """z = logit(F(x)) exp(s) + t, F the CDF of a mixture of logistics; back by a bracketed Newton search.

    Log-term: log of d logit(F) / dx, plus s. The 2 + 3K parameters of an element are, in this order, (r, t) of the
    outer affine map with s = tanh(r), then K logits of the weights, K means and K log-scales. Log-scales below
    `min_log_scale` count as `min_log_scale`, without gradient. All parameters 0 is the identity.

    Args:
        components: K, at least 1.
        min_log_scale: the floor under the log-scales; the paper's code has -7.

    Shapes:
        x, z, l: (*batch), float32 or float64; context: (*batch, 2 + 3K).

    Domain: log-scales up to 80 in float32 and 700 in float64. There is no ceiling: beyond, values saturate, up to NaN.

    Raises:
        ValueError: for fewer than one component, or a floor that is not finite.
        DomainError: for x or z of another dtype.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, section 3.2.1, https://arxiv.org/abs/1902.00275.

    >>> import torch
    >>> mix = MixLogistic(components=4)
    >>> z, log_det = mix(torch.tensor([-2.0, 30.0]), torch.zeros(2, mix.num_params))
    >>> torch.allclose(z, torch.tensor([-2.0, 30.0])), torch.allclose(log_det, torch.zeros(2), atol=1e-6)
    (True, True)
    """

    _cdf = staticmethod(logit_mix_logistic_cdf)
    _cdf_inverse = staticmethod(logit_mix_logistic_cdf_inverse)
