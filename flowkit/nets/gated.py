"""Gated convolutions with self-attention: the conditioner of Flow++ and the net that reads its images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit.arguments import batched, image_shape
from flowkit.errors import ShapeError
from flowkit.functional.checkpointing import checkpointed
from flowkit.functional.precision import full_precision
from flowkit.functional.rearrange import pair_columns
from flowkit.functional.reduce import flatten_batch
from flowkit.nets.layers import ChannelNorm, Conv2d, concat_elu, gate

__all__ = ["GatedAttention", "GatedConv", "GatedConvAttention", "GatedMaxout", "ImageContext"]

Attention = Literal["softmax", "maxout", "none"]

_FEW_POSITIONS = 512


class GatedConv(nn.Module):
    """x + gate(W2 cELU(conv3 cELU(x) + W1 cELU(context))), with dropout before W2.

    Args:
        filters: channels of x.
        context: channels of the context; 0 for none.
        kernel: side of W2's kernel, 1 or 3.
        dropout: probability, elementwise.
        weight_norm: whether the convolutions have weight norm.

    Shapes:
        x: (batch, filters, H, W); context: (batch, context, H, W); output as x.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, section 3.2.2, https://arxiv.org/abs/1902.00275.
    """

    def __init__(
        self, filters: int, *, context: int = 0, kernel: int = 1, dropout: float = 0.0, weight_norm: bool = False
    ) -> None:
        super().__init__()
        self.conv = Conv2d(2 * filters, filters, 3, weight_norm=weight_norm)
        self.context = Conv2d(2 * context, filters, weight_norm=weight_norm) if context else None
        self.dropout = nn.Dropout(dropout)
        self.gate = Conv2d(2 * filters, 2 * filters, kernel, weight_norm=weight_norm, init_scale=0.1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x and what is added to it, (batch, filters, H, W)."""
        h = self.conv(concat_elu(x))
        if self.context is not None:
            h = h + self.context(concat_elu(context))  # type: ignore[arg-type]
        return x + gate(self.gate(self.dropout(concat_elu(h))))


class GatedAttention(nn.Module):
    """x + gate(W2 attention(W1 (x + positions))): softmax self-attention of all positions, with dropout before W2.

    Args:
        filters: channels of x, a multiple of `heads`.
        heads: attention heads.
        dropout: probability, elementwise on the heads' output.
        weight_norm: whether the linear maps have weight norm.

    Shapes:
        x: (batch, filters, H, W); positions: (filters, H, W); output as x.

    Raises:
        ValueError: if `filters` is no multiple of `heads`.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, section 3.2.2, https://arxiv.org/abs/1902.00275.
    """

    def __init__(self, filters: int, heads: int = 4, *, dropout: float = 0.0, weight_norm: bool = False) -> None:
        super().__init__()
        if heads < 1 or filters % heads:
            raise ValueError(f"GatedAttention: filters is {filters} and heads is {heads}, wanted a multiple of heads")
        self.heads = heads
        self.project = Conv2d(filters, 3 * filters, weight_norm=weight_norm)
        self.dropout = nn.Dropout(dropout)
        self.gate = Conv2d(filters, 2 * filters, weight_norm=weight_norm, init_scale=0.1)

    def _mix(self, h: Tensor) -> Tensor:
        # (batch, 3F, H, W): queries, keys, values; within each the heads are contiguous.
        queries, keys, values = h.flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2).unbind(1)
        mixed = attention(queries, keys, values)
        return mixed.transpose(-1, -2).flatten(1, 2).unflatten(-1, h.shape[2:])

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x and what is added to it, (batch, filters, H, W)."""
        return x + gate(self.gate(self.dropout(self._mix(self.project(x + positions)))))


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention, (*batch, positions, size) each; PyTorch's, but for bfloat16 on a CPU.

    Its kernel for these takes two to five times as long as plain products. They round up to twice as much, about as
    the convolutions around them do, and keep positions^2 weights for the backward pass: among many positions, the
    kernel for float32, which is faster than that for bfloat16 too, keeps none.
    """
    if values.device.type != "cpu" or values.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(queries, keys, values)
    with full_precision("cpu"):  # autocast would cast the softmax
        if values.shape[-2] > _FEW_POSITIONS:
            return F.scaled_dot_product_attention(queries.float(), keys.float(), values.float()).to(values.dtype)
        return (queries / math.sqrt(queries.shape[-1]) @ keys.mT).softmax(-1) @ values


