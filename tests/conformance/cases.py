"""The table: every exported transform and distribution, in every variant that takes another path through the code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

import flowkit as fk
from flowkit.distribution import Distribution
from flowkit.maps import Additive, Affine, MixGaussian, MixLogistic, RationalQuadratic, Scale
from flowkit.nets import MADE, MLP, GatedConvAttention
from flowkit.testing import DistributionCase, TransformCase
from flowkit.transform import Map, Transform

__all__ = ["DISTRIBUTIONS", "TRANSFORMS", "DistributionRow", "TransformRow"]


@dataclass(frozen=True, kw_only=True)
class TransformRow:
    """One variant of one transform.

    Attributes:
        name: how the tests call it.
        make: builds it; the weights are those of the global generator at seed 0.
        event: shape of one x.
        context: shape of one context; None for none. Contexts are normal.
        options: further arguments of `TransformCase.of`.
        slow: properties left to the thorough profile, where another row has a like part in the quick one.
    """

    name: str
    make: Callable[[], Transform]
    event: tuple[int, ...]
    context: tuple[int, ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    slow: tuple[str, ...] = ()

    def case(self, seed: int = 0, count: int = 8, **options: Any) -> TransformCase:
        """Its case, with parameters, inputs, latents and contexts of this seed."""
        return TransformCase.of(
            _made(self.make),
            event_shape=self.event,
            context=_contexts(self.context, seed, count),
            seed=seed,
            count=count,
            **{**self.options, **options},
        )


@dataclass(frozen=True, kw_only=True)
class DistributionRow:
    """One variant of one distribution; attributes as of `TransformRow`."""

    name: str
    make: Callable[[], Distribution]
    context: tuple[int, ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    slow: tuple[str, ...] = ()

    def case(self, seed: int = 0) -> DistributionCase:
        """Its case, with parameters and contexts of this seed."""
        return DistributionCase.of(
            _made(self.make), context=_contexts(self.context, seed, 8), seed=seed, **self.options
        )


@cache
def _made(make: Callable[[], Any]) -> Any:
    """Made once; every case takes a copy."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def _contexts(shape: tuple[int, ...] | None, seed: int, count: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(seed)
    return None if shape is None else torch.randn(count, *shape, dtype=torch.float64, generator=generator)


def mlp(shape: tuple[int, ...], out: tuple[int, ...], context: int = 0) -> MLP:
    return MLP(shape, out, hidden=(8,), context=context)


def gated(half: tuple[int, int, int], out: int, **options: Any) -> GatedConvAttention:
    return GatedConvAttention(half, out, filters=8, blocks=1, heads=2, **options)


def tiny_flowpp(**sizes: Any) -> fk.Flow:
    """Flow++ with every kind of stage and as few weights as it can have."""
    small: dict[str, Any] = {
        "shape": (1, 4, 4),
        "levels": 5,
        "filters": 4,
        "heads": 2,
        "blocks": 1,
        "components": 2,
        "layout": (("columns", 1), ("squeeze", 1), ("channels", 1)),
        "dequant_blocks": 1,
        "dequant_couplings": 1,
        "context_filters": 2,
        "context_blocks": 1,
    }
    return fk.zoo.flowpp(config="digits", **{**small, **sizes})


def tiny_glow(**sizes: Any) -> fk.Flow:
    """Glow of two scales with as few weights as it can have."""
    small: dict[str, Any] = {"shape": (1, 4, 4), "levels": 5, "scales": 2, "steps": 1, "filters": 4}
    return fk.zoo.glow(**{**small, **sizes})


def dequantizer_of(flow: fk.Flow) -> Any:
    assert isinstance(flow.transform, fk.Chain)
    return flow.transform["dequantize"]


def main_flow_of(flow: fk.Flow) -> fk.Chain:
    """All of it after the dequantizer."""
    assert isinstance(flow.transform, fk.Chain)
    return fk.Chain(**{name: part for name, part in flow.transform.named_children() if name != "dequantize"})


def cube_noise(event: tuple[int, ...], context: int = 0) -> fk.Flow:
    """A noise on the unit cube, conditional if it is told how wide a context is.

    From logistics, and so nearly uniform: of a noise that vanishes at the walls, as a normal's does, importance weights
    have no variance.
    """
    if not context:
        return fk.Flow(fk.Chain(fk.Sigmoid().inv, fk.Elementwise(Affine(), event)), fk.Logistic(event))
    shift = fk.FromContext(Affine(log_scale_bound=1.0), mlp((context,), (*event, 2)), event_ndim=len(event))
    return fk.Flow(fk.Chain(fk.Sigmoid().inv, shift), fk.Logistic(event), context_shape=(context,))


