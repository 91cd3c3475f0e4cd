"""Convolutional conditioners: Glow's three layers, and RealNVP's residual net."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit.arguments import batched, image_shape
from flowkit.errors import ShapeError
from flowkit.nets.layers import Conv2d, start_at

__all__ = ["ConvNet", "ResidualConvNet", "ZeroConv2d"]


class ZeroConv2d(nn.Module):
    """(W * x + b) exp(3 s): a convolution that starts at 0, with a gain for each output channel.

    The gain's factor of 3 makes it learn three times as fast as the weight, as in Glow's published code.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: side of the kernel, odd.

    Shapes:
        x: (batch, inputs, H, W); output: (batch, outputs, H, W).

    Reference:
        Kingma, Dhariwal, "Glow", 2018, section 3.3 and https://github.com/openai/glow.
    """

    rate = 3.0

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.log_gain = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x: (batch, outputs, H, W)."""
        # Into the weight, which is smaller than the response.
        gain = (self.rate * self.log_gain).exp()
        weight, bias = self.weight * gain.reshape(-1, 1, 1, 1), self.bias * gain
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def extra_repr(self) -> str:
        outputs, inputs, kernel, _ = self.weight.shape
        return f"{inputs}, {outputs}, kernel={kernel}"


class HalfNet(nn.Module):
    """From one half of an image to parameters of the other, of the same shape: what both nets share."""

    def __init__(self, shape: Sequence[int], out: int, filters: int, context: int) -> None:
        super().__init__()
        self.shape, self.out, self.context = image_shape(type(self).__name__, shape), out, context
        self.embed = nn.Linear(context, filters) if context else None

    def forward(self, half: Tensor, context: Tensor | None = None) -> Tensor:
        """The parameters of the other half, (*batch, C, h, w, out)."""
        if tuple(half.shape[-3:]) != self.shape:
            raise ShapeError(f"{type(self).__name__}: half has shape {tuple(half.shape)}, wanted {batched(self.shape)}")
        batch = half.shape[:-3]
        params = self._read(half.reshape(math.prod(batch), *self.shape), self._embedded(context, batch))
        # The data channel is the slow index of the outputs.
        return params.unflatten(1, (self.shape[0], self.out)).movedim(2, -1).reshape(*batch, *self.shape, self.out)

    def _read(self, x: Tensor, embedded: Tensor | None) -> Tensor:
        """(N, C out, H, W) of images (N, C, H, W), and of the context (N, filters, 1, 1)."""
        raise NotImplementedError

    def _embedded(self, context: Tensor | None, batch: torch.Size) -> Tensor | None:
        """The context for each image. The half may have more batch dims, to the right: a pair axis."""
        if self.embed is None:
            return None
        if context is None or context.shape[-1:] != (self.context,) or context.ndim - 1 > len(batch):
            came = "is missing" if context is None else f"has shape {tuple(context.shape)}"
            raise ShapeError(f"{type(self).__name__}: context {came}, wanted (*batch, {self.context})")
        embedded = self.embed(context)
        *leading, width = embedded.shape
        aligned = embedded.reshape(*leading, *[1] * (len(batch) - len(leading)), width)
        return aligned.expand(*batch, width).reshape(math.prod(batch), width, 1, 1)