class GatedMaxout(GatedAttention):
    """x + gate(W2 max(W1 (x + positions))): as many parameters as `GatedAttention`, and each pixel by itself.

    The maximum is that of adjacent triples of W1's outputs. It stands in the place of attention in Flow++'s ablation.

    Shapes:
        x: (batch, filters, H, W); positions: (filters, H, W); output as x.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, section 4.2, https://arxiv.org/abs/1902.00275.
    """

    def _mix(self, h: Tensor) -> Tensor:
        return h.unflatten(1, (-1, 3)).amax(2)


class GatedBlock(nn.Module):
    """A gated convolution and, unless there is none, gated attention, each followed by norm over channels.

    Attributes:
        checkpointed: whether it runs a second time in the backward pass; set by `flowkit.activation_checkpointing`.
    """

    checkpointed: bool = False

    def __init__(
        self,
        filters: int,
        heads: int,
        attention: Attention,
        *,
        norm: bool = True,
        context: int = 0,
        kernel: int = 1,
        dropout: float = 0.0,
        weight_norm: bool = False,
    ) -> None:
        super().__init__()
        kinds = {"softmax": GatedAttention, "maxout": GatedMaxout}
        if attention not in (*kinds, "none"):
            raise ValueError(f"GatedBlock: attention is {attention!r}, wanted one of softmax, maxout, none")
        self.conv = GatedConv(filters, context=context, kernel=kernel, dropout=dropout, weight_norm=weight_norm)
        self.norm1 = ChannelNorm(filters) if norm else nn.Identity()
        self.attention = (
            kinds[attention](filters, heads, dropout=dropout, weight_norm=weight_norm) if attention in kinds else None
        )
        self.norm2 = ChannelNorm(filters) if norm and self.attention is not None else nn.Identity()

    def forward(self, x: Tensor, positions: Tensor | None, context: Tensor | None = None) -> Tensor:
        return checkpointed(self.checkpointed, self._run, x, positions, context)

    def _run(self, x: Tensor, positions: Tensor | None, context: Tensor | None) -> Tensor:
        x = self.norm1(self.conv(x, context))
        return x if self.attention is None else self.norm2(self.attention(x, positions))


