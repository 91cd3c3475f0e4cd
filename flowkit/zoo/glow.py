"""Glow (Kingma, Dhariwal, 2018, https://arxiv.org/abs/1807.03039), assembled from the parts.

Beside the paper: table 1 and figure 2a are `step`, figure 2b is `glow`, and the prior of what is factored out, which
the paper leaves to its code, is `prior`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from flowkit.arguments import count, image_shape, vector_size
from flowkit.bijectors import ActNorm, Conv1x1, Coupling, FromContext, LUConv1x1, Permute, ScaleShift, Squeeze
from flowkit.distribution import Distribution
from flowkit.distributions import Normal
from flowkit.flow import Flow
from flowkit.functional.reduce import flatten_batch
from flowkit.maps import Additive, Affine
from flowkit.nets import ConvNet, ZeroConv2d
from flowkit.surjections import Slice, UniformDequantizer
from flowkit.transform import Chain, Map, Transform

__all__ = ["glow"]


class SigmoidScale(nn.Module):
    """The published code's scale of a coupling, sigmoid(raw + 2), where table 1 has exp(raw): below 1 in every step.

    Off the data a trained net goes on straight, and then exp(raw) overflows: inf in one step is NaN in the next.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, half: Tensor, context: Tensor | None = None) -> Tensor:
        raw, shift = self.net(half, context).unbind(-1)
        return torch.stack([logsigmoid(raw + 2), shift], dim=-1)


