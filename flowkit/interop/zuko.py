"""Flows of zuko with their weights."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.bijectors import Autoregressive, Elementwise, FromContext, LULinear, MatrixExpLinear, Permute
from flowkit.flow import Flow, tensor_of
from flowkit.interop.conditioners import Read, coupled, flow_of, mlp, scaled, slope_offset
from flowkit.maps import Additive, Affine, RationalQuadratic
from flowkit.nets import MADE
from flowkit.transform import Chain, Map, Transform

__all__ = ["from_zuko"]


def from_zuko(flow: nn.Module) -> Flow:
    """A flow of zuko as a flow of flowkit, with its weights: equal log-densities, and equal samples from equal noise.

    It is made of flowkit's parts alone, on copies of the weights, which train on. Autoregressive flows keep the order
    of their features and whatever graph they were made with, and sample in the arithmetic of one pass.

    What is brought over: `MAF`, `NSF`, `NICE` and `RealNVP`, conditional or not, and any `zuko.flows.Flow` composed of
    their layers, elementwise layers, permutations, rotations, LU layers with a positive diagonal and inverses of these,
    with affine, additive or rational-quadratic maps, on a diagonal normal. Residual nets, normalized nets, circular
    splines and all other maps have no equivalent and are refused by name.

    Args:
        flow: a `zuko.flows.Flow`; `flow(c).log_prob(x)` becomes `result.log_prob(x, c)`.

    Shapes:
        x: (*batch, features); context: (*batch, C) for a conditional flow; log_prob: (*batch).

    Raises:
        ImportError: if zuko is not installed.
        TypeError: if `flow` is no flow of zuko.
        ValueError: for a part without an equivalent, with its path.

    See docs/converting.md.
    """
    zuko = _zuko()
    if not isinstance(flow, zuko.lazy.Flow):
        raise TypeError(f"from_zuko: flow is a {type(flow).__module__}.{type(flow).__name__}, wanted a zuko.flows.Flow")
    with torch.no_grad():
        transform = _Converter(zuko).transform(flow.transform, "transform")
        base: Any = flow.base
        distribution = base() if isinstance(base, zuko.lazy.UnconditionalDistribution) else None
        if not isinstance(distribution, zuko.distributions.DiagNormal):
            raise _no_equivalent("base", base if distribution is None else distribution)
        normal: Any = distribution.base_dist
        transform, latent = scaled(transform, normal.loc, normal.scale, trained=any(True for _ in base.parameters()))
    width = max((_context_of(module) for module in flow.modules()), default=0)
    return flow_of(transform, latent, flow, context_shape=(width,) if width else None)


def _zuko() -> Any:
    try:
        import zuko
    except ImportError as error:
        raise ImportError("from_zuko needs zuko: pip install zuko") from error
    return zuko


def _no_equivalent(path: str, part: object, why: str = "") -> ValueError:
    name = part.__name__ if isinstance(part, type) else type(part).__name__
    return ValueError(f"from_zuko: {path} is a {name}{why}, which has no equivalent in flowkit")


def _context_of(module: nn.Module) -> int:
    """How wide a context the layer reads."""
    hyper: Any = getattr(module, "hyper", None)
    if hyper is None:
        return 0
    total = sum(math.prod(shape) for shape in module.shapes)  # type: ignore[union-attr]
    if hasattr(module, "mask"):
        return hyper.in_features - int(module.mask.sum())  # type: ignore[operator]
    if hasattr(module, "passes"):
        return hyper.in_features - hyper.out_features // total
    return hyper.in_features


class _Converter:
    def __init__(self, zuko: Any) -> None:
        self.zuko = zuko

    def transform(self, part: Any, path: str) -> Transform:
        zuko = self.zuko
        if isinstance(part, zuko.lazy.LazyComposedTransform):
            return Chain(*(self.transform(each, f"{path}.transforms.{i}") for i, each in enumerate(part.transforms)))
        if isinstance(part, zuko.lazy.LazyInverse):
            return self.transform(part.transform, f"{path}.transform").inv
        if isinstance(part, zuko.flows.MaskedAutoregressiveTransform):
            map, rule = self.map(part, path)
            features = part.hyper.out_features // part.total
            layers, activation = self.layers(part.hyper, zuko.nn.MaskedLinear, f"{path}.hyper")
            masked = [(each.weight, each.bias, each.mask) for each in layers]
            return Autoregressive(map, _read(MADE.from_layers(masked, features, activation), rule))
        if isinstance(part, zuko.flows.GeneralCouplingTransform):
            map, rule = self.map(part, path)
            net = self.mlp(part, int((~part.mask).sum()), f"{path}.hyper")
            return coupled(part.mask, map, _read(net, rule))
        if isinstance(part, zuko.flows.gaussianization.ElementWiseTransform):
            map, rule = self.map(part, path)
            if hasattr(part, "hyper"):
                net = self.mlp(part, part.hyper.out_features // part.total, f"{path}.hyper", only_context=True)
                return FromContext(map, _read(net, rule), event_ndim=1)
            raw = torch.cat([phi.reshape(len(phi), -1) for phi in part.phi], -1)
            elementwise = Elementwise(map, (len(raw),))
            elementwise.params = nn.Parameter(raw.clone() if rule is None else rule(raw))
            return elementwise
        if isinstance(part, zuko.lazy.UnconditionalTransform):
            return self.fixed(part, path)
        raise _no_equivalent(path, part)

    def fixed(self, part: Any, path: str) -> Transform:
        """A transform with tensors of its own."""
        transforms, made = self.zuko.transforms, part()
        if isinstance(made, transforms.PermutationTransform):
            return Permute(made.order)
        if isinstance(made, transforms.RotationTransform):
            matrix = tensor_of(part)
            rotation = MatrixExpLinear(len(matrix), bias=False)
            rotation.matrix.exponent = nn.Parameter(matrix - matrix.mT)
            return rotation
        if isinstance(made, transforms.LULinearTransform):
            diagonal = made.L.diagonal()
            if not (diagonal > 0).all():
                raise _no_equivalent(path, made, " with a diagonal that is not positive")
            factors = (made.L / diagonal).tril(-1) + diagonal.log().diag() + (diagonal[:, None] * made.U).triu(1)
            linear = LULinear(len(diagonal), bias=False)
            linear.matrix.factors = nn.Parameter(factors)
            return linear
        raise _no_equivalent(path, made)

    def map(self, part: Any, path: str) -> tuple[Map, nn.Module | None]:
        """The map, and how the outputs of zuko's net are read for it."""
        transforms = self.zuko.transforms
        kind: Any = part.univariate
        options: dict[str, Any] = {}
        if isinstance(kind, functools.partial):
            if kind.args:
                raise _no_equivalent(f"{path}.univariate", kind)
            kind, options = kind.func, kind.keywords
        slope = options.get("slope", 1e-3)
        if kind is transforms.MonotonicAffineTransform and set(options) <= {"slope"}:
            return Affine(), AffineRule(slope)
        if kind is transforms.AdditiveTransform and not options:
            return Additive(), None
        if kind is transforms.MonotonicRQSTransform and set(options) <= {"slope", "bound"}:
            rule = SplineRule(part.shapes[0][0], slope)
            spline = RationalQuadratic(
                rule.bins,
                float(options.get("bound", 5.0)),
                min_width=rule.min_share,
                min_height=rule.min_share,
                min_slope=rule.min_slope,
            )
            return spline, rule
        name = getattr(kind, "__name__", type(kind).__name__)
        raise ValueError(f"from_zuko: {path}.univariate is {name}, which has no equivalent in flowkit")

    def mlp(self, part: Any, features: int, path: str, *, only_context: bool = False) -> nn.Module:
        layers, activation = self.layers(part.hyper, self.zuko.nn.Linear, path)
        stacked = [layer for layer in layers if layer.weight.ndim != 2]
        if stacked:
            raise _no_equivalent(path, stacked[0], " with a stack")
        weights = [
            (each.weight, each.weight.new_zeros(len(each.weight)) if each.bias is None else each.bias)
            for each in layers
        ]
        context = 0 if only_context else _context_of(part)
        return mlp(weights, (features, part.total), context, activation)

    def layers(self, net: Any, linear: type, path: str) -> tuple[list[Any], Any]:
        """Its linear layers, and what makes the nonlinearity between them."""
        for i, module in enumerate(net):
            plain = isinstance(module, linear) if i % 2 == 0 else type(module).__module__.startswith("torch.nn.")
            if not plain or (i % 2 == 1 and type(module) is not type(net[1])):
                raise _no_equivalent(f"{path}.{i}", module, " in that place")
        activation = functools.partial(copy.deepcopy, net[1]) if len(net) > 1 else nn.ReLU
        return list(net)[::2], activation


