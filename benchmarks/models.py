"""The same architectures in several libraries: how deep, how wide, how many bins.

Libraries are imported only where one of their models is built: zuko's import switches the checks of
`torch.distributions` off everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import flowkit as fk

__all__ = [
    "Model",
    "flowkit_maf",
    "flowkit_nsf",
    "flowkit_realnvp",
    "nflows_maf",
    "nflows_nsf",
    "normflows_maf",
    "normflows_nsf",
    "pyro_maf",
    "pyro_nsf",
    "zuko_model",
]


class Model(NamedTuple):
    """A flow of any library.

    `log_prob(x)` is what trains it, and `from_latent(z)` is what it does to sample.
    """

    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    from_latent: Callable[[Tensor], Tensor]
    to_latent: Callable[[Tensor], Tensor]

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return sum(parameter.numel() for parameter in self.module.parameters())


def flowkit_model(flow: fk.Flow) -> Model:
    """A flow of this library."""
    return Model(flow, flow.log_prob, flow.from_latent, flow.to_latent)


def flowkit_nsf(features: int, transforms: int, hidden: Sequence[int], bins: int, bound: float) -> Model:
    """Splines conditioned by MADEs, the order reversed from one to the next, and nothing between: as zuko has them."""

    def layer(number: int) -> fk.Autoregressive:
        spline = fk.maps.RationalQuadratic(bins, bound)
        order = range(features) if number % 2 == 0 else range(features)[::-1]
        return fk.Autoregressive(
            spline, fk.nets.MADE(features, spline.num_params, hidden, activation=nn.ReLU, order=order)
        )

    return flowkit_model(fk.Flow(fk.Chain(*map(layer, range(transforms))), fk.Normal((features,))))


def flowkit_maf(features: int, transforms: int, hidden: Sequence[int]) -> Model:
    """The zoo's, without batch norm."""
    return flowkit_model(fk.zoo.maf(features, transforms, hidden, batch_norm=False))


def flowkit_realnvp(features: int, transforms: int, hidden: Sequence[int]) -> Model:
    """The zoo's; it learns one number more in each coupling, the scale of the paper's section 4.1."""
    return flowkit_model(fk.zoo.realnvp_tabular(features, couplings=transforms, hidden=hidden))


def zuko_model(name: str, features: int, transforms: int, hidden: Sequence[int], **options: int) -> Model:
    """`zuko.flows.NSF`, `MAF` or `RealNVP`; its splines have the bound 5."""
    import zuko

    flow = getattr(zuko.flows, name)(features, transforms=transforms, hidden_features=tuple(hidden), **options)
    return Model(flow, lambda x: flow().log_prob(x), lambda z: flow().transform.inv(z), lambda x: flow().transform(x))


def nflows_nsf(features: int, transforms: int, hidden: Sequence[int], bins: int, bound: float) -> Model:
    """The same as `flowkit_nsf`; nflows wants one width for all hidden layers."""
    from nflows.transforms import MaskedPiecewiseRationalQuadraticAutoregressiveTransform

    def layer(**options: Any) -> nn.Module:
        return MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
            features, num_bins=bins, tails="linear", tail_bound=bound, **options
        )

    return _nflows(features, transforms, hidden, layer)


def nflows_maf(features: int, transforms: int, hidden: Sequence[int]) -> Model:
    """Affine maps conditioned by MADEs of one width."""
    from nflows.transforms import MaskedAffineAutoregressiveTransform

    return _nflows(
        features, transforms, hidden, lambda **options: MaskedAffineAutoregressiveTransform(features, **options)
    )


def _nflows(features: int, transforms: int, hidden: Sequence[int], layer: Callable[..., nn.Module]) -> Model:
    from nflows.distributions.normal import StandardNormal
    from nflows.flows.base import Flow
    from nflows.transforms import CompositeTransform, ReversePermutation

    (width,) = set(hidden)
    parts: list[nn.Module] = []
    for number in range(transforms):
        parts += [ReversePermutation(features)] if number else []
        parts.append(layer(hidden_features=width, num_blocks=len(hidden) - 1, use_residual_blocks=False))
    flow = Flow(CompositeTransform(parts), StandardNormal([features]))
    return Model(flow, flow.log_prob, lambda z: flow._transform.inverse(z)[0], lambda x: flow._transform(x)[0])