class Centre(torch.nn.Module):
    """An encoder: a vector read off the centred integers, and off the context if there is one."""

    def __init__(self, size: int, out: int, context: int = 0) -> None:
        super().__init__()
        self.net = mlp((size,), (out,), context)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(x, context)


class Onto(torch.nn.Module):
    """An encoder of events of several dims: a vector read off all of them, and off the context if there is one."""

    def __init__(self, size: int, out: int, context: int = 0) -> None:
        super().__init__()
        self.size = size
        self.net = mlp((size,), (out,), context)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(x.flatten(-2), context)


def noise_given(context: int, event: tuple[int, ...]) -> fk.Flow:
    """A normal over events of any shape, whose location and scale a net reads off a vector."""
    shift = fk.FromContext(Affine(log_scale_bound=1.0), mlp((context,), (*event, 2)), event_ndim=len(event))
    return fk.Flow(shift, fk.Normal(event), context_shape=(context,))


class Before(torch.nn.Module):
    """A conditioner that knows nothing of masks: two parameters read off a running sum of what came before."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.tanh(x.cumsum(-1) - x)[..., None] * self.weight


def batch_norm(shape: tuple[int, ...]) -> fk.BatchNorm:
    """As after training, with running averages of its own, and fixed."""
    norm = fk.BatchNorm(shape, momentum=0.0)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 3.0)
    return norm


def normal_given(context: int, size: int) -> fk.Flow:
    """The same over vectors."""
    return noise_given(context, (size,))


def two_scales() -> fk.Chain:
    """Squeeze, couple, factor half of the channels out, couple what is left."""
    return fk.Chain(
        squeeze=fk.Squeeze(),
        mix=fk.LUConv1x1((4, 1, 1)),
        fine=fk.AffineCoupling(mlp((2, 1, 1), (2, 1, 1, 2)), dim=-3, log_scale_bound=1.0),
        factor_out=fk.Slice(2, fk.Normal((2, 1, 1)), dim=-3),
        coarse=fk.AffineCoupling(mlp((1, 1, 1), (1, 1, 1, 2)), dim=-3, log_scale_bound=1.0),
    )


# Behind a logit, latents far out saturate: digits are lost there that no arithmetic keeps.
SATURATES = {"tails": 1.0, "perturb": 0.05}

# Free parameters that start at 0: a spread of the order of 1 is what training makes of them.
FREE = {"perturb": 0.5}

# Every map in every scheme: a further map is one line here.
MAPS: dict[str, Callable[[], Map]] = {
    "Additive": Additive,
    "Affine": Affine,
    "MixGaussian": lambda: MixGaussian(2),
    "MixLogistic": lambda: MixLogistic(2),
    "RationalQuadratic": lambda: RationalQuadratic(3),
    "RationalQuadratic-bounded": lambda: RationalQuadratic(3, (0.0, 1.0), "bounded"),
    "RationalQuadratic-circular": lambda: RationalQuadratic(3, torch.pi, "circular"),
    "RationalQuadratic-shift": lambda: RationalQuadratic(3, torch.pi, "circular", shift=True),
    "Scale": Scale,
}


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Who supplies the parameters of a map; `make` is given the map, the rest is as of `TransformRow`."""

    make: Callable[[Map], Transform]
    event: tuple[int, ...]
    context: tuple[int, ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)


def coupling_by_mask(map: Map) -> Transform:
    view = fk.Partition(torch.tensor([[True, False], [False, True], [True, True]]))
    return fk.within(view, fk.Coupling(map, mlp((4,), (2, map.num_params), context=2), dim=-1, passing=view.passing))


def paired(view: Transform, half: tuple[int, int, int], map: Map) -> Transform:
    return fk.within(view, fk.Coupling(map, mlp(half, (*half, map.num_params)), dim=-4))


SCHEMES = {
    "Coupling": Scheme(make=lambda map: fk.Coupling(map, mlp((1,), (2, map.num_params)), dim=-1), event=(3,)),
    "Coupling-mask-context": Scheme(make=coupling_by_mask, event=(3, 2), context=(2,)),
    "Coupling-columns": Scheme(make=lambda map: paired(fk.PairColumns(), (1, 2, 1), map), event=(1, 2, 2)),
    "Coupling-checkerboard": Scheme(make=lambda map: paired(fk.PairCheckerboard(), (1, 2, 1), map), event=(1, 2, 2)),
    "Coupling-channels": Scheme(make=lambda map: paired(fk.PairChannels(), (1, 1, 2), map), event=(2, 1, 2)),
    "Autoregressive-context": Scheme(
        make=lambda map: fk.Autoregressive(map, MADE(3, map.num_params, (8,), context=2, order=(2, 0, 1))),
        event=(3,),
        context=(2,),
    ),
    "Autoregressive-inverse": Scheme(
        make=lambda map: fk.Autoregressive(map, MADE(3, map.num_params, (8,))).inv, event=(3,)
    ),
    "Elementwise": Scheme(make=lambda map: fk.Elementwise(map, (2, 2)), event=(2, 2), options=FREE),
    "FromContext": Scheme(
        make=lambda map: fk.FromContext(map, mlp((2,), (3, map.num_params)), event_ndim=1), event=(3,), context=(2,)
    ),
}