def _read(net: nn.Module, rule: nn.Module | None) -> nn.Module:
    return net if rule is None else Read(net, rule)


class AffineRule(nn.Module):
    """(shift, a) as (log-scale, shift), with log-scale a / (1 + |a / log slope|): the scale is above the slope."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, outputs: Tensor) -> Tensor:
        shift, raw = outputs.unbind(-1)
        return torch.stack([raw / (1 + (raw / math.log(self.slope)).abs()), shift], -1)

    def extra_repr(self) -> str:
        return f"slope={self.slope}"


class SplineRule(nn.Module):
    """Bins and slopes of zuko's splines as parameters of `RationalQuadratic`.

    A bin takes softmax(w / (1 + |2 w / log slope|)) of the interval, the slope at a knot is
    exp(d / (1 + |d / log slope|)). Both are above the least of the map, which is half of what they can come to, and
    are turned back into its parameters.
    """

    def __init__(self, bins: int, slope: float) -> None:
        super().__init__()
        self.bins, self.slope = bins, slope
        self.min_share, self.min_slope = slope / (2 * bins), slope / 2

    def forward(self, outputs: Tensor) -> Tensor:
        widths, heights, slopes = outputs.split([self.bins, self.bins, self.bins - 1], -1)
        least = math.log(self.slope)
        shares = [(raw / (1 + (2 * raw / least).abs())).softmax(-1) for raw in (widths, heights)]
        above = (slopes / (1 + (slopes / least).abs())).exp() - self.min_slope
        # The inverse of softplus, in the form that keeps small and large values.
        raw_slopes = above + torch.log(-torch.expm1(-above)) - slope_offset(self.min_slope)
        return torch.cat([*((share - self.min_share).log() for share in shares), raw_slopes], -1)

    def extra_repr(self) -> str:
        return f"bins={self.bins}, slope={self.slope}"
