"""The normal quantile of a mixture-of-Gaussians CDF."""

from __future__ import annotations

from flowkit.functional.mix_gaussian import probit_mix_gaussian_cdf, probit_mix_gaussian_cdf_inverse
from flowkit.maps.mixture import Mixture

__all__ = ["MixGaussian"]


class MixGaussian(Mixture):
    """z = probit(F(x)) exp(s) + t, F the CDF of a mixture of normals; back by a bracketed Newton search.

    The probit is the normal quantile, so that a standard normal base makes F the distribution of x, but for s and t.
    Log-term: log of d probit(F) / dx, plus s. The 2 + 3K parameters of an element are, in this order, (r, t) of the
    outer affine map with s = tanh(r), then K logits of the weights, K means and K log-scales. Log-scales below
    `min_log_scale` count as `min_log_scale`, without gradient. All parameters 0 is the identity.

    Args:
        components: K, at least 1.
        min_log_scale: the floor under the log-scales.

    Shapes:
        x, z, l: (*batch), float32 or float64; context: (*batch, 2 + 3K).

    Domain: log-scales up to 40 in float32 and 350 in float64. There is no ceiling: beyond, values saturate, up to NaN.

    Raises:
        ValueError: for fewer than one component, or a floor that is not finite.
        DomainError: for x or z of another dtype.

    Reference:
        Chen, Gopinath, "Gaussianization", NIPS 2000; as a layer of a flow, with logistics, Meng, Song, Song, Ermon,
        "Gaussianization Flows", 2020, https://arxiv.org/abs/2003.01941.

    >>> import torch
    >>> mix = MixGaussian(components=4)
    >>> z, log_det = mix(torch.tensor([-2.0, 30.0]), torch.zeros(2, mix.num_params))
    >>> torch.allclose(z, torch.tensor([-2.0, 30.0])), torch.allclose(log_det, torch.zeros(2), atol=1e-5)
    (True, True)
    """

    _cdf = staticmethod(probit_mix_gaussian_cdf)
    _cdf_inverse = staticmethod(probit_mix_gaussian_cdf_inverse)