def maps_in_schemes() -> list[TransformRow]:
    return [
        TransformRow(
            name=f"{scheme_name}-{map_name}",
            make=lambda scheme=scheme, map=map: scheme.make(map()),  # type: ignore[misc]
            event=scheme.event,
            context=scheme.context,
            options=scheme.options,
            # Maps by themselves are compiled in the quick profile too.
            slow=() if map_name == "Affine" else ("compiles",),
        )
        for scheme_name, scheme in SCHEMES.items()
        for map_name, map in MAPS.items()
    ]


TRANSFORMS = [
    TransformRow(name="ActNorm-per-element", make=lambda: fk.ActNorm((3,)), event=(3,)),
    TransformRow(name="ActNorm-per-channel", make=lambda: fk.ActNorm((2, 1, 1)), event=(2, 2, 3)),
    TransformRow(name="ActNorm-pair", make=lambda: fk.ActNorm((2, 2, 2, 2)), event=(2, 2, 2, 2)),
    TransformRow(
        name="AffineCoupling",
        make=lambda: fk.AffineCoupling(mlp((2,), (2, 2)), dim=-1),
        event=(4,),
    ),
    TransformRow(
        name="AffineCoupling-bounded-context",
        make=lambda: fk.AffineCoupling(mlp((2,), (2, 2), context=3), dim=-1, log_scale_bound=1.0),
        event=(4,),
        context=(3,),
    ),
    TransformRow(
        name="Coupling-odd-axis",
        make=lambda: fk.Coupling(Affine(), mlp((2,), (3, 2)), dim=-1),
        event=(5,),
    ),
    TransformRow(
        name="Coupling-MixLogistic-two-dims",
        make=lambda: fk.Coupling(MixLogistic(3), mlp((1, 2), (2, 2, 11)), dim=-2),
        event=(3, 2),
        slow=("compiles",),
    ),
    TransformRow(
        name="Coupling-pair-GatedConvAttention",
        make=lambda: fk.Coupling(MixLogistic(2), gated((2, 2, 2), 8), dim=-4),
        event=(2, 2, 2, 2),
        slow=("compiles",),
    ),
    TransformRow(
        name="Coupling-pair-GatedConvAttention-context",
        make=lambda: fk.Coupling(Affine(), gated((1, 2, 4), 2, context=3, weight_norm=True), dim=-4),
        event=(2, 1, 2, 4),
        context=(3, 2, 4),
    ),
    TransformRow(
        name="Coupling-pair-GatedConvAttention-maxout",
        make=lambda: fk.Coupling(Affine(1.0), gated((1, 2, 3), 2, attention="maxout", final_concat_elu=True), dim=-4),
        event=(2, 1, 2, 3),
    ),
    TransformRow(
        name="Coupling-pair-GatedConvAttention-dropout",
        make=lambda: fk.Coupling(Affine(1.0), gated((1, 2, 2), 2, attention="none", dropout=0.5), dim=-4),
        event=(2, 1, 2, 2),
    ),
    TransformRow(
        name="MixLogisticCDFCoupling",
        make=lambda: fk.MixLogisticCDFCoupling(mlp((1,), (2, 14)), components=4, dim=-1),
        event=(3,),
        options={"perturb": 0.3},
    ),
    TransformRow(
        name="MixLogisticCDFCoupling-context",
        make=lambda: fk.MixLogisticCDFCoupling(mlp((2,), (2, 8), context=2), components=2, dim=-1),
        event=(4,),
        context=(2,),
        slow=("compiles",),
    ),
    TransformRow(name="maps.Affine", make=lambda: Affine(), event=(), context=(2,)),
    TransformRow(name="maps.Affine-bounded", make=lambda: Affine(log_scale_bound=1.0), event=(3,), context=(3, 2)),
    TransformRow(name="maps.MixLogistic", make=lambda: MixLogistic(4), event=(3,), context=(3, 14)),
    TransformRow(name="maps.MixLogistic-one", make=lambda: MixLogistic(1), event=(), context=(5,), slow=("compiles",)),
    TransformRow(name="maps.Additive", make=lambda: Additive(), event=(3,), context=(3, 1)),
    TransformRow(name="maps.Scale", make=lambda: Scale(), event=(3,), context=(3, 1)),
    TransformRow(name="maps.RationalQuadratic", make=lambda: RationalQuadratic(8), event=(3,), context=(3, 23)),
    TransformRow(
        name="maps.RationalQuadratic-circular",
        make=lambda: RationalQuadratic(4, torch.pi, "circular"),
        event=(3,),
        context=(3, 12),
    ),
    TransformRow(
        name="maps.RationalQuadratic-bounded",
        make=lambda: RationalQuadratic(3, (0.0, 1.0), "bounded"),
        event=(),
        context=(10,),
    ),
    TransformRow(name="maps.MixGaussian", make=lambda: MixGaussian(3), event=(2,), context=(2, 11)),
    TransformRow(name="maps.MixGaussian-one", make=lambda: MixGaussian(1), event=(), context=(5,), slow=("compiles",)),
    TransformRow(
        name="Autoregressive",
        make=lambda: fk.Autoregressive(Affine(), MADE(3, 2, hidden=(8,), order=(2, 0, 1))),
        event=(3,),
    ),
    TransformRow(
        name="Autoregressive-residual-context",
        make=lambda: fk.Autoregressive(RationalQuadratic(3), MADE(3, 8, (8, 8), context=2, residual=True)),
        event=(3,),
        context=(2,),
        slow=("compiles",),
    ),
    TransformRow(
        name="Autoregressive-adjacency",
        make=lambda: fk.Autoregressive(Affine(), MADE(4, 2, (8,), adjacency=torch.eye(4).roll(2, 0).tril())),
        event=(4,),
    ),
    TransformRow(
        name="Autoregressive-any-net", make=lambda: fk.Autoregressive(Affine(), Before()), event=(3,), options=FREE
    ),
    TransformRow(name="Conv1x1", make=lambda: fk.Conv1x1((3, 2, 2)), event=(3, 2, 2)),
    TransformRow(name="Conv1x1-per-half", make=lambda: fk.Conv1x1((2, 2, 2, 2)), event=(2, 2, 2, 2)),
    TransformRow(name="Flip", make=lambda: fk.Flip(dim=-1), event=(3,)),
    TransformRow(name="Flip-pair", make=lambda: fk.Flip(dim=-4), event=(2, 1, 2, 3)),
    TransformRow(name="PairColumns", make=lambda: fk.PairColumns(), event=(2, 2, 4)),
    TransformRow(name="PairCheckerboard", make=lambda: fk.PairCheckerboard(), event=(1, 3, 4)),
    TransformRow(name="PairChannels", make=lambda: fk.PairChannels(), event=(4, 2, 2)),
    TransformRow(name="Squeeze", make=lambda: fk.Squeeze(), event=(2, 2, 4)),
    TransformRow(name="Squeeze-color-fastest", make=lambda: fk.Squeeze(color_fastest=True), event=(2, 4, 2)),
    TransformRow(name="Squeeze-3", make=lambda: fk.Squeeze(factor=3), event=(1, 3, 3)),
    TransformRow(name="Logit", make=lambda: fk.Logit(), event=(3,)),
    TransformRow(name="Logit-margin", make=lambda: fk.Logit(margin=0.05), event=(2, 2)),
    TransformRow(name="Sigmoid", make=lambda: fk.Sigmoid(), event=(3,)),
    TransformRow(name="UniformDequantizer", make=lambda: fk.UniformDequantizer(levels=17), event=(2, 2)),
    TransformRow(
        name="VariationalDequantizer",
        make=lambda: fk.VariationalDequantizer(cube_noise((3,)), levels=6),
        event=(3,),
    ),
    TransformRow(
        name="VariationalDequantizer-encoder",
        make=lambda: fk.VariationalDequantizer(cube_noise((3,), context=4), levels=256, encoder=Centre(3, 4)),
        event=(3,),
    ),
    TransformRow(
        name="VariationalDequantizer-encoder-context",
        make=lambda: fk.VariationalDequantizer(cube_noise((2,), context=4), levels=2, encoder=Centre(2, 4, context=3)),
        event=(2,),
        context=(3,),
    ),
    TransformRow(name="UniformDequantizer-levels-each", make=lambda: fk.UniformDequantizer((2, 3, 17)), event=(3,)),
    TransformRow(
        name="UniformDequantizer-levels-per-row",
        make=lambda: fk.UniformDequantizer(torch.tensor([[4], [256]])),
        event=(2, 3),
        slow=("compiles",),
    ),
    TransformRow(
        name="VariationalDequantizer-levels-each",
        make=lambda: fk.VariationalDequantizer(cube_noise((2, 3), context=4), (2, 5, 9), Onto(6, 4)),
        event=(2, 3),
        slow=("compiles",),
    ),
    TransformRow(name="ArgmaxDequantizer", make=lambda: fk.ArgmaxDequantizer(fk.Normal((3, 4)), 4), event=(3,)),
    TransformRow(
        name="ArgmaxDequantizer-one",
        make=lambda: fk.ArgmaxDequantizer(fk.Flow(fk.LULinear(3), fk.Logistic((3,))), 3),
        event=(),
        slow=("compiles",),
    ),
    TransformRow(
        name="ArgmaxDequantizer-encoder-context",
        make=lambda: fk.ArgmaxDequantizer(noise_given(4, (2, 3)), 3, Onto(6, 4, context=3)),
        event=(2,),
        context=(3,),
    ),
    TransformRow(
        name="BinaryDequantizer",
        make=lambda: fk.BinaryDequantizer(fk.Normal((2, 3)), levels=5),
        event=(2,),
    ),
    TransformRow(
        name="BinaryDequantizer-encoder-context",
        make=lambda: fk.BinaryDequantizer(noise_given(4, (2, 3)), 8, Onto(6, 4, context=3)),
        event=(2,),
        context=(3,),
        slow=("compiles",),
    ),
    TransformRow(
        name="Inverse-argmax",
        make=lambda: fk.ArgmaxDequantizer(fk.Normal((2, 3)), 3).inv,
        event=(2, 3),
        slow=("compiles",),
    ),
    TransformRow(
        name="Chain-mixed-event-dims",
        make=lambda: fk.Chain(
            fk.Logit(margin=0.05), fk.PairColumns(), fk.ActNorm((2, 1, 2, 2)), fk.Flip(dim=-1), fk.PairColumns().inv
        ),
        event=(1, 2, 4),
    ),
    TransformRow(
        name="Chain-named-context",
        make=lambda: fk.Chain(
            norm=fk.ActNorm((3,)),
            couple=fk.AffineCoupling(mlp((1,), (2, 2), context=2), dim=-1),
            shift=fk.FromContext(Affine(), mlp((2,), (3, 2)), event_ndim=1),
        ),
        event=(3,),
        context=(2,),
    ),
    TransformRow(
        name="Chain-elementwise", make=lambda: fk.Chain(fk.Logit(margin=0.1), fk.Sigmoid(), fk.Logit()), event=()
    ),
    TransformRow(
        name="Chain-dequantize-logit",
        make=lambda: fk.Chain(fk.UniformDequantizer(levels=4), fk.Logit(margin=0.05), fk.ActNorm((3,))),
        event=(3,),
    ),
    TransformRow(
        name="within",
        make=lambda: fk.within(
            fk.PairCheckerboard(), fk.ActNorm((2, 1, 2, 2)), fk.Coupling(Affine(), gated((1, 2, 2), 2), dim=-4)
        ),
        event=(1, 2, 4),
    ),
    TransformRow(
        name="Inverse-coupling",
        make=lambda: fk.Inverse(fk.MixLogisticCDFCoupling(mlp((1,), (1, 8)), components=2, dim=-1)),
        event=(2,),
        slow=("compiles",),
    ),
    TransformRow(name="Inverse-Squeeze", make=lambda: fk.Squeeze().inv, event=(4, 2, 1)),
    TransformRow(name="Inverse-dequantizer", make=lambda: fk.UniformDequantizer(levels=4).inv, event=(3,)),
    TransformRow(
        name="Flow++-main",
        make=lambda: main_flow_of(tiny_flowpp()),
        event=(1, 4, 4),
        options=SATURATES,
    ),
    TransformRow(
        name="Flow++-affine", make=lambda: main_flow_of(tiny_flowpp(components=0)), event=(1, 4, 4), options=SATURATES
    ),
    TransformRow(
        name="Flow++-noise",
        make=lambda: dequantizer_of(tiny_flowpp()).noise.transform,
        event=(1, 4, 4),
        options=SATURATES,
        context=(2, 4, 2),
        slow=("compiles",),
    ),
    TransformRow(
        name="Flow++-dequantizer", make=lambda: dequantizer_of(tiny_flowpp()), event=(1, 4, 4), slow=("compiles",)
    ),
    TransformRow(name="Flow++", make=lambda: tiny_flowpp().transform, event=(1, 4, 4), slow=("compiles",)),
    TransformRow(
        name="NICE-context",
        make=lambda: fk.zoo.nice(5, levels=None, hidden=(8,), context_shape=(2,)).transform,
        event=(5,),
        context=(2,),
        slow=("compiles",),
    ),
    TransformRow(
        name="RealNVP-tabular-context",
        make=lambda: fk.zoo.realnvp_tabular(5, couplings=3, hidden=(8,), context_shape=(2,)).transform,
        event=(5,),
        context=(2,),
        slow=("compiles",),
    ),
    TransformRow(
        name="Glow-main-context",
        make=lambda: main_flow_of(tiny_glow(context_shape=(2,))),
        event=(1, 4, 4),
        context=(2,),
        slow=("compiles",),
    ),
    TransformRow(
        name="Glow-main-LU",
        make=lambda: main_flow_of(tiny_glow(lu=True)),
        event=(1, 4, 4),
        slow=("compiles",),
    ),
    TransformRow(name="LULinear", make=lambda: fk.LULinear(4), event=(4,)),
    TransformRow(name="LULinear-no-bias", make=lambda: fk.LULinear(3, bias=False), event=(3,)),
    TransformRow(name="QRLinear", make=lambda: fk.QRLinear(4), event=(4,)),
    TransformRow(name="HouseholderLinear", make=lambda: fk.HouseholderLinear(4), event=(4,)),
    TransformRow(name="HouseholderLinear-two-of-odd", make=lambda: fk.HouseholderLinear(3, 2, bias=False), event=(3,)),
    TransformRow(name="MatrixExpLinear", make=lambda: fk.MatrixExpLinear(4), event=(4,)),
    TransformRow(name="LUConv1x1", make=lambda: fk.LUConv1x1((3, 2, 2)), event=(3, 2, 2)),
    TransformRow(name="LUConv1x1-per-half", make=lambda: fk.LUConv1x1((2, 2, 2, 2)), event=(2, 2, 2, 2)),
    TransformRow(name="Partition", make=lambda: fk.Partition(torch.tensor([[0, 1, 1], [1, 0, 1]]) == 1), event=(2, 3)),
    TransformRow(name="Permute", make=lambda: fk.Permute((2, 0, 3, 1)), event=(4,)),
    TransformRow(name="Permute-channels", make=lambda: fk.Permute((2, 0, 1), dim=-3), event=(3, 2, 1)),
    # At momentum 0 it is in train mode what it is in eval mode; elsewhere it breaks `purity`: see test_norm.py.
    TransformRow(name="BatchNorm", make=lambda: batch_norm((3,)), event=(3,)),
    TransformRow(name="BatchNorm-per-channel", make=lambda: batch_norm((2, 1, 1)), event=(2, 2, 3)),
    TransformRow(name="Exp", make=lambda: fk.Exp(), event=(3,)),
    TransformRow(name="Exp-inverse", make=lambda: fk.Exp().inv, event=(3,)),
    TransformRow(name="Softplus", make=lambda: fk.Softplus(), event=(3,)),
    TransformRow(name="Tanh", make=lambda: fk.Tanh(), event=(3,), options={"tails": 1.0}),
    TransformRow(name="LeakyReLU", make=lambda: fk.LeakyReLU(slope=0.1), event=(3,)),
    TransformRow(name="Power", make=lambda: fk.Power(2.5), event=(3,)),
    TransformRow(name="Power-negative", make=lambda: fk.Power(-0.5), event=(2, 2)),
    TransformRow(name="ScaleShift", make=lambda: fk.ScaleShift(-2.0, 1.0), event=(3,)),
    TransformRow(
        name="ScaleShift-interval",
        make=lambda: fk.ScaleShift(-1 / 255, 1.0, domain=constraints.interval(0.0, 255.0)),
        event=(3,),
    ),
    TransformRow(
        name="ScaleShift-per-channel",
        make=lambda: fk.ScaleShift(torch.tensor([0.5, -3.0]).reshape(2, 1, 1), torch.tensor(1.0)),
        event=(2, 2, 3),
    ),
    TransformRow(name="Slice", make=lambda: fk.Slice(2, fk.Normal((3,)), dim=-1), event=(5,)),
    TransformRow(name="Slice-last-axis-of-two", make=lambda: fk.Slice(1, fk.Logistic((3, 2)), dim=-1), event=(3, 3)),
    TransformRow(name="Slice-conditional", make=lambda: fk.Slice(2, normal_given(2, 1), dim=-1), event=(3,)),
    TransformRow(
        name="Slice-encoder-context",
        make=lambda: fk.Slice(2, normal_given(4, 3), dim=-1, encoder=mlp((2,), (4,), context=3)),
        event=(5,),
        context=(3,),
    ),
    TransformRow(name="Inverse-Slice", make=lambda: fk.Slice(2, normal_given(2, 2), dim=-1).inv, event=(2,)),
    TransformRow(name="Chain-two-scales", make=lambda: two_scales(), event=(1, 2, 2)),
    *maps_in_schemes(),
]

