"""The table: parts of other libraries, and the properties that each fails, with what is behind it."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.distributions import constraints, transforms

from flowkit.testing import DISTRIBUTION_PROPERTIES, PROPERTIES
from tests.peers import adapters
from tests.peers.adapters import own_validation, with_weights

__all__ = ["DENSITIES", "PARTS", "PeerRow"]


@dataclass(frozen=True, kw_only=True)
class PeerRow:
    """One part of another library.

    Attributes:
        library: the package that must be installed.
        name: of the part.
        make: builds it behind an adapter; the weights are those of the global generator at seed 0.
        event: shape of one x; None for a distribution.
        context: shape of one context; None for none.
        options: further arguments of the case.
        fails: the properties that it fails, all of them.
        note: what is behind it, as the library's code shows.
    """

    library: str
    name: str
    make: Callable[[], Any]
    event: tuple[int, ...] | None = None
    context: tuple[int, ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    fails: Set[str] = frozenset()
    note: str = ""


def of(library: str, name: str = "") -> Any:
    """A module of another library, imported without what that changes elsewhere."""
    with own_validation():
        return import_module(f"{library}.{name}" if name else library)


def mlp(size: int, out: int, context: int = 0) -> nn.Module:
    return nn.Sequential(nn.Linear(size + context, 8), nn.Tanh(), nn.Linear(8, out))


class NflowsNet(nn.Module):
    """What nflows' couplings take: a net of the half and of the context."""

    def __init__(self, size: int, out: int, context: int = 0) -> None:
        super().__init__()
        self.net = mlp(size, out, context)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return self.net(x if context is None else torch.cat([x, context], -1))


# Raw parameters of the order of a trained net's large ones, for 2,048 elements: 16,384 numbers with 8 examples.
BINS, SPREAD, ELEMENTS = 16, 8.0, 2048


def spline(run: Callable[..., Any], derivatives: int) -> Any:
    generator = torch.Generator().manual_seed(4)  # of six seeds, the peers fail at four to six
    params = SPREAD * torch.randn(ELEMENTS, 2 * BINS + derivatives, generator=generator)
    return adapters.Spline(run, params)


def split(params: torch.Tensor) -> Any:
    return params[..., :BINS], params[..., BINS : 2 * BINS], params[..., 2 * BINS :]


def nflows_spline(x: Any, params: Any, inverse: bool) -> Any:
    run = of("nflows", "transforms.splines.rational_quadratic").unconstrained_rational_quadratic_spline
    return run(x, *split(params), inverse=inverse, tails="linear", tail_bound=3.0)


def normflows_spline(x: Any, params: Any, inverse: bool) -> Any:
    run = of("normflows", "utils.splines").unconstrained_rational_quadratic_spline
    return run(x, *split(params), inverse=inverse, tails="linear", tail_bound=3.0)


def pyro_spline(x: Any, params: Any, inverse: bool) -> Any:
    module = of("pyro", "distributions.transforms.spline")
    widths, heights, derivatives = split(params)
    derivatives = torch.nn.functional.softplus(derivatives)
    widths, heights = widths.softmax(-1), heights.softmax(-1)
    return module._monotonic_rational_spline(x, widths, heights, derivatives, inverse=inverse, bound=3.0)


def zuko_spline(x: Any, params: Any, inverse: bool) -> Any:
    transform = of("zuko", "transforms").MonotonicRQSTransform(*split(params), bound=3.0)
    return (transform.inv if inverse else transform).call_and_ladj(x)


def flowkit_spline(x: Any, params: Any, inverse: bool) -> Any:
    part = of("flowkit").maps.RationalQuadratic(BINS, 3.0)
    return part.inverse(x, params) if inverse else part(x, params)


def zuko_flow(kind: str, features: int, context: int = 0, weights: float | None = None, **options: Any) -> Any:
    flow = getattr(of("zuko", "flows"), kind)(features, context, transforms=2, **options)
    return flow if weights is None else with_weights(flow, weights)


