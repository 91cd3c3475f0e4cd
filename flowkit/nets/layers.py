"""Layers of Flow++'s networks: convolutions that initialize themselves from data, norm over channels, concat-ELU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit.arguments import broadcasts
from flowkit.errors import ShapeError

__all__ = ["ChannelNorm", "Conv2d", "concat_elu", "gate", "start_at"]


def start_at(part: str, bias: Tensor, start: Tensor | None, out: tuple[int, ...]) -> None:
    """Fill the bias of a last layer whose weight is 0 with `start`, spread over `out`; 0 for None.

    Raises:
        ShapeError: if `start` is no tensor that broadcasts to `out`.
    """
    if start is None:
        nn.init.zeros_(bias)
        return
    if not isinstance(start, Tensor) or not broadcasts(start.shape, out):
        came = f"has shape {tuple(start.shape)}" if isinstance(start, Tensor) else f"is {start!r}"
        raise ShapeError(f"{part}: start {came}, wanted a tensor that broadcasts to {out}")
    bias.data.copy_(start.expand(out).flatten())


def concat_elu(x: Tensor) -> Tensor:
    """ELU of [x, -x], joined over channels: (batch, C, H, W) to (batch, 2C, H, W)."""
    return F.elu_(torch.cat([x, -x], dim=1))  # in place: backward keeps one tensor of this size and not two


def gate(x: Tensor) -> Tensor:
    """First half of the channels times the sigmoid of the second: (batch, 2C, H, W) to (batch, C, H, W)."""
    value, amount = x.chunk(2, dim=1)
    return value * torch.sigmoid(amount)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (batch, C, H, W), at each pixel by itself.

    Reference:
        Ba, Kiros, Hinton, "Layer normalization", 2016, https://arxiv.org/abs/1607.06450.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Each pixel of x (batch, channels, H, W) normalized over its channels, and scaled."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Conv2d(nn.Module):
    """A convolution of odd kernel, stride 1, zero padding, with a bias, that initializes itself from data.

    `initialize_` scales it so that its response has, per output channel, mean 0 and deviation `init_scale` over
    batch and pixels (biased variance). With weight norm the effective weight is gain * V / |V|, the norm taken over all
    inputs of an output channel; the norm is a layer of our own because torch's parametrization does not pickle.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: side of the kernel, odd; 1 is the same linear map at every pixel.
        weight_norm: whether the weight is V, gain.
        init_scale: deviation of the response after `initialize_`.

    Shapes:
        x: (batch, inputs, H, W); output: (batch, outputs, H, W).

    Reference:
        Salimans, Kingma, "Weight normalization", 2016, https://arxiv.org/abs/1602.07868.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, *, weight_norm: bool = False, init_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.init_scale = init_scale
        self.gain: nn.Parameter | None = None
        weight = nn.Parameter(0.05 * torch.randn(outputs, inputs, kernel, kernel))
        if weight_norm:
            self.direction = weight
            self.gain = nn.Parameter(torch.ones(outputs))
        else:
            self.weight = weight
        self.bias = nn.Parameter(torch.zeros(outputs))

    def _effective_weight(self) -> Tensor:
        if self.gain is None:
            return self.weight
        # The reference's floor of 1e-12 under the squared norm, there for a direction of zeros.
        norm = torch.linalg.vector_norm(self.direction, dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
        return self.direction * (self.gain.reshape(-1, 1, 1, 1) / norm)

    def _respond(self, x: Tensor, bias: Tensor | None) -> Tensor:
        weight = self._effective_weight()
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x: (batch, outputs, H, W)."""
        return self._respond(x, self.bias)

    @torch.no_grad()
    def initialize_(self, x: Tensor) -> None:
        """Set scale and bias from the response to x.

        Raises:
            ValueError: if x is one pixel, a class say, that is the same in every example: nothing to scale by.
        """
        # Near is enough: the same sum, vectorized or not, can differ in its last digit.
        if x[0].numel() == x.shape[1] and torch.allclose(x, x[:1].expand_as(x)):
            raise ValueError(
                f"Conv2d: all {len(x)} inputs are one and the same pixel, wanted several to initialize from"
            )
        # A gain continues from what it is; a plain weight starts from its response without bias.
        response = self._respond(x, None if self.gain is None else self.bias)
        variance, mean = torch.var_mean(response, dim=(0, 2, 3), correction=0)
        factor = self.init_scale * (variance + 1e-8).rsqrt()
        if self.gain is None:
            self.weight.mul_(factor[:, None, None, None])
            self.bias.copy_(-mean * factor)
        else:
            self.gain.mul_(factor)
            self.bias.sub_(mean * factor)

    def extra_repr(self) -> str:
        outputs, inputs, kernel, _ = (self.weight if self.gain is None else self.direction).shape
        norm = "" if self.gain is None else ", weight_norm=True"
        return f"{inputs}, {outputs}, kernel={kernel}{norm}"
