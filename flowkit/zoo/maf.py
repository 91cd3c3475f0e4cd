"""Masked and inverse autoregressive flows: the same layers, run in opposite directions.

Beside the papers: Papamakarios, Pavlakou, Murray, "Masked Autoregressive Flow for Density Estimation", 2017
(https://arxiv.org/abs/1705.07057), section 3, is `maf`; Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling,
"Improved Variational Inference with Inverse Autoregressive Flow", 2016 (https://arxiv.org/abs/1606.04934), section 4,
is `iaf`. That one is the other turned round is section 3.2 of the first.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from flowkit.arguments import count, vector_size, widths_of
from flowkit.bijectors import Autoregressive, BatchNorm
from flowkit.distributions import Normal
from flowkit.flow import Flow
from flowkit.maps import Affine
from flowkit.nets import MADE
from flowkit.transform import Chain, Transform

__all__ = ["iaf", "maf"]


def layer(
    features: int, number: int, hidden: Sequence[int], context: int, activation: type[nn.Module]
) -> Autoregressive:
    """Equations 3 to 5 of the first paper: an affine map of each feature, given those before it, by MADE.

    The paper writes u = (x - mu) exp(-alpha), this map z = x exp(s) + t: s is -alpha, and t is -mu exp(-alpha). The
    order is reversed from layer to layer. s stays within 7: nets go on straight where there were no data, and an
    exponent of 90, which is what they may reach there, gives inf in one layer and NaN in the next.
    """
    affine = Affine(log_scale_bound=7.0)
    order = range(features) if number % 2 == 0 else range(features)[::-1]
    return Autoregressive(affine, MADE(features, affine.num_params, hidden, context, activation, order=order))


def maf(
    features: int,
    transforms: int = 5,
    hidden: int | Sequence[int] = (512, 512),
    *,
    batch_norm: bool = True,
    context_shape: int | Sequence[int] | None = None,
) -> Flow:
    """The masked autoregressive flow: a stack of MADEs, batch norm after each. Densities take one pass of each.

    The defaults are MAF(5) of the paper, with the nets of its middle-sized tables (HEPMASS, MINIBOONE, BSDS300); POWER
    and GAS have 100 hidden units, MNIST 1024. A hyperbolic tangent keeps every scale within exp(-7) and exp(7), so that
    points far from all data have a small density and not an undefined one. In train mode batch norm makes log_prob a
    training loss: see `flowkit.BatchNorm`. Evaluate after `flow.eval()`.

    Args:
        features: of one x.
        transforms: how many MADEs.
        hidden: widths of the hidden layers of each, with ReLU, an int for one; below features - 1 they cut
            dependencies, see `flowkit.nets.MADE`.
        batch_norm: whether batch norm follows each.
        context_shape: (C,) or C for a flow that is conditional on vectors (section 3.4); None for none.

    Shapes:
        x: (*batch, features); context: (*batch, C); log_prob: (*batch).

    Raises:
        ValueError: for sizes below 1, or a context that is no vector.

    Reference:
        Papamakarios, Pavlakou, Murray, "Masked Autoregressive Flow for Density Estimation", 2017,
        https://arxiv.org/abs/1705.07057.

    >>> import torch
    >>> flow = maf(4, hidden=(16,), context_shape=(2,)).eval()
    >>> flow.log_prob(torch.zeros(3, 4), torch.zeros(3, 2)).shape, flow.sample((5,), torch.zeros(3, 2)).shape
    (torch.Size([3]), torch.Size([5, 3, 4]))
    """
    context = vector_size("maf", context_shape)
    features, transforms = count("maf", "features", features), count("maf", "transforms", transforms)
    hidden = widths_of("maf", hidden)

    def step(number: int) -> Chain:
        parts: dict[str, Transform] = {"made": layer(features, number, hidden, context, nn.ReLU)}
        if batch_norm:
            parts["norm"] = BatchNorm((features,))
        return Chain(**parts)

    return Flow(Chain(*map(step, range(transforms))), Normal((features,)), context_shape=context_shape)


def iaf(
    features: int,
    transforms: int = 8,
    hidden: int | Sequence[int] = (320, 320),
    *,
    context_shape: int | Sequence[int] | None = None,
) -> Flow:
    """The inverse autoregressive flow: from noise to sample in one pass of each net, as variational inference needs.

    A step is z_t = mu_t + sigma_t z_(t-1), with mu_t and sigma_t read off z_(t-1) in its order, which is reversed from
    step to step, and off the context (the h of the paper). sigma is exp(s), s within 7 and 0 at the start, in place of
    the gate that the paper's algorithm 1 prefers. `sample_and_log_prob` runs each net once; `log_prob` of anything else
    goes through the features one after another.

    Args:
        features: of one sample.
        transforms: how many steps; the paper has up to 8.
        hidden: widths of the hidden layers of each net, with ELU, an int for one; the paper has 320 and 1920.
            Below features - 1 they cut dependencies, see `flowkit.nets.MADE`.
        context_shape: (C,) or C for a flow that is conditional on vectors, such as an encoder's; None for none.

    Shapes:
        x: (*batch, features); context: (*batch, C); log_prob: (*batch).

    Raises:
        ValueError: for sizes below 1, or a context that is no vector.

    Reference:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling, "Improved Variational Inference with Inverse
        Autoregressive Flow", 2016, https://arxiv.org/abs/1606.04934.

    >>> import torch
    >>> flow = iaf(4, transforms=2, hidden=(16,))
    >>> x, log_prob = flow.sample_and_log_prob((3,))
    >>> torch.allclose(flow.log_prob(x), log_prob, atol=1e-5)
    True
    """
    context = vector_size("iaf", context_shape)
    features, transforms = count("iaf", "features", features), count("iaf", "transforms", transforms)
    hidden = widths_of("iaf", hidden)
    steps = (layer(features, number, hidden, context, nn.ELU) for number in range(transforms))
    return Flow(Chain(*steps).inv, Normal((features,)), context_shape=context_shape)