def nflows_flow(context: int, batch_size: int | None = None) -> Any:
    coupling = of("nflows", "transforms").AffineCouplingTransform([1, 0], lambda i, o: NflowsNet(i, o, context))
    base = of("nflows", "distributions").StandardNormal((2,))
    made = adapters.NflowsFlow(of("nflows", "flows.base").Flow(coupling, base), 2, context=bool(context))
    made.batch_size = batch_size
    return made


def nflows_on_a_box() -> Any:
    part = of("nflows", "transforms").PointwiseAffineTransform(0.5, 2.0)
    base = of("nflows", "distributions.uniform").BoxUniform(torch.zeros(2), torch.ones(2))
    return adapters.NflowsFlow(of("nflows", "flows.base").Flow(part, base), 2)


def torchflows_conv() -> Any:
    name = "bijections.finite.autoregressive.transformers.linear.convolution"
    conv = of("torchflows", name).Invertible1x1ConvolutionTransformer((2, 2, 2))
    params = 0.5 * torch.randn(*conv.parameter_shape)
    return Given(conv, params, (2, 2, 2))


class Given(adapters.Peer):
    """A torchflows transformer with parameters of its own."""

    def __init__(self, peer: nn.Module, params: torch.Tensor, event: tuple[int, ...]) -> None:
        super().__init__(peer, event)
        self.register_buffer("params", params)

    def run(self, x: torch.Tensor, context: torch.Tensor | None, inverse: bool) -> Any:
        params = self.params.expand(len(x), *self.params.shape)
        return (self.peer.inverse if inverse else self.peer.forward)(x, params)


def torchflows_sigmoid() -> Any:
    layer = of("torchflows", "bijections.finite.autoregressive.layers").DeepSigmoidalCoupling((3,))
    return adapters.Torchflows(with_weights(layer, 0.5), (3,))


def elementwise(name: str, *args: Any, **sets: Any) -> PeerRow:
    return PeerRow(
        library="torch",
        name=name,
        make=lambda: adapters.Torch(getattr(transforms, name)(*args), (3,), **sets),
        event=(3,),
        options={"tails": 1.0},
    )


# What breaks the graph of torch.compile, or the functions of torch.func.
GRAPHS = frozenset({"compiles", "vectorizes"})

SPLINE = {
    "event": (ELEMENTS,),
    "options": {"only": ("float32",)},
    "fails": frozenset({"float32"}),
    "note": "an assertion on a discriminant, or NaN under a root",
}