def normflows_nsf(features: int, transforms: int, hidden: Sequence[int], bins: int, bound: float) -> Model:
    """normflows' own wrapper has residual nets alone; this is what it wraps, turned the same way round."""
    from normflows.flows.base import Reverse
    from normflows.flows.neural_spline.autoregressive import MaskedPiecewiseRationalQuadraticAutoregressive

    def layer(**options: Any) -> nn.Module:
        return Reverse(
            MaskedPiecewiseRationalQuadraticAutoregressive(
                features, num_bins=bins, tails="linear", tail_bound=bound, init_identity=False, **options
            )
        )

    return _normflows(features, transforms, hidden, layer)


def normflows_maf(features: int, transforms: int, hidden: Sequence[int]) -> Model:
    """As the library has it: samples in one pass, and the density feature by feature."""
    from normflows.flows import MaskedAffineAutoregressive

    return _normflows(features, transforms, hidden, lambda **options: MaskedAffineAutoregressive(features, **options))


def _normflows(features: int, transforms: int, hidden: Sequence[int], layer: Callable[..., nn.Module]) -> Model:
    import normflows

    (width,) = set(hidden)
    parts: list[nn.Module] = []
    for number in range(transforms):
        parts += [normflows.flows.Permute(features, mode="swap")] if number else []
        parts.append(layer(hidden_features=width, num_blocks=len(hidden) - 1, use_residual_blocks=False))
    flow = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(features, trainable=False), parts)
    return Model(flow, flow.log_prob, flow.forward, flow.inverse)


def pyro_nsf(features: int, transforms: int, hidden: Sequence[int], bins: int, bound: float) -> Model:
    """Pyro's autoregressive splines, turned round so that densities take one pass."""
    from pyro.distributions.transforms import SplineAutoregressive
    from pyro.nn import AutoRegressiveNN

    def layer(order: Tensor) -> nn.Module:
        net = AutoRegressiveNN(features, list(hidden), param_dims=[bins, bins, bins - 1], permutation=order)
        return SplineAutoregressive(features, net, count_bins=bins, bound=bound, order="quadratic")

    return _pyro(features, transforms, layer)


def pyro_maf(features: int, transforms: int, hidden: Sequence[int]) -> Model:
    """Pyro's affine maps, turned round so that densities take one pass."""
    from pyro.distributions.transforms import AffineAutoregressive
    from pyro.nn import AutoRegressiveNN

    def layer(order: Tensor) -> nn.Module:
        return AffineAutoregressive(AutoRegressiveNN(features, list(hidden), permutation=order))

    return _pyro(features, transforms, layer)


def _pyro(features: int, transforms: int, layer: Callable[[Tensor], nn.Module]) -> Model:
    orders = [
        torch.arange(features) if number % 2 == 0 else torch.arange(features).flip(0) for number in range(transforms)
    ]
    module = nn.ModuleList(layer(order) for order in orders)

    def to_latent(x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros(())
        x = x.view_as(x)  # the library keeps the results for the last tensor that it saw
        for part in module:
            z = part(x)  # type: ignore[operator]
            total = total + part.log_abs_det_jacobian(x, z)  # type: ignore[operator]
            x = z
        return x, total

    def log_prob(x: Tensor) -> Tensor:
        z, term = to_latent(x)
        return term + torch.distributions.Normal(torch.zeros_like(z), 1.0).log_prob(z).sum(-1)

    def from_latent(z: Tensor) -> Tensor:
        z = z.view_as(z)
        for part in reversed(module):  # type: ignore[call-overload]
            z = part.inv(z)
        return z

    return Model(module, log_prob, from_latent, lambda x: to_latent(x)[0])
