"""Neural spline flows (Durkan, Bekasov, Murray, Papamakarios, 2019, https://arxiv.org/abs/1906.04032).

Beside the paper: section 3.1 is `flowkit.maps.RationalQuadratic`, and `nsf` alternates it with linear layers, with the
sizes of the paper's tabular experiments.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from flowkit.arguments import count, vector_size, widths_of
from flowkit.bijectors import Autoregressive, Coupling, LULinear, Permute
from flowkit.distributions import Normal
from flowkit.flow import Flow
from flowkit.maps import RationalQuadratic
from flowkit.nets import MADE, MLP
from flowkit.transform import Bijector, Chain

__all__ = ["nsf"]


def nsf(
    features: int,
    transforms: int = 10,
    hidden: int | Sequence[int] = (256, 256),
    *,
    autoregressive: bool = False,
    bins: int = 8,
    bound: float = 3.0,
    context_shape: int | Sequence[int] | None = None,
) -> Flow:
    """A neural spline flow: linear layers by LU, and between them splines, RQ-NSF (C) or, autoregressive, RQ-NSF (AR).

    The defaults are those for POWER, with no dropout. Features should be standardized, so that most of them lie within
    the bound. In a coupling the half that passes stays as it is: the linear layers move it. The permutations are drawn
    at random, from the global generator, and saved with the parameters.

    Args:
        features: of one x; at least 2 for couplings.
        transforms: how many layers of splines.
        hidden: width of each residual block of the nets, all the same, with ReLU; an int for one block. An
            autoregressive one below features - 1 cuts dependencies, see `flowkit.nets.MADE`.
        autoregressive: whether every feature depends on all before it, with MADE as the net. It fits better, and a
            sample goes through the features one after another.
        bins: of each spline.
        bound: splines map [-bound, bound] and are the identity outside.
        context_shape: (C,) or C for a flow that is conditional on vectors; None for none.

    Shapes:
        x: (*batch, features); context: (*batch, C); log_prob: (*batch).

    Raises:
        ValueError: for sizes below 1, fewer than 2 features to couple, or a context that is no vector.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios, "Neural Spline Flows", 2019, https://arxiv.org/abs/1906.04032.

    >>> import torch
    >>> flow = nsf(3, transforms=2, hidden=(16, 16))
    >>> x, log_prob = flow.sample_and_log_prob((5,))
    >>> torch.allclose(flow.log_prob(x), log_prob, atol=1e-4)
    True
    """
    features = count("nsf", "features", features, 1 if autoregressive else 2)
    transforms = count("nsf", "transforms", transforms)
    hidden = widths_of("nsf", hidden)
    context = vector_size("nsf", context_shape)

    def spline() -> Bijector:
        """The conditioner is a residual net, section 5.1."""
        map = RationalQuadratic(bins, bound)
        if autoregressive:
            return Autoregressive(map, MADE(features, map.num_params, hidden, context, nn.ReLU, residual=True))
        half, rest = features // 2, features - features // 2
        return Coupling(map, MLP((half,), (rest, map.num_params), hidden, context, nn.ReLU, residual=True), dim=-1)

    def linear() -> Chain:
        return Chain(permute=Permute(torch.randperm(features)), lu=LULinear(features))

    steps = [Chain(linear=linear(), spline=spline()) for _ in range(transforms)]
    return Flow(Chain(*steps, linear()), Normal((features,)), context_shape=context_shape)