class GatedConvAttention(nn.Module):
    """Flow++'s conditioner: a convolution, gated blocks with norm after each residual sum, a convolution.

    Args:
        shape: (C, h, w) of the half that conditions, and of the half that is conditioned.
        out: parameters per element of the other half.
        filters: width of the trunk.
        blocks: gated blocks.
        heads: attention heads; `filters` is a multiple of them.
        context: channels of a context image of the same h and w, or of one pixel that goes to all of them; 0 for none.
        dropout: probability, before the second map of each gated convolution and attention.
        attention: "softmax"; "maxout" for the paper's ablation, each pixel by itself with as many parameters; "none".
        weight_norm: whether convolutions and linear maps have weight norm (published for ImageNet 32 alone).
        final_concat_elu: whether a concat-ELU precedes the last convolution (published outside CIFAR-10).

    Shapes:
        half: (*batch, C, h, w); context: (*leading dims of batch, context, h, w), or (..., context, 1, 1); output:
        (*batch, C, h, w, out).

    Raises:
        ShapeError: if the half or the context does not fit.
        ValueError: if `filters` is not a multiple of `heads`.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, section 3.2.2, https://arxiv.org/abs/1902.00275.

    >>> import torch
    >>> net = GatedConvAttention((3, 8, 4), out=14, filters=16, blocks=1)
    >>> net(torch.zeros(2, 1, 3, 8, 4)).shape
    torch.Size([2, 1, 3, 8, 4, 14])
    """

    def __init__(
        self,
        shape: Sequence[int],
        out: int,
        *,
        filters: int = 96,
        blocks: int = 10,
        heads: int = 4,
        context: int = 0,
        dropout: float = 0.0,
        attention: Attention = "softmax",
        weight_norm: bool = False,
        final_concat_elu: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.out, self.context = image_shape("GatedConvAttention", shape), out, context
        channels, height, width = self.shape
        # One embedding for all blocks. Without attention nothing reads it: the published parameter count has it
        # all the same, and without a gradient it does not trouble DDP.
        self.positions = nn.Parameter(0.01 * torch.randn(filters, height, width), requires_grad=attention != "none")
        self.enter = Conv2d(channels, filters, 3, weight_norm=weight_norm)
        self.blocks = nn.ModuleList(
            GatedBlock(filters, heads, attention, context=context, dropout=dropout, weight_norm=weight_norm)
            for _ in range(blocks)
        )
        self.final_concat_elu = final_concat_elu
        exit_filters = 2 * filters if final_concat_elu else filters
        self.exit = Conv2d(exit_filters, channels * out, 3, weight_norm=weight_norm, init_scale=0.1)

    def forward(self, half: Tensor, context: Tensor | None = None) -> Tensor:
        """The parameters of the other half, (*batch, *shape, out)."""
        if tuple(half.shape[-3:]) != self.shape:
            raise ShapeError(f"GatedConvAttention: half has shape {tuple(half.shape)}, wanted {batched(self.shape)}")
        batch = half.shape[:-3]
        x = half.reshape(math.prod(batch), *self.shape)
        x = self.enter(x)
        context = flat_context("GatedConvAttention", context, self.context, self.shape[1:], batch)
        for block in self.blocks:
            x = block(x, self.positions, context)
        x = self.exit(concat_elu(x) if self.final_concat_elu else x)
        # The data channel is the slow index of the outputs.
        return x.unflatten(1, (self.shape[0], self.out)).movedim(2, -1).reshape(*batch, *self.shape, self.out)


class ImageContext(nn.Module):
    """Reads an image for the dequantizer: its column halves joined over channels, a convolution, gated blocks.

    Args:
        shape: (C, H, W) of the image, W even.
        out: channels of the context it gives.
        context: channels of a context of its own, such as a class, which every block reads; 0 for none.
        blocks: gated blocks.
        heads, dropout, attention, norm, weight_norm: as in `GatedConvAttention`; without `norm` the blocks have no
            norm over channels.

    Shapes:
        x: (*batch, C, H, W), in [-0.5, 0.5); context: (*leading dims of batch, context, H, W/2), or
        (..., context, 1, 1); output: (*batch, out, H, W/2).

    Raises:
        ShapeError: if x or the context does not fit.
        ValueError: if there is a context and no block to read it.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, section 3.1, https://arxiv.org/abs/1902.00275.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        out: int = 32,
        blocks: int = 3,
        heads: int = 4,
        context: int = 0,
        dropout: float = 0.0,
        attention: Attention = "none",
        norm: bool = False,
        weight_norm: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.context = image_shape("ImageContext", shape), context
        if context and not blocks:
            raise ValueError("ImageContext: blocks is 0, but it is the blocks that read a context")
        channels, height, width = self.shape
        attends = attention != "none"
        self.positions = nn.Parameter(0.01 * torch.randn(out, height, width // 2)) if attends else None
        self.enter = Conv2d(2 * channels, out, 3, weight_norm=weight_norm)
        self.blocks = nn.ModuleList(
            GatedBlock(
                out, heads, attention, norm=norm, context=context, kernel=3, dropout=dropout, weight_norm=weight_norm
            )
            for _ in range(blocks)
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The context that is read off x."""
        if tuple(x.shape[-3:]) != self.shape:
            raise ShapeError(f"ImageContext: x has shape {tuple(x.shape)}, wanted {batched(self.shape)}")
        halves = pair_columns(x).flatten(-4, -3)
        context = flat_context("ImageContext", context, self.context, halves.shape[-2:], x.shape[:-3])
        return flatten_batch(lambda flat: self._read(flat, context), halves, 3)

    def _read(self, halves: Tensor, context: Tensor | None) -> Tensor:
        x = self.enter(halves)
        for block in self.blocks:
            x = block(x, self.positions, context)
        return x


def flat_context(
    net: str, context: Tensor | None, channels: int, pixels: Sequence[int], batch: torch.Size
) -> Tensor | None:
    """A context image with one batch dim, that of `batch` flattened; None for a net of 0 channels of context.

    The batch may have more dims than the context's, to the right: a pair axis. A context of one pixel stays one.

    Raises:
        ShapeError: if it is missing, or does not fit.
    """
    if not channels:
        return None
    event = (channels, *pixels)
    came = "is missing" if context is None else f"has shape {tuple(context.shape)}"
    if context is None or context.shape[-3:] not in (event, (channels, 1, 1)) or context.ndim - 3 > len(batch):
        raise ShapeError(f"{net}: context {came}, wanted (*batch, {', '.join(map(str, event))}), or one pixel of it")
    leading, event = context.shape[:-3], context.shape[-3:]
    aligned = context.reshape(*leading, *[1] * (len(batch) - len(leading)), *event)
    return aligned.expand(*batch, *event).reshape(math.prod(batch), *event)