PARTS = [
    elementwise("ExpTransform", codomain=constraints.positive),
    elementwise("SigmoidTransform", codomain=constraints.unit_interval),
    elementwise("TanhTransform", codomain=constraints.interval(-1.0, 1.0)),
    elementwise("AffineTransform", 1.0, -2.0),
    PeerRow(
        library="zuko",
        name="NICE",
        make=lambda: adapters.Zuko(zuko_flow("NICE", 3, 2, weights=0.3).transform, (3,), context=True),
        event=(3,),
        context=(2,),
        note="an empty batch; a log-term in bfloat16 under autocast",
        fails=GRAPHS | {"batch_shapes", "autocast"},
    ),
    PeerRow(
        library="zuko",
        name="MAF",
        make=lambda: adapters.Zuko(zuko_flow("MAF", 3, hidden_features=(8,)).transform, (3,)),
        event=(3,),
        fails={"batch_shapes", "autocast", "compiles"},
    ),
    PeerRow(
        library="zuko",
        name="NSF",
        make=lambda: adapters.Zuko(zuko_flow("NSF", 3, hidden_features=(8,)).transform, (3,)),
        event=(3,),
        fails={"batch_shapes", "compiles"},
    ),
    PeerRow(
        library="zuko",
        name="GF",
        make=lambda: adapters.Zuko(zuko_flow("GF", 3).transform, (3,)),
        event=(3,),
        note="the inverse is clamped to the bracket of its bisection, in silence",
        fails=GRAPHS | {"batch_shapes", "law_1", "law_2", "autocast", "float32", "gradients", "functional_gradient"},
    ),
    PeerRow(
        library="zuko",
        name="SOSPF",
        make=lambda: adapters.Zuko(zuko_flow("SOSPF", 3, hidden_features=(8,)).transform, (3,)),
        event=(3,),
        note="the inverse is clamped to the bracket of its bisection, in silence",
        fails=GRAPHS | {"batch_shapes", "law_1", "law_2", "autocast", "float32", "gradients", "functional_gradient"},
    ),
    PeerRow(library="zuko", name="RQS, float32", make=lambda: spline(zuko_spline, BINS - 1), **SPLINE),
    PeerRow(
        library="nflows",
        name="AffineCouplingTransform",
        make=lambda: adapters.Nflows(
            of("nflows", "transforms").AffineCouplingTransform([1, 0, 1], lambda i, o: NflowsNet(i, o, 2)),
            (3,),
            context=True,
        ),
        event=(3,),
        context=(2,),
        fails={"autocast", "vectorizes"},
    ),
    PeerRow(
        library="nflows",
        name="MaskedAffineAutoregressiveTransform",
        make=lambda: adapters.Nflows(of("nflows", "transforms").MaskedAffineAutoregressiveTransform(3, 8), (3,)),
        event=(3,),
        fails={"autocast", "compiles"},
    ),
    PeerRow(
        library="nflows",
        name="PiecewiseRationalQuadraticCouplingTransform",
        make=lambda: adapters.Nflows(
            of("nflows", "transforms").PiecewiseRationalQuadraticCouplingTransform(
                [1, 0, 1], NflowsNet, num_bins=4, tails="linear", tail_bound=3.0
            ),
            (3,),
        ),
        event=(3,),
        fails=GRAPHS | {"batch_shapes"},
    ),
    PeerRow(
        library="nflows",
        name="NaiveLinear",
        make=lambda: adapters.Nflows(of("nflows", "transforms").NaiveLinear(3), (3,)),
        event=(3,),
        note="its inverse calls a solver that torch has removed",
        fails=frozenset(PROPERTIES) - {"shape_errors", "context_read"},
    ),
    PeerRow(
        library="nflows",
        name="LULinear",
        make=lambda: adapters.Nflows(of("nflows", "transforms").LULinear(3), (3,)),
        event=(3,),
        note="no triangular solver in bfloat16",
        fails={"dtypes", "autocast"},
    ),
    PeerRow(
        library="nflows",
        name="ActNorm",
        make=lambda: adapters.Nflows(of("nflows", "transforms").ActNorm(3), (3,)),
        event=(3,),
        note="sets itself at the first call in train mode",
        fails={"purity"},
    ),
    PeerRow(library="nflows", name="RQS, float32", make=lambda: spline(nflows_spline, BINS - 1), **SPLINE),
    PeerRow(
        library="normflows",
        name="MaskedAffineFlow",
        make=lambda: adapters.Normflows(
            of("normflows", "flows").MaskedAffineFlow(torch.tensor([1.0, 0.0, 1.0]), mlp(3, 3), mlp(3, 3)), (3,)
        ),
        event=(3,),
    ),
    PeerRow(
        library="normflows",
        name="AffineCouplingBlock",
        make=lambda: adapters.Normflows(of("normflows", "flows").AffineCouplingBlock(mlp(2, 4)), (4,)),
        event=(4,),
        fails={"vectorizes"},
    ),
    PeerRow(
        library="normflows",
        name="LULinearPermute",
        make=lambda: adapters.Normflows(of("normflows", "flows").LULinearPermute(3), (3,)),
        event=(3,),
        fails={"dtypes", "autocast"},
    ),
    PeerRow(
        library="normflows",
        name="ActNorm",
        make=lambda: adapters.Normflows(of("normflows", "flows").ActNorm(3), (3,)),
        event=(3,),
        note="sets itself in eval mode too, and from a batch of one to NaN",
        fails=GRAPHS | {"purity", "functional_gradient"},
    ),
    PeerRow(
        library="normflows",
        name="Shift",
        make=lambda: adapters.Normflows(of("normflows", "transforms").Shift(), (3,)),
        event=(3,),
        note="changes its input",
        fails={"purity", "log_term", "independence", "gradients", "functional_gradient"},
    ),
    PeerRow(library="normflows", name="RQS, float32", make=lambda: spline(normflows_spline, BINS - 1), **SPLINE),
    PeerRow(library="pyro", name="RQS, float32", make=lambda: spline(pyro_spline, BINS - 1), **SPLINE),
    PeerRow(
        library="flowkit",
        name="RQS, float32",
        make=lambda: spline(flowkit_spline, BINS - 1),
        **{**SPLINE, "fails": frozenset(), "note": ""},
    ),
    PeerRow(
        library="FrEIA",
        name="GLOWCouplingBlock",
        make=lambda: adapters.FrEIA(of("FrEIA", "modules").GLOWCouplingBlock([(4,)], subnet_constructor=mlp), (4,)),
        event=(4,),
        note="keeps a lambda",
        fails={"autocast", "copies"},
    ),
    PeerRow(
        library="FrEIA",
        name="AllInOneBlock",
        make=lambda: adapters.FrEIA(of("FrEIA", "modules").AllInOneBlock([(4,)], subnet_constructor=mlp), (4,)),
        event=(4,),
        fails={"batch_shapes", "autocast", "copies"},
    ),
    PeerRow(
        library="torchflows",
        name="Invertible1x1Convolution",
        make=torchflows_conv,
        event=(2, 2, 2),
        note="its log-term leaves out the factor H W",
        fails={"batch_shapes", "log_term", "dtypes", "autocast", "vectorizes"},
    ),
    PeerRow(
        library="torchflows",
        name="DeepSigmoidalCoupling",
        make=torchflows_sigmoid,
        event=(3,),
        note="a sum where a log-sum-exp belongs; the inverse without gradients",
        fails=GRAPHS
        | {
            "batch_shapes",
            "law_1",
            "law_2",
            "log_term",
            "autocast",
            "independence",
            "gradients",
            "parameter_gradients",
        },
    ),
]

