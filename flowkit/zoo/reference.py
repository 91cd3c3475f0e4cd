"""Brings variables of the authors' own Flow++ graph over, by their names there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from flowkit.bijectors import ActNorm, Conv1x1, Coupling
from flowkit.flow import Flow
from flowkit.nets import Conv2d, GatedAttention, GatedConv, GatedConvAttention, ImageContext
from flowkit.zoo.files import WeightsError
from flowkit.zoo.flowpp import FlowppConfig, assemble, configuration

__all__ = ["flowpp_from_reference"]

# A tensor of the flow, and the names of the variables that it is made of, one or one for each half.
Source = tuple[nn.Parameter, tuple[str, ...]]


def flowpp_from_reference(variables: Mapping[str, ArrayLike], *, config: str, **overrides: Any) -> Flow:
    """The flow that the authors' graph computes with these variables, in eval mode.

    Kernels come as (kh, kw, in, out) and (in, out), images as (H, W, C), layer by layer in the order of creation,
    dequantizer first: `Norm`, `Norm_1`, ... The flow has the widest dtype among the variables, float32 at least.

    Args:
        variables: name to array, every trainable variable once; of a trained model the moving averages, under the
            plain names.
        config: the published size, one of `flowkit.zoo.CONFIGS`.
        overrides: fields of `FlowppConfig`, for a reduced size.

    Raises:
        WeightsError: if a variable is missing, left over, or of the wrong shape; it is named.

    Reference:
        https://github.com/aravindsrinivas/flowpp
    """
    sizes = configuration(config, **overrides)
    arrays = {name: np.asarray(value) for name, value in variables.items()}
    flow = assemble(sizes)
    dtype = torch.float32
    for array in arrays.values():
        dtype = torch.promote_types(dtype, torch.from_numpy(np.empty(0, array.dtype)).dtype)
    flow = flow.to(dtype)
    used: set[str] = set()
    with torch.no_grad():
        for parameter, names in _sources(flow, sizes):
            missing = [name for name in names if name not in arrays]
            if missing:
                raise WeightsError(f"flowpp_from_reference: no variable {missing[0]!r}, which {config} has")
            targets = parameter.unbind() if len(names) > 1 else (parameter,)
            for name, target in zip(names, targets, strict=True):
                value = _channels_first(torch.tensor(arrays[name]), name)
                # Dense kernels are 1x1 convolutions here, and norms may come with dims of size 1.
                if value.squeeze().shape != target.squeeze().shape:
                    raise WeightsError(
                        f"flowpp_from_reference: {name} comes as {arrays[name].shape}, which does not fit "
                        f"{tuple(target.shape)}"
                    )
                target.copy_(value.reshape(target.shape))
            used.update(names)
    left = sorted(arrays.keys() - used)
    if left:
        raise WeightsError(f"flowpp_from_reference: {config} has no variable {left[0]!r} ({len(left)} left over)")
    return flow.eval()


def _channels_first(value: Tensor, name: str) -> Tensor:
    """From (kh, kw, in, out), (in, out) or (H, W, C) to the order of PyTorch."""
    order = {4: (3, 2, 0, 1), 3: (2, 0, 1), 2: (1, 0)}.get(value.ndim)
    return value if order is None or "/ln" in name or "/dqln" in name else value.permute(order)


def _sources(flow: Flow, sizes: FlowppConfig) -> Iterator[Source]:
    transform: Any = flow.transform
    if sizes.variational:
        yield from _context(transform.dequantize.encoder)
    # The order of creation is the order in which a flow's modules stand: the dequantizer comes first.
    seen: Counter[str] = Counter()

    def scope(kind: str) -> str:
        """The graph's own way to keep scopes apart: `Norm`, `Norm_1`, `Norm_2`."""
        seen[kind] += 1
        return kind if seen[kind] == 1 else f"{kind}_{seen[kind] - 1}"

    for module in transform.modules():
        if isinstance(module, ActNorm):
            name = scope("Norm")
            yield module.gain, (f"{name}/norm0/g", f"{name}/norm1/g")
            yield module.bias, (f"{name}/norm0/b", f"{name}/norm1/b")
        elif isinstance(module, Conv1x1):
            name = scope("Pointwise")
            yield module.weight, (f"{name}/W0", f"{name}/W1")
        elif isinstance(module, Coupling):
            net: Any = module.conditioner
            dequantizing = bool(net.context)
            attends = (sizes.dequant_attention if dequantizing else sizes.attention) == "softmax"
            mixture = "MixLogistic" if sizes.components else "Affine"
            yield from _conditioner(net, scope(f"{mixture}{'Attn' if attends else ''}Coupling"), sizes)


def _context(net: ImageContext) -> Iterator[Source]:
    root = "context_proc"
    if net.positions is not None:
        yield net.positions, (f"{root}/pos_emb_dq",)
    yield from _linear(net.enter, f"{root}/proj")
    blocks: Any = net.blocks
    for i, block in enumerate(blocks):
        yield from _gated_conv(block.conv, f"{root}/c{i}")
        yield from _norm(block.norm1, f"{root}/dqln{i}")
        if block.attention is not None:
            yield from _attention(block.attention, f"{root}/dqattn{i}")
            yield from _norm(block.norm2, f"{root}/ln{i}")


def _conditioner(net: GatedConvAttention, root: str, sizes: FlowppConfig) -> Iterator[Source]:
    # The CIFAR-10 family and the others call the same two convolutions by different names.
    enter, leave = ("c1", "c2") if sizes.final_concat_elu else ("proj_in", "proj_out")
    yield net.positions, (f"{root}/pos_emb",)
    yield from _linear(net.enter, f"{root}/{enter}")
    blocks: Any = net.blocks
    for i, block in enumerate(blocks):
        yield from _gated_conv(block.conv, f"{root}/block{i}/conv")
        yield from _norm(block.norm1, f"{root}/block{i}/ln1")
        if block.attention is not None:
            yield from _attention(block.attention, f"{root}/block{i}/attn")
            yield from _norm(block.norm2, f"{root}/block{i}/ln2")
    yield from _linear(net.exit, f"{root}/{leave}")


def _gated_conv(net: GatedConv, root: str) -> Iterator[Source]:
    yield from _linear(net.conv, f"{root}/c1")
    if net.context is not None:
        yield from _linear(net.context, f"{root}/a_proj")
    yield from _linear(net.gate, f"{root}/c2")


def _attention(net: GatedAttention, root: str) -> Iterator[Source]:
    yield from _linear(net.project, f"{root}/proj1")
    yield from _linear(net.gate, f"{root}/proj2")


def _linear(layer: Conv2d, root: str) -> Iterator[Source]:
    if layer.gain is None:
        yield layer.weight, (f"{root}/W",)
    else:
        yield layer.direction, (f"{root}/V",)
        yield layer.gain, (f"{root}/g",)
    yield layer.bias, (f"{root}/b",)


def _norm(layer: nn.Module, root: str) -> Iterator[Source]:
    if isinstance(layer, nn.LayerNorm):
        yield layer.weight, (f"{root}/g",)
        yield layer.bias, (f"{root}/b",)