DISTRIBUTIONS = [
    DistributionRow(name="Normal", make=lambda: fk.Normal((1,))),
    DistributionRow(name="Normal-scalar", make=lambda: fk.Normal((), loc=3.0, scale=0.1)),
    DistributionRow(
        name="Normal-two", make=lambda: fk.Normal((2,), loc=torch.tensor([1.0, -40.0]), scale=torch.tensor([0.1, 5.0]))
    ),
    DistributionRow(name="Normal-image", make=lambda: fk.Normal((2, 3, 4))),
    DistributionRow(name="Logistic", make=lambda: fk.Logistic((1,), loc=-2.0, scale=3.0)),
    DistributionRow(name="Logistic-two", make=lambda: fk.Logistic((2, 1))),
    DistributionRow(
        name="Normal-trainable",
        make=lambda: fk.Normal((2,), loc=torch.tensor([3.0, 0.0]), scale=0.2, trainable=True),
    ),
    DistributionRow(name="Logistic-trainable", make=lambda: fk.Logistic((2,), scale=2.0, trainable=True)),
    DistributionRow(name="StudentT", make=lambda: fk.StudentT((1,), df=3.0, loc=2.0, scale=0.1)),
    DistributionRow(
        name="StudentT-trainable",
        make=lambda: fk.StudentT((2,), df=torch.tensor([4.0, 300.0]), loc=-1.0, trainable=True),
    ),
    DistributionRow(
        name="MultivariateNormal",
        make=lambda: fk.MultivariateNormal(2, loc=5.0, covariance=torch.tensor([[4.0, 1.9], [1.9, 1.0]])),
    ),
    DistributionRow(name="MultivariateNormal-trainable", make=lambda: fk.MultivariateNormal((2,), trainable=True)),
    DistributionRow(name="MultivariateNormal-rows", make=lambda: fk.MultivariateNormal((2, 3), trainable=True)),
    DistributionRow(
        name="Mixture-StudentT",
        make=lambda: fk.Mixture(
            fk.StudentT((2, 1), df=torch.tensor([[3.0], [9.0]]), loc=torch.tensor([[-2.0], [1.0]])), weights=[1.0, 3.0]
        ),
    ),
    DistributionRow(
        name="Mixture-full-covariances",
        make=lambda: fk.Mixture(fk.MultivariateNormal((3, 2), loc=2 * torch.randn(3, 2), trainable=True)),
        options={"perturb": 0.5},
    ),
    DistributionRow(name="MixtureOfNormals", make=lambda: fk.MixtureOfNormals((2,), components=4, spread=2.0)),
    DistributionRow(name="MixtureOfNormals-image", make=lambda: fk.MixtureOfNormals((2, 1, 3), components=2)),
    DistributionRow(
        name="Given-Normal",
        make=lambda: fk.Given(fk.Normal((2,), loc=1.0, scale=0.5), mlp((3,), (2, 2)), context_ndim=1),
        context=(3,),
        options={"perturb": 0.3},
    ),
    DistributionRow(
        name="Given-StudentT-trainable",
        make=lambda: fk.Given(fk.StudentT((1,), df=5.0, trainable=True), mlp((3,), (1, 3)), context_ndim=1),
        context=(3,),
        options={"perturb": 0.3},
    ),
    DistributionRow(
        name="Given-MultivariateNormal",
        make=lambda: fk.Given(fk.MultivariateNormal(2), mlp((2, 2), (5,)), context_ndim=2),
        context=(2, 2),
        options={"perturb": 0.3},
    ),
    DistributionRow(
        name="Given-Mixture",
        make=lambda: fk.Given(fk.MixtureOfNormals((1,), 3, trainable=False), mlp((3,), (9,)), context_ndim=1),
        context=(3,),
        options={"perturb": 0.3},
    ),
    DistributionRow(name="Uniform", make=lambda: fk.Uniform((1,)), options={"bounds": (0.0, 1.0)}),
    DistributionRow(
        name="Uniform-box",
        make=lambda: fk.Uniform((2, 2), torch.tensor([[-1.0], [0.0]]), torch.tensor([3.0, 0.5])),
        options={"bounds": (torch.tensor([[-1.0], [0.0]]), torch.tensor([3.0, 0.5]))},
    ),
    DistributionRow(name="Uniform-two", make=lambda: fk.Uniform((2,), -1.0, 3.0), options={"bounds": (-1.0, 3.0)}),
    DistributionRow(
        name="Flow",
        make=lambda: fk.Flow(fk.Chain(fk.ActNorm((1,)), fk.Elementwise(MixLogistic(3), (1,))), fk.Logistic((1,))),
        options={"perturb": 0.3},
    ),
    DistributionRow(
        name="Flow-two",
        make=lambda: fk.Flow(
            fk.Chain(
                fk.MixLogisticCDFCoupling(mlp((1,), (1, 8)), components=2, dim=-1),
                fk.Flip(dim=-1),
                fk.AffineCoupling(mlp((1,), (1, 2)), dim=-1, log_scale_bound=1.0),
            ),
            fk.Normal((2,)),
        ),
        options={"perturb": 0.3},
    ),
    DistributionRow(
        name="Flow-conditional",
        make=lambda: fk.Flow(
            fk.Chain(
                fk.AffineCoupling(mlp((1,), (1, 2), context=4), dim=-1, log_scale_bound=1.0),
                fk.FromContext(Affine(), mlp((4,), (2, 2)), event_ndim=1),
            ),
            fk.Normal((2,)),
            context_net=mlp((3,), (4,)),
            context_shape=(3,),
        ),
        context=(3,),
        options={"perturb": 0.3},
    ),
    DistributionRow(
        name="Flow-on-a-mixture",
        make=lambda: fk.Flow(fk.LULinear(2), fk.MixtureOfNormals((2,), components=3, spread=2.0)),
    ),
    DistributionRow(
        name="Flow-on-a-conditional-base",
        make=lambda: fk.Flow(
            fk.AffineCoupling(mlp((1,), (1, 2), context=4), dim=-1, log_scale_bound=1.0),
            fk.Given(fk.Normal((2,)), mlp((4,), (2, 2)), context_ndim=1),
            context_net=mlp((3,), (4,)),
            context_shape=(3,),
        ),
        context=(3,),
        options={"perturb": 0.3},
    ),
    DistributionRow(name="Flow-on-the-cube", make=lambda: cube_noise((2,)), options={"bounds": (0.0, 1.0)}),
    DistributionRow(
        name="Flow-of-a-flow",
        make=lambda: fk.Flow(
            fk.FromContext(Affine(), mlp((3,), (1, 2)), event_ndim=1),
            fk.Flow(
                fk.FromContext(MixLogistic(2), mlp((3,), (1, 8)), event_ndim=1), fk.Normal((1,)), context_shape=(3,)
            ),
            context_shape=(3,),
        ),
        context=(3,),
        options={"perturb": 0.3},
        slow=("compiles",),
    ),
    DistributionRow(
        name="Flow-dequantized",
        make=lambda: fk.Flow(
            fk.Chain(fk.UniformDequantizer(levels=5), fk.Logit(margin=0.05), fk.ActNorm((1,))), fk.Normal((1,))
        ),
    ),
    DistributionRow(
        name="Flow-variational",
        make=lambda: fk.Flow(
            fk.Chain(
                fk.VariationalDequantizer(cube_noise((1,), context=4), levels=4, encoder=Centre(1, 4)),
                fk.Logit(margin=0.05),
                fk.Elementwise(MixLogistic(2), (1,)),
            ),
            fk.Normal((1,)),
        ),
        options={"perturb": 0.3},
    ),
    DistributionRow(name="Glow", make=lambda: tiny_glow(), slow=("compiles",)),
    DistributionRow(
        name="Flow-argmax",
        make=lambda: fk.Flow(
            fk.Chain(fk.ArgmaxDequantizer(fk.Normal((3,)), levels=3), fk.LULinear(3)), fk.Normal((3,))
        ),
        options={"perturb": 0.3},
    ),
    DistributionRow(
        name="Flow-binary",
        make=lambda: fk.Flow(
            fk.Chain(fk.BinaryDequantizer(fk.Normal((2,)), levels=4), fk.LULinear(2)), fk.Normal((2,))
        ),
        options={"perturb": 0.3},
    ),
    DistributionRow(name="maf", make=lambda: fk.zoo.maf(2, 2, (8,), batch_norm=False), slow=("compiles",)),
    DistributionRow(
        name="iaf", make=lambda: fk.zoo.iaf(2, 1, (8,), context_shape=(3,)), context=(3,), slow=("compiles",)
    ),
    DistributionRow(name="nsf", make=lambda: fk.zoo.nsf(2, 1, (8,), bins=3), slow=("compiles",)),
    DistributionRow(
        name="nsf-autoregressive",
        make=lambda: fk.zoo.nsf(2, 1, (8,), autoregressive=True, bins=3, context_shape=(3,)),
        context=(3,),
        slow=("compiles",),
    ),
    DistributionRow(name="Flow++", make=lambda: tiny_flowpp(), slow=("compiles",)),
    DistributionRow(
        name="Flow++-noise",
        make=lambda: dequantizer_of(tiny_flowpp()).noise,
        context=(2, 4, 2),
        options={"bounds": (0.0, 1.0)},
        slow=("compiles",),
    ),
    DistributionRow(
        name="Flow-two-scales",
        make=lambda: fk.Flow(
            fk.Chain(
                fk.LULinear(2),
                fk.Slice(1, normal_given(1, 1), dim=-1),
                fk.Elementwise(MixLogistic(2), (1,)),
            ),
            fk.Logistic((1,)),
        ),
        options={"perturb": 0.3},
        slow=("compiles",),
    ),
]
