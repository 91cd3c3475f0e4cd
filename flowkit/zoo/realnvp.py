"""RealNVP (Dinh, Sohl-Dickstein, Bengio, 2017, https://arxiv.org/abs/1605.08803), assembled from the parts.

Beside the paper: equations 4 and 5 are `Coupling` with `Affine`, section 3.4 is `Masked`, 3.5 is `alternating`, 3.6 is
`scale`, 3.7 is `BatchNorm`, and 4.1 has the rest: `LearnedScale`, the logit, the sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flowkit.arguments import count, image_shape, vector_size, widths_of
from flowkit.bijectors import BatchNorm, Coupling, Flip, Logit, PairCheckerboard, Permute, Squeeze
from flowkit.distributions import Normal
from flowkit.flow import Flow
from flowkit.functional import pair_checkerboard, unpair_checkerboard
from flowkit.maps import Affine
from flowkit.nets import MLP, ResidualConvNet
from flowkit.surjections import Slice, UniformDequantizer
from flowkit.transform import Chain, Transform, within
from flowkit.zoo.nice import odd_and_even

__all__ = ["realnvp", "realnvp_tabular"]


class LearnedScale(nn.Module):
    """Section 4.1: s is "a hyperbolic tangent function multiplied by a learned scale", and t is affine."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, half: Tensor, context: Tensor | None = None) -> Tensor:
        raw, shift = self.net(half, context).unbind(-1)
        return torch.stack([self.scale * raw.tanh(), shift], dim=-1)


class Masked(nn.Module):
    """Equation 9: the net sees b ⊙ x, the image with zeros in the place of the other half of a checkerboard.

    Its half comes as part of a pair, (*batch, 1, C, H, W/2), and so goes what it says of the other half. A convolution
    over the half by itself would find neighbours at other places in even rows than in odd ones.

    Args:
        net: `net(image, context)` gives (*batch, C, H, W, out).
        odd: whether the half that it sees has the squares of odd row + column.
    """

    def __init__(self, net: nn.Module, odd: bool) -> None:
        super().__init__()
        self.net, self.odd = net, odd

    def forward(self, half: Tensor, context: Tensor | None = None) -> Tensor:
        zeros = torch.zeros_like(half)
        image = unpair_checkerboard(torch.cat([zeros, half] if self.odd else [half, zeros], dim=-4))
        pair = pair_checkerboard(self.net(image, context).movedim(-1, -4))
        other = pair.narrow(-4, 0 if self.odd else 1, 1)  # (*batch, out, 1, C, H, W/2)
        return other.movedim(-5, -1)


def alternating(couplings: int, step: Callable[[int], Sequence[Transform]], dim: int) -> list[Transform]:
    """Section 3.5: what one coupling leaves unchanged is updated in the next; the odd ones see the halves exchanged."""
    return [within(Flip(dim), *step(i)) if i % 2 else Chain(*step(i)) for i in range(couplings)]