class ConvNet(HalfNet):
    """Glow's conditioner: 3x3 convolution, ReLU, 1x1 convolution, ReLU, 3x3 convolution that starts at 0.

    The hidden convolutions set themselves from data, to responses of mean 0 and deviation 1, as does the norm behind
    each in the published code.

    Args:
        shape: (C, h, w) of the half that conditions, and of the half that is conditioned.
        out: parameters per element of the other half.
        filters: width of both hidden layers.
        context: width of a context vector, which is added linearly before the first ReLU; 0 for none.
        start: what the net gives before it is trained, whatever the input; it broadcasts to (C, out), 0 if not given. A
            mixture wants `map.start`: from 0, its components would stay alike.

    Shapes:
        half: (*batch, C, h, w); context: (*leading dims of batch, context); output: (*batch, C, h, w, out).

    Raises:
        ShapeError: if the half or the context does not fit, or `start` does not broadcast to (C, out).

    Reference:
        Kingma, Dhariwal, "Glow", 2018, section 3.3, https://arxiv.org/abs/1807.03039.

    >>> import torch
    >>> ConvNet((6, 4, 4), out=2, filters=16)(torch.zeros(5, 6, 4, 4)).shape
    torch.Size([5, 6, 4, 4, 2])
    """

    def __init__(
        self, shape: Sequence[int], out: int, *, filters: int = 512, context: int = 0, start: Tensor | None = None
    ) -> None:
        super().__init__(shape, out, filters, context)
        channels = self.shape[0]
        self.enter = Conv2d(channels, filters, 3, weight_norm=True)
        self.middle = Conv2d(filters, filters, weight_norm=True)
        self.exit = ZeroConv2d(filters, channels * out)
        start_at(type(self).__name__, self.exit.bias, start, (channels, out))

    def _read(self, x: Tensor, embedded: Tensor | None) -> Tensor:
        hidden = self.enter(x) if embedded is None else self.enter(x) + embedded
        # In place: nothing else reads these responses, and they are the largest tensors here.
        return self.exit(self.middle(hidden.relu_()).relu_())


class ResidualBlock(nn.Module):
    """x + conv(ReLU(norm(conv(ReLU(norm(x)))))), with 3x3 convolutions."""

    def __init__(self, filters: int, norm: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(filters, norm), _norm(filters, norm)
        self.conv1 = Conv2d(filters, filters, 3, weight_norm=True)
        self.conv2 = Conv2d(filters, filters, 3, weight_norm=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(self.norm1(x).relu())
        return x + self.conv2(self.norm2(hidden).relu())


def _norm(filters: int, norm: bool) -> nn.Module:
    return nn.BatchNorm2d(filters) if norm else nn.Identity()


class ResidualConvNet(HalfNet):
    """RealNVP's conditioner: a 3x3 convolution, residual blocks with a skip connection from each, a 1x1 convolution.

    A skip connection is a 1x1 convolution from a block to the sum that the last layer reads. Convolutions have weight
    norm, and before every ReLU there is batch norm: evaluate and sample in eval mode. The last convolution starts at 0.

    Args:
        shape: (C, h, w) of the half that conditions, and of the half that is conditioned.
        out: parameters per element of the other half.
        filters: width of the trunk.
        blocks: residual blocks.
        norm: whether there is batch norm.
        context: width of a context vector, which is added linearly to the first convolution; 0 for none.
        start: what the net gives before it is trained, whatever the input; it broadcasts to (C, out), 0 if not given. A
            mixture wants `map.start`: from 0, its components would stay alike.

    Shapes:
        half: (*batch, C, h, w); context: (*leading dims of batch, context); output: (*batch, C, h, w, out).

    Raises:
        ShapeError: if the half or the context does not fit, or `start` does not broadcast to (C, out).

    Reference:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, sections 3.7 and 4.1,
        https://arxiv.org/abs/1605.08803.

    >>> import torch
    >>> ResidualConvNet((3, 4, 2), out=2, filters=8, blocks=1)(torch.zeros(5, 3, 4, 2)).shape
    torch.Size([5, 3, 4, 2, 2])
    """

    def __init__(
        self,
        shape: Sequence[int],
        out: int,
        *,
        filters: int = 64,
        blocks: int = 8,
        norm: bool = True,
        context: int = 0,
        start: Tensor | None = None,
    ) -> None:
        super().__init__(shape, out, filters, context)
        channels = self.shape[0]
        self.enter = Conv2d(channels, filters, 3, weight_norm=True)
        self.blocks = nn.ModuleList(ResidualBlock(filters, norm) for _ in range(blocks))
        self.skips = nn.ModuleList(Conv2d(filters, filters, weight_norm=True) for _ in range(blocks + 1))
        self.norm = _norm(filters, norm)
        self.exit = ZeroConv2d(filters, channels * out, kernel=1)
        start_at(type(self).__name__, self.exit.bias, start, (channels, out))

    def _read(self, x: Tensor, embedded: Tensor | None) -> Tensor:
        x = self.enter(x) if embedded is None else self.enter(x) + embedded
        total = self.skips[0](x)
        for block, skip in zip(self.blocks, self.skips[1:], strict=True):
            x = block(x)
            total = total + skip(x)
        return self.exit(self.norm(total).relu())
