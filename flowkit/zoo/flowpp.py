"""Flow++ (Ho, Chen, Srinivas, Duan, Abbeel, 2019, https://arxiv.org/abs/1902.00275), assembled from the parts.

Beside the paper: section 3.1 is `dequantizer`, 3.2 is `step`, and the whole is `assemble`; the published sizes stand
at the end as `CONFIGS`. What the paper does not have is `condition`, the class or vector that a model may be given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from flowkit.arguments import vector_size, whole
from flowkit.bijectors import ActNorm, Conv1x1, Coupling, Flip, Logit, PairChannels, PairColumns, Sigmoid, Squeeze
from flowkit.distributions import Normal
from flowkit.flow import Flow
from flowkit.maps import Affine, MixLogistic
from flowkit.nets import ClassContext, GatedConvAttention, ImageContext, VectorContext
from flowkit.nets.gated import Attention
from flowkit.surjections import UniformDequantizer, VariationalDequantizer
from flowkit.transform import Chain, Map, Transform, within
from flowkit.zoo import registry

__all__ = ["CONFIGS", "FlowppConfig", "flowpp"]


def dequantizer(config: FlowppConfig) -> Transform:
    """Section 3.1: the noise is a flow on the unit cube, conditional on the image."""
    if not config.variational:
        return UniformDequantizer(config.levels)
    c, h, w = config.shape
    steps = (step((2, c, h, w // 2), config, dequantizing=True) for _ in range(config.dequant_couplings))
    to_cube = Chain(columns=within(PairColumns(), *steps), unit=Sigmoid())
    noise = Flow(to_cube.inv, Normal(config.shape), context_shape=(config.context_filters, h, w // 2))
    encoder = ImageContext(
        config.shape,
        out=config.context_filters,
        context=config.condition_filters,
        blocks=config.context_blocks,
        heads=config.heads,
        dropout=config.dropout,
        attention=config.context_attention,
        norm=config.context_norm,
        weight_norm=config.weight_norm,
    )
    return VariationalDequantizer(noise, config.levels, encoder)


def step(pair: tuple[int, ...], config: FlowppConfig, *, dequantizing: bool = False) -> Chain:
    """Section 3.2: normalize, mix channels, one coupling, exchange the halves. `pair` is (2, C, h, w)."""
    map: Map = MixLogistic(config.components) if config.components else Affine(log_scale_bound=1.0)
    net = GatedConvAttention(
        pair[1:],
        out=map.num_params,
        filters=(config.dequant_filters if dequantizing else None) or config.filters,
        blocks=config.dequant_blocks if dequantizing else config.blocks,
        heads=config.heads,
        context=config.context_filters if dequantizing else config.condition_filters,
        dropout=config.dropout,
        attention=config.dequant_attention if dequantizing else config.attention,
        weight_norm=config.weight_norm,
        final_concat_elu=config.final_concat_elu,
    )
    parts: dict[str, Transform] = {"norm": ActNorm(pair)}
    if config.channel_mixing:
        parts["mix"] = Conv1x1(pair)
    return Chain(**parts, couple=Coupling(map, net, dim=-4), flip=Flip(dim=-4))


def assemble(config: FlowppConfig) -> Flow:
    """The whole of section 3: dequantize, logit, couplings on columns and channels at every scale, a normal latent."""
    parts: dict[str, Transform] = {"dequantize": dequantizer(config), "logit": Logit(margin=0.05)}
    *stages, (_, _, latent) = config.stages()
    for kind, count, (c, h, w) in stages:
        name = f"{kind}{1 + sum(part.startswith(kind) for part in parts)}"
        if kind == "columns":
            parts[name] = within(PairColumns(), *(step((2, c, h, w // 2), config) for _ in range(count)))
        elif kind == "channels":
            parts[name] = within(PairChannels(), *(step((2, c // 2, h, w), config) for _ in range(count)))
        else:
            parts[name] = Chain(*(Squeeze(color_fastest=True) for _ in range(count)))
    return Flow(Chain(**parts), base=Normal(latent), **condition(config))


def condition(config: FlowppConfig) -> dict[str, Any]:
    """Beyond the paper: a class or a vector, embedded once, for every gated block of the main flow and the encoder."""
    if config.classes:
        return {"context_net": ClassContext(config.classes, config.condition_filters), "context_shape": ()}
    if config.context_shape:
        net = VectorContext(config.context_shape[0], config.condition_filters)
        return {"context_net": net, "context_shape": config.context_shape}
    return {}


def flowpp(pretrained: str | None = None, *, config: str | None = None, **overrides: Any) -> Flow:
    """Flow++ over integer images.

    `log_prob` is one draw of a lower bound (`exact` is False); `flowkit.metrics` has tighter ones, and bits/dim.
    A new model is to be initialized from data, `flowkit.initialize(flow, batch)`, and trained.

    Args:
        pretrained: name of trained weights without the model, "digits" for "flowpp-digits" in `flowkit.zoo.available`;
            the flow comes in eval mode.
        config: name of a published or small size, one of `CONFIGS`; "cifar10" if not given.
        overrides: fields of `FlowppConfig`, to change a size.

    Shapes:
        x: (*batch, C, H, W), integers from 0 to levels - 1; log_prob: (*batch). The context of a conditional model is
        labels (*batch), with `classes`, or vectors (*batch, size), with `context_shape`; `initialize` wants several of
        them in its batch.

    Raises:
        ValueError: for an unknown name, an impossible size, or a config beside `pretrained`.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, https://arxiv.org/abs/1902.00275.

    >>> import torch
    >>> flow = flowpp(config="digits", filters=8, blocks=1)
    >>> flow.sample((2,)).shape, flow.exact
    (torch.Size([2, 1, 8, 8]), False)
    >>> conditional = flowpp(config="digits", filters=8, blocks=1, classes=10)
    >>> conditional.sample((2,), torch.arange(10)).shape
    torch.Size([2, 10, 1, 8, 8])
    """
    if pretrained is None:
        return assemble(configuration(config or "cifar10", **overrides))
    if config is not None or overrides:
        given = ", ".join(([] if config is None else ["config"]) + list(overrides))
        raise ValueError(f"flowpp: pretrained={pretrained!r} brings its own config; {given} cannot stand beside it")
    name, known = f"flowpp-{pretrained}", [name for name in registry.names() if name.startswith("flowpp-")]
    if name not in known:
        short = ", ".join(each.removeprefix("flowpp-") for each in known)
        raise ValueError(f"flowpp: pretrained is {pretrained!r}, wanted one of {short or '(there are none)'}")
    return registry.restore(from_config, *registry.read(name), name)


def from_config(**sizes: Any) -> Flow:
    """The flow of all these fields of `FlowppConfig`."""
    return assemble(FlowppConfig(**sizes))


# Kinds of stages and their counts, in order.
Layout = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class FlowppConfig:
    """The sizes of one Flow++. The defaults are the published CIFAR-10 model.

    Attributes:
        shape: (C, H, W) of the images.
        levels: integers per element, 256 for 8 bits.
        filters: width of every conditioner.
        blocks: gated blocks of each conditioner of the main flow.
        components: mixture components; 0 makes the couplings affine.
        heads: attention heads; `filters` is a multiple of them.
        dropout: probability, in every gated convolution and attention.
        layout: the main flow in order: ("columns", n) and ("channels", n) are n couplings on that split,
            ("squeeze", n) is n squeezes.
        attention: of the main flow: "softmax", or "maxout" for the ablation, or "none".
        channel_mixing: whether every step has 1x1 convolutions.
        weight_norm: whether the convolutions have weight norm.
        final_concat_elu: whether conditioners have a concat-ELU before their last convolution.
        variational: whether the dequantizer is a flow; False for uniform noise. What follows is about that flow.
        dequant_filters: width of its conditioners; None for `filters`.
        dequant_blocks: gated blocks of each of its conditioners.
        dequant_couplings: its couplings, on columns.
        dequant_attention: as `attention`.
        context_filters: channels of the context that it reads off the image.
        context_blocks: gated blocks of the net that reads it.
        context_norm: whether those blocks have norm over channels.
        context_attention: as `attention`.
        classes: labels that a class-conditional model tells apart, 0 for none. The whole model is conditional on them.
        context_shape: in place of `classes`, (size,) or size of a vector that the whole model is conditional on; None
            for none.
        embedding: channels of the embedded class or vector.

    Raises:
        ValueError: for a size that is none, naming it, or sizes that do not go together.
    """

    shape: tuple[int, int, int] = (3, 32, 32)
    levels: int = 256
    filters: int = 96
    blocks: int = 10
    components: int = 32
    heads: int = 4
    dropout: float = 0.2
    layout: Layout = (("columns", 4), ("squeeze", 1), ("channels", 2), ("columns", 3))
    attention: Attention = "softmax"
    channel_mixing: bool = True
    weight_norm: bool = False
    final_concat_elu: bool = False
    variational: bool = True
    dequant_filters: int | None = None
    dequant_blocks: int = 2
    dequant_couplings: int = 4
    dequant_attention: Attention = "softmax"
    context_filters: int = 32
    context_blocks: int = 3
    context_norm: bool = False
    context_attention: Attention = "none"
    classes: int = 0
    context_shape: tuple[int] | None = None
    embedding: int = 32

    @property
    def condition_filters(self) -> int:
        """Channels of what a conditional model is conditional on; 0 if it is not."""
        return self.embedding if self.classes or self.context_shape else 0

    def __post_init__(self) -> None:
        shape = tuple(whole(size) or 0 for size in self.shape) if isinstance(self.shape, Sequence) else ()
        object.__setattr__(self, "layout", tuple((kind, count) for kind, count in self.layout))
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"flowpp: shape is {self.shape}, wanted (C, H, W), three whole numbers above 0")
        object.__setattr__(self, "shape", shape)
        at_least = dict.fromkeys(("filters", "blocks", "heads", "dequant_blocks", "context_filters", "embedding"), 1)
        at_least |= {"levels": 2, "components": 0, "dequant_couplings": 1, "context_blocks": 0, "classes": 0}
        for name, least in at_least.items():
            value = whole(getattr(self, name))
            if value is None or value < least:
                raise ValueError(
                    f"flowpp: {name} is {getattr(self, name)!r}, wanted a whole number of at least {least}"
                )
            object.__setattr__(self, name, value)
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ValueError(f"flowpp: dropout is {self.dropout!r}, wanted at least 0 and below 1")
        for name in ("channel_mixing", "weight_norm", "final_concat_elu", "variational", "context_norm"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"flowpp: {name} is {getattr(self, name)!r}, wanted True or False")
        widths = {"filters": self.filters, "dequant_filters": self.dequant_filters or self.filters}
        if self.context_attention == "softmax":
            widths["context_filters"] = self.context_filters
        for name, width in widths.items():
            if width % self.heads:
                raise ValueError(f"flowpp: {name} is {width}, wanted a multiple of heads, {self.heads}")
        if self.variational and shape[2] % 2:
            raise ValueError(f"flowpp: shape is {shape}, width {shape[2]} is odd and has no two column halves")
        size = vector_size("flowpp", self.context_shape)
        object.__setattr__(self, "context_shape", (size,) if size else None)
        if self.classes and size:
            raise ValueError(f"flowpp: classes is {self.classes} and context_shape is {(size,)}, wanted one of them")
        if self.condition_filters and self.variational and not self.context_blocks:
            raise ValueError("flowpp: context_blocks is 0, wanted at least 1 to tell the dequantizer the condition")
        self.stages()

    def stages(self) -> list[tuple[str, int, tuple[int, int, int]]]:
        """Kind, count and the image shape at each entry of the layout; a last entry has the latent's.

        Raises:
            ValueError: where a shape does not divide.
        """
        c, h, w = self.shape
        found: list[tuple[str, int, tuple[int, int, int]]] = []
        for kind, count in self.layout:
            found.append((kind, count, (c, h, w)))
            size, name = {"columns": (w, "width"), "channels": (c, "number of channels")}.get(kind, (0, ""))
            if kind not in ("columns", "channels", "squeeze") or count < 1:
                raise ValueError(f"flowpp: layout has {(kind, count)}, wanted columns, channels or squeeze and a count")
            if size % 2:
                raise ValueError(f"flowpp: shape {self.shape} comes to {(c, h, w)} at {kind!r}: {name} {size} is odd")
            for _ in range(count if kind == "squeeze" else 0):
                if h % 2 or w % 2:
                    raise ValueError(f"flowpp: shape {self.shape} comes to {(c, h, w)} at 'squeeze': a side is odd")
                c, h, w = 4 * c, h // 2, w // 2
        return [*found, ("latent", 0, (c, h, w))]


def configuration(config: str, **overrides: Any) -> FlowppConfig:
    """The named config with some fields changed.

    Raises:
        ValueError: for an unknown config or field, or an impossible size.
    """
    if config not in CONFIGS:
        raise ValueError(f"flowpp: config is {config!r}, wanted one of {', '.join(CONFIGS)}")
    known = [field.name for field in fields(FlowppConfig)]
    unknown = [name for name in overrides if name not in known]
    if unknown:
        raise ValueError(f"flowpp: {unknown[0]!r} is no size of this model; there are {', '.join(known)}")
    return replace(CONFIGS[config], **overrides)


_CIFAR10 = FlowppConfig()

_IMAGENET32 = FlowppConfig(
    filters=128,
    blocks=20,
    dropout=0.0,
    layout=(("columns", 7), ("squeeze", 1), ("channels", 3), ("columns", 3)),
    channel_mixing=False,
    weight_norm=True,
    final_concat_elu=True,
    dequant_blocks=8,
    dequant_couplings=8,
    context_blocks=8,
    context_norm=True,
    context_attention="softmax",
)

_SCALE = (("squeeze", 1), ("channels", 2), ("columns", 2))

_IMAGENET64 = FlowppConfig(
    shape=(3, 64, 64),
    blocks=16,
    components=4,
    dropout=0.0,
    layout=(("squeeze", 1), ("columns", 4), *_SCALE, *_SCALE),
    channel_mixing=False,
    final_concat_elu=True,
    dequant_blocks=5,
    dequant_attention="none",
    context_blocks=5,
    context_norm=True,
)

_SMALL = FlowppConfig(filters=32, blocks=2, components=8, dequant_blocks=1, dequant_couplings=2, context_filters=16)

CONFIGS = {
    "cifar10": _CIFAR10,
    "cifar10-uniform": replace(_CIFAR10, filters=104, variational=False),
    "cifar10-affine": replace(_CIFAR10, filters=108, components=0),
    "cifar10-noattention": replace(_CIFAR10, attention="maxout", dequant_attention="maxout"),
    "imagenet32": _IMAGENET32,
    "imagenet64": _IMAGENET64,
    "imagenet64-5bit": replace(_IMAGENET64, levels=32),
    "celeba64-5bit": replace(_IMAGENET64, levels=32),
    "celeba64-3bit": replace(_IMAGENET64, levels=8),
    "celeba128-5bit": replace(
        _IMAGENET64,
        shape=(3, 128, 128),
        levels=32,
        blocks=12,
        layout=(("squeeze", 2), ("columns", 4), *_SCALE, *_SCALE),
    ),
    "digits": replace(_SMALL, shape=(1, 8, 8), levels=17, filters=24, dropout=0.4),
    "mnist": replace(_SMALL, shape=(1, 28, 28), dropout=0.0, attention="none", dequant_attention="none"),
}