DENSITIES = [
    PeerRow(
        library="zuko",
        name="Flow of NICE",
        make=lambda: adapters.ZukoFlow(zuko_flow("NICE", 2, hidden_features=(8,)), 2),
        note="an empty batch; sampling with log_prob runs every net twice",
        fails={"density_shapes", "nets_run_once", "compiles"},
    ),
    PeerRow(
        library="zuko",
        name="Flow of MAF, conditional",
        make=lambda: adapters.ZukoFlow(zuko_flow("MAF", 2, 3, hidden_features=(8,)), 2, context=True),
        context=(3,),
        fails={"density_shapes", "nets_run_once", "compiles"},
    ),
    PeerRow(library="nflows", name="Flow", make=lambda: nflows_flow(0)),
    PeerRow(library="nflows", name="Flow, conditional", make=lambda: nflows_flow(3), context=(3,)),
    PeerRow(
        library="nflows",
        name="Flow, conditional, sampled in batches",
        make=lambda: nflows_flow(3, batch_size=5),
        context=(3,),
        note="pieces are joined along the contexts",
        fails={"noise", "integrates_to_one", "samples_follow_density"},
    ),
    PeerRow(
        library="nflows",
        name="Flow on BoxUniform",
        make=nflows_on_a_box,
        note="it passes a context on that this base does not know",
        fails=frozenset(DISTRIBUTION_PROPERTIES)
        - {"shape_errors", "context_read", "bound_is_below", "nets_run_once", "functional_gradient"},
    ),
]