def step(shape: tuple[int, int, int], filters: int, *, additive: bool, lu: bool, context: int) -> Chain:
    """Figure 2a and table 1: activation norm per channel, an invertible 1x1 convolution, a coupling of channels."""
    c, h, w = shape
    map: Map = Additive() if additive else Affine()
    net: nn.Module = ConvNet((c // 2, h, w), map.num_params, filters=filters, context=context)
    net = net if additive else SigmoidScale(net)
    return Chain(norm=ActNorm((c, 1, 1)), mix=rotation(shape, lu), couple=Coupling(map, net, dim=-3))


def rotation(shape: tuple[int, int, int], lu: bool) -> Transform:
    """Section 3.2: a 1x1 convolution that starts as a random rotation; perhaps in its LU form, of equation 10.

    That is W = P L U D, where P and the signs D stay as the rotation has them, so that U keeps a positive diagonal.
    """
    if not lu:
        mix = Conv1x1(shape)
        nn.init.orthogonal_(mix.weight)
        return mix
    channels = shape[0]
    with torch.device("cpu"):
        permutation, lower, upper = torch.linalg.lu(nn.init.orthogonal_(torch.empty(channels, channels)))
        signs = upper.diagonal().sign()
        upper = upper * signs
        factors = lower.tril(-1) + upper.triu(1) + upper.diagonal().log().diag()
    triangular = LUConv1x1(shape)
    with torch.no_grad():
        triangular.matrix.factors.copy_(factors)
    signs = signs.reshape(channels, 1, 1).to(triangular.matrix.factors.device)
    return Chain(
        signs=ScaleShift(signs, 0.0), triangular=triangular, permute=Permute(permutation.argmax(1).tolist(), dim=-3)
    )


class MeanAndDeviation(nn.Module):
    """Mean and log-deviation of what is factored out, read off what is kept: a 3x3 convolution that starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ZeroConv2d(channels, 2 * channels)

    def forward(self, kept: Tensor) -> Tensor:
        log_deviation, mean = flatten_batch(self.conv, kept, 3).chunk(2, dim=-3)
        return torch.stack([log_deviation, mean], dim=-1)


class OfClass(nn.Module):
    """Mean and log-deviation of the last latent, per channel, linear in the context, from 0."""

    def __init__(self, shape: tuple[int, int, int], context: int) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(context, 2 * shape[0])
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, context: Tensor) -> Tensor:
        channels = self.linear(context).unflatten(-1, (self.shape[0], 1, 1, 2))
        return channels.expand(*context.shape[:-1], *self.shape, 2)


def normal_of(net: nn.Module) -> Transform:
    """To standard normals from those of a mean and a log-deviation that a net reads off the context.

    The log-deviation stays within 7, for the reason that `SigmoidScale` has.
    """
    return FromContext(Affine(log_scale_bound=7.0), net, event_ndim=3).inv


def prior(shape: tuple[int, int, int]) -> Distribution:
    """p(b | a) of the half b of the channels that is factored out, given the half a that is kept."""
    return Flow(normal_of(MeanAndDeviation(shape[0])), Normal(shape), context_shape=shape)


def glow(
    shape: tuple[int, int, int] = (3, 32, 32),
    *,
    levels: int = 256,
    scales: int = 3,
    steps: int = 32,
    filters: int = 512,
    coupling: Literal["affine", "additive"] = "affine",
    lu: bool = False,
    learned_prior: bool = True,
    context_shape: int | tuple[int] | None = None,
) -> Flow:
    """Glow over integer images: at every scale squeeze, `steps` steps of flow, factor half of the channels out.

    The defaults are the paper's model of CIFAR-10 (K = 32 steps, L = 3 scales). Its couplings have the scale of the
    published code, sigmoid(raw + 2); exp(raw), as the paper writes it, overflows on images unlike those of the
    training. `log_prob` is one draw of a lower bound (`exact` is False). A new model is to be initialized from data,
    `flowkit.initialize(flow, batch)`, and trained.

    Args:
        shape: (C, H, W) of the images, H and W multiples of 2^scales.
        levels: integers per element, 256 for 8 bits, 32 for 5.
        scales: L of the paper, which calls them levels.
        steps: K, steps of flow at each scale.
        filters: width of the couplings' nets.
        coupling: "affine" or "additive".
        lu: whether 1x1 convolutions are by LU.
        learned_prior: whether the last latent's normal has a mean and a deviation for each channel, as a last norm.
        context_shape: (size,), or size, of a context vector, such as a class in one-hot form: mean and deviation of the
            last latent are linear in it, as in the published code, and every coupling's net reads it. None for no
            context.

    Shapes:
        x: (*batch, C, H, W), integers from 0 to levels - 1; log_prob: (*batch); context: (*batch, size).

    Raises:
        ValueError: for an impossible size, or an unknown coupling.

    Reference:
        Kingma, Dhariwal, "Glow: Generative flow with invertible 1x1 convolutions", 2018,
        https://arxiv.org/abs/1807.03039, and its published code, https://github.com/openai/glow.

    The default has 44,052,816 parameters, 96 of them in the last prior. (The published code has 466,884 more: its 3x3
    convolutions read a further channel, which marks the padding. Its own last prior has another form.)

    >>> import torch
    >>> with torch.device("meta"):
    ...     flow = glow()
    >>> sum(parameter.numel() for parameter in flow.parameters())
    44052816
    >>> flow.event_shape, flow.base.event_shape, flow.exact
    (torch.Size([3, 32, 32]), torch.Size([48, 4, 4]), False)
    """
    c, h, w = image_shape("glow", shape)
    scales, steps = count("glow", "scales", scales), count("glow", "steps", steps)
    filters = count("glow", "filters", filters)
    context = vector_size("glow", context_shape)
    if coupling not in ("affine", "additive"):
        raise ValueError(f"glow: coupling is {coupling!r}, wanted 'affine' or 'additive'")
    if h % 2**scales or w % 2**scales:
        raise ValueError(
            f"glow: shape is {(c, h, w)}, wanted a height and a width that are multiples of {2**scales}, "
            f"for {scales} scales"
        )
    parts: dict[str, Transform] = {
        "dequantize": UniformDequantizer(levels),
        "center": ScaleShift(1.0, -0.5, domain=constraints.unit_interval),
    }
    for i in range(scales):
        c, h, w = 4 * c, h // 2, w // 2
        flow = (step((c, h, w), filters, additive=coupling == "additive", lu=lu, context=context) for _ in range(steps))
        parts[f"scale{i + 1}"] = Chain(squeeze=Squeeze(), steps=Chain(*flow))
        if i < scales - 1:
            c = c // 2
            parts[f"factor_out{i + 1}"] = Slice(c, prior((c, h, w)), dim=-3)
    if context:
        parts["prior"] = normal_of(OfClass((c, h, w), context))
    elif learned_prior:
        parts["prior"] = ActNorm((c, 1, 1))
    return Flow(Chain(**parts), Normal((c, h, w)), context_shape=context_shape)