def scale(shape: tuple[int, int, int], filters: int, blocks: int, context: int, *, last: bool) -> dict[str, Transform]:
    """Section 3.6: couplings on a checkerboard, squeeze, couplings on channels, factor half out.

    Three and three couplings; at the last scale four, on the checkerboard. After the squeeze features are doubled.
    """
    c, h, w = shape

    def checkerboard(i: int) -> list[Transform]:
        map = Affine()
        net = ResidualConvNet((c, h, w), map.num_params, filters=filters, blocks=blocks, context=context)
        return [Coupling(map, Masked(LearnedScale(net), odd=bool(i % 2)), dim=-4), BatchNorm((2, c, 1, 1))]

    def channels(i: int) -> list[Transform]:
        map = Affine()
        half = (2 * c, h // 2, w // 2)
        net = ResidualConvNet(half, map.num_params, filters=2 * filters, blocks=blocks, context=context)
        return [Coupling(map, LearnedScale(net), dim=-3), BatchNorm((4 * c, 1, 1))]

    pairs = within(PairCheckerboard(), *alternating(4 if last else 3, checkerboard, dim=-4))
    if last:
        return {"checkerboard": pairs}
    return {
        "checkerboard": pairs,
        "squeeze": Squeeze(),
        "channels": Chain(*alternating(3, channels, dim=-3)),
        "diagonal": diagonal_first(c),
        "factor_out": Slice(2 * c, Normal((2 * c, h // 2, w // 2)), dim=-3),
    }


def diagonal_first(channels: int) -> Permute:
    """Of each block of 2 x 2 pixels the diagonal goes on, and the rest is factored out, as in the published code."""
    return Permute([4 * channel + square for square in (0, 3, 1, 2) for channel in range(channels)], dim=-3)


def realnvp(
    shape: tuple[int, int, int] = (3, 32, 32),
    *,
    levels: int = 256,
    scales: int = 2,
    filters: int = 64,
    blocks: int = 8,
    context_shape: int | tuple[int] | None = None,
) -> Flow:
    """RealNVP over integer images: affine couplings on checkerboards and channels, at several scales.

    The defaults are the paper's model of CIFAR-10 (section 4.1): 8 residual blocks, 64 features, downscaled once. Its
    other sizes: `scales=4, filters=32, blocks=4` for ImageNet 32, and `scales=5, filters=32, blocks=2` for images of
    64 x 64, so that the last scale is 4 x 4.

    There is batch norm in the nets and behind every coupling: train in train mode, evaluate and sample in eval mode.
    `log_prob` is one draw of a lower bound (`exact` is False).

    Args:
        shape: (C, H, W) of the images.
        levels: integers per element, 256 for 8 bits.
        scales: how many; 1 is couplings on a checkerboard alone. The height is a multiple of 2^(scales - 1), and the
            width of 2^scales.
        filters: features of the nets at the first checkerboard; doubled by every squeeze.
        blocks: residual blocks of every net.
        context_shape: (size,), or size, of a context vector, which every net reads; None for no context. The paper's
            model has none.

    Shapes:
        x: (*batch, C, H, W), integers from 0 to levels - 1; log_prob: (*batch); context: (*batch, size).

    Raises:
        ValueError: for an impossible size.

    Reference:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, https://arxiv.org/abs/1605.08803, and
        its published code, https://github.com/tensorflow/models (real_nvp).

    >>> flow = realnvp((1, 8, 8), levels=17, filters=4, blocks=1)
    >>> flow.eval().sample((2,)).shape, flow.exact
    (torch.Size([2, 1, 8, 8]), False)
    """
    c, h, w = image_shape("realnvp", shape)
    scales, blocks = count("realnvp", "scales", scales), count("realnvp", "blocks", blocks)
    filters, context = count("realnvp", "filters", filters), vector_size("realnvp", context_shape)
    if h % 2 ** (scales - 1) or w % 2**scales:
        raise ValueError(
            f"realnvp: shape is {(c, h, w)}, wanted a height that is a multiple of {2 ** (scales - 1)} and a "
            f"width that is one of {2**scales}, for {scales} scales"
        )
    # x / levels from 0 to 1 goes to the logits of 0.05 to 0.95.
    parts: dict[str, Transform] = {"dequantize": UniformDequantizer(levels), "logit": Logit(margin=0.05)}
    for i in range(scales):
        last = i == scales - 1
        parts[f"scale{i + 1}"] = Chain(**scale((c, h, w), filters * 2**i, blocks, context, last=last))
        if not last:
            c, h, w = 2 * c, h // 2, w // 2
    return Flow(Chain(**parts), Normal((c, h, w)), context_shape=context_shape)


def realnvp_tabular(
    features: int,
    *,
    couplings: int = 8,
    hidden: int | Sequence[int] = (64, 64),
    batch_norm: bool = False,
    context_shape: int | tuple[int] | None = None,
) -> Flow:
    """RealNVP over vectors: affine couplings of odd and even components; the density is exact.

    The paper has images alone; this is its coupling (equations 4 and 5, the scale as in section 4.1) with rectified
    nets. The defaults are ours.

    Args:
        features: size of the vector.
        couplings: how many; every component is changed from 2 on.
        hidden: widths of the hidden layers of each coupling's net; an int for one.
        batch_norm: whether batch norm follows every coupling; then train in train mode, evaluate and sample in eval
            mode.
        context_shape: (size,), or size, of a context vector, which joins the input of every net; None for no context.

    Shapes:
        x: (*batch, features); log_prob: (*batch).

    Raises:
        ValueError: for an impossible size.

    Reference:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, https://arxiv.org/abs/1605.08803.

    >>> import torch
    >>> flow = realnvp_tabular(3, couplings=4, context_shape=(2,))
    >>> flow.log_prob(torch.zeros(5, 3), torch.zeros(5, 2)).shape, flow.exact
    (torch.Size([5]), True)
    """
    features = count("realnvp_tabular", "features", features, 2)
    couplings = count("realnvp_tabular", "couplings", couplings)
    hidden = widths_of("realnvp_tabular", hidden)
    context = vector_size("realnvp_tabular", context_shape)
    first = features // 2

    def step(i: int) -> list[Transform]:
        map = Affine()
        net = MLP((first,), (features - first, map.num_params), hidden, context, activation=nn.ReLU)
        norm = [BatchNorm((features,))] if batch_norm else []
        return [Coupling(map, LearnedScale(net), dim=-1), *norm]

    parts = Chain(split=odd_and_even(features), couplings=Chain(*alternating(couplings, step, dim=-1)))
    return Flow(parts, Normal((features,)), context_shape=context_shape)
