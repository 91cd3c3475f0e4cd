"""Flows of nflows with their weights."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit.bijectors import ActNorm, Autoregressive, BatchNorm, LULinear, Permute
from flowkit.flow import Flow, tensor_of
from flowkit.interop.conditioners import Layer, Read, coupled, flow_of, mlp, scaled, slope_offset
from flowkit.maps import Additive, Affine, RationalQuadratic
from flowkit.nets import MADE
from flowkit.transform import Chain, Map, Transform

__all__ = ["from_nflows"]

ACTIVATIONS: dict[Any, type[nn.Module]] = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    F.elu: nn.ELU,
    F.leaky_relu: nn.LeakyReLU,
    F.silu: nn.SiLU,
    F.gelu: nn.GELU,
    F.softplus: nn.Softplus,
    torch.tanh: nn.Tanh,
    F.tanh: nn.Tanh,
    torch.sigmoid: nn.Sigmoid,
    F.sigmoid: nn.Sigmoid,
}


def from_nflows(flow: nn.Module) -> Flow:
    """A flow of nflows as a flow of flowkit, with its weights: equal log-densities, and equal samples from equal noise.

    It is made of flowkit's parts alone, on copies of the weights, which train on, except that BatchNorm has its
    variance plus nflows' epsilon as the running variance. Autoregressive flows sample in the arithmetic of one pass.

    What is brought over: `MaskedAutoregressiveFlow`, `SimpleRealNVP`, and any flow composed of affine, additive and
    rational-quadratic couplings with residual nets, affine and rational-quadratic masked autoregressive layers,
    permutations, LU layers, ActNorm, BatchNorm and inverses of these, on vectors, with a standard or diagonal normal
    as the base. Nets that read a context, drop out or normalize within, splines on the half that passes, and all other
    transforms have no equivalent and are refused by name.

    Args:
        flow: an `nflows.flows.Flow`, in eval mode if it has BatchNorm.

    Shapes:
        x: (*batch, features); log_prob: (*batch).

    Raises:
        ImportError: if nflows is not installed.
        TypeError: if `flow` is no flow of nflows.
        ValueError: for a part without an equivalent, with its path.

    See docs/converting.md.
    """
    nflows = _nflows()
    if not isinstance(flow, nflows.flows.base.Flow):
        raise TypeError(
            f"from_nflows: flow is a {type(flow).__module__}.{type(flow).__name__}, wanted an nflows.flows.Flow"
        )
    embedding: Any = flow._embedding_net
    if not isinstance(embedding, nn.Identity):
        raise _no_equivalent("_embedding_net", embedding)
    with torch.no_grad():
        transform = _Converter(nflows).transform(flow._transform, "_transform")
        base: Any = flow._distribution
        normal = nflows.distributions.normal
        like = tensor_of(flow._transform)
        if type(base) is normal.StandardNormal:
            loc, scale = like.new_zeros(base._shape), like.new_ones(base._shape)
        elif type(base) is normal.DiagonalNormal:
            loc, scale = base.mean_.reshape(base._shape), base.log_std_.exp().reshape(base._shape)
        else:
            raise _no_equivalent("_distribution", base)
        transform, latent = scaled(transform, loc, scale, trained=type(base) is normal.DiagonalNormal)
    return flow_of(transform, latent, flow)


def _nflows() -> Any:
    try:
        import nflows.distributions.normal
        import nflows.flows.base
        import nflows.nn.nets
        import nflows.transforms
        import nflows.transforms.made
    except ImportError as error:
        raise ImportError("from_nflows needs nflows: pip install nflows") from error
    return nflows


def _no_equivalent(path: str, part: object, why: str = "") -> ValueError:
    return ValueError(f"from_nflows: {path} is a {type(part).__name__}{why}, which has no equivalent in flowkit")


class _Converter:
    def __init__(self, nflows: Any) -> None:
        self.nflows = nflows

    def transform(self, part: Any, path: str) -> Transform:
        transforms = self.nflows.transforms
        kind = type(part)
        if kind is transforms.CompositeTransform:
            return Chain(*(self.transform(each, f"{path}._transforms.{i}") for i, each in enumerate(part._transforms)))
        if kind is transforms.InverseTransform:
            return self.transform(part._transform, f"{path}._transform").inv
        if isinstance(part, transforms.permutations.Permutation):
            if part._dim != 1:
                raise _no_equivalent(path, part, f" along dim {part._dim}")
            return Permute(part._permutation)
        if kind is transforms.LULinear:
            return _lu(part)
        if kind is transforms.ActNorm:
            norm = ActNorm((len(part.shift),))
            norm.gain, norm.bias = nn.Parameter(part.log_scale.exp()), nn.Parameter(part.shift.clone())
            return norm
        if kind is transforms.BatchNorm:
            return _batch_norm(part)
        if isinstance(part, transforms.coupling.CouplingTransform):
            return self.coupling(part, path)
        if isinstance(part, transforms.autoregressive.AutoregressiveTransform):
            return self.autoregressive(part, path)
        raise _no_equivalent(path, part)

    def coupling(self, part: Any, path: str) -> Transform:
        transforms = self.nflows.transforms
        if part.unconditional_transform is not None:
            raise _no_equivalent(f"{path}.unconditional_transform", part.unconditional_transform)
        net, kind = part.transform_net, type(part)
        if type(net) is not self.nflows.nn.nets.ResidualNet:
            raise _no_equivalent(f"{path}.transform_net", net)
        layers = self.residual(net, f"{path}.transform_net")
        count = len(part.transform_features)
        map: Map
        rule: nn.Module | None = None
        if kind is transforms.AdditiveCouplingTransform:
            map = Additive()
        elif kind is transforms.AffineCouplingTransform:
            if hasattr(part, "scale_activation"):
                raise _no_equivalent(f"{path}.scale_activation", part.scale_activation)
            # First all shifts, then all scales: put side by side for each feature.
            layers[-1] = _rows(layers[-1], torch.arange(2 * count).reshape(2, count).flip(0).T.flatten())
            map, rule = Affine(), ScaleRule("sigmoid", 2.0)
        elif kind is transforms.PiecewiseRationalQuadraticCouplingTransform:
            map = self.spline(part, path)
            layers[-1] = _spline_layer(layers[-1], map, net.hidden_features**-0.5)
        else:
            raise _no_equivalent(path, part)
        passing = torch.zeros(part.features, dtype=torch.bool)
        passing[part.identity_features.cpu()] = True
        made = mlp(layers, (count, map.num_params), 0, self.activation(net, path), residual=len(layers) > 2)
        return coupled(passing, map, made if rule is None else Read(made, rule))

    def autoregressive(self, part: Any, path: str) -> Transform:
        transforms = self.nflows.transforms
        net, kind = part.autoregressive_net, type(part)
        if type(net) is not self.nflows.transforms.made.MADE:
            raise _no_equivalent(f"{path}.autoregressive_net", net)
        map: Map
        rule: nn.Module | None = None
        if kind is transforms.MaskedAffineAutoregressiveTransform:
            map, rule = Affine(), ScaleRule("softplus", 0.0)
        elif kind is transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform:
            map = self.spline(part, path)
        else:
            raise _no_equivalent(path, part)
        layers, masks = self.masked(net, f"{path}.autoregressive_net")
        if isinstance(map, RationalQuadratic):
            layers[-1] = _spline_layer(layers[-1], map, 1.0)
        made = MADE.from_layers(
            [(weight, bias, mask) for (weight, bias), mask in zip(layers, masks, strict=True)],
            masks[0].shape[1],
            self.activation(net, path),
            residual=net.use_residual_blocks and len(net.blocks) > 0,
        )
        return Autoregressive(map, made if rule is None else Read(made, rule))

    def spline(self, part: Any, path: str) -> RationalQuadratic:
        if part.tails not in ("linear", None):
            raise _no_equivalent(path, part, f" with tails {part.tails!r}")
        return RationalQuadratic(
            part.num_bins,
            float(part.tail_bound) if part.tails else (0.0, 1.0),
            part.tails or "bounded",
            min_width=part.min_bin_width,
            min_height=part.min_bin_height,
            min_slope=part.min_derivative,
        )

    def residual(self, net: Any, path: str) -> list[Layer]:
        linears = [net.initial_layer]
        for i, block in enumerate(net.blocks):
            self.check_block(block, f"{path}.blocks.{i}")
            linears += block.linear_layers
        return [(each.weight, each.bias) for each in [*linears, net.final_layer]]

    def masked(self, net: Any, path: str) -> tuple[list[Layer], list[Tensor]]:
        if hasattr(net, "context_layer"):
            raise _no_equivalent(path, net, " with a context")
        linears = [net.initial_layer]
        for i, block in enumerate(net.blocks):
            self.check_block(block, f"{path}.blocks.{i}")
            linears += block.linear_layers if net.use_residual_blocks else [block.linear]
        linears.append(net.final_layer)
        return [(each.weight, each.bias) for each in linears], [each.mask for each in linears]

    def check_block(self, block: Any, path: str) -> None:
        if hasattr(block, "context_layer"):
            raise _no_equivalent(path, block, " with a context")
        if block.dropout.p > 0:
            raise _no_equivalent(path, block, " with dropout")
        if getattr(block, "use_batch_norm", False) or getattr(block, "batch_norm", None):
            raise _no_equivalent(path, block, " with batch normalization")

    def activation(self, net: Any, path: str) -> Any:
        """What makes the nonlinearity of all its blocks; a residual net without blocks has none."""
        if not net.blocks and getattr(net, "use_residual_blocks", True):
            return nn.Identity
        used = {getattr(block, "activation", None) for block in net.blocks} | {getattr(net, "activation", None)}
        functions = [function for function in used if function is not None]
        if len(functions) > 1:
            raise ValueError(f"from_nflows: {path} has several nonlinearities, {functions}, wanted one")
        (function,) = functions
        if isinstance(function, nn.Module):
            return functools.partial(copy.deepcopy, function)
        if function not in ACTIVATIONS:
            raise ValueError(f"from_nflows: {path} has the nonlinearity {function}, wanted a module or one of torch's")
        return ACTIVATIONS[function]


class ScaleRule(nn.Module):
    """(u, shift) as (log-scale, shift), with the scale sigmoid(u + offset) + 0.001, or softplus in its place."""

    def __init__(self, function: str, offset: float) -> None:
        super().__init__()
        self.function, self.offset = function, offset

    def forward(self, outputs: Tensor) -> Tensor:
        raw, shift = outputs.unbind(-1)
        scale = torch.sigmoid(raw + self.offset) if self.function == "sigmoid" else F.softplus(raw + self.offset)
        return torch.stack([(scale + 1e-3).log(), shift], -1)

    def extra_repr(self) -> str:
        return f"{self.function}, offset={self.offset}"


def _lu(part: Any) -> LULinear:
    """U of nflows has softplus(d) + eps on its diagonal, that of flowkit exp(d)."""
    lower, upper = part._create_lower_upper()
    linear = LULinear(part.features)
    linear.matrix.factors = nn.Parameter(lower.tril(-1) + upper.diagonal().log().diag() + upper.triu(1))
    linear.bias = nn.Parameter(part.bias.clone())
    return linear


def _batch_norm(part: Any) -> BatchNorm:
    """nflows adds eps to the variance, flowkit takes it for the least."""
    norm = BatchNorm(part.bias.shape, momentum=part.momentum, floor=part.eps)
    norm.log_gain, norm.bias = nn.Parameter(part.weight.log()), nn.Parameter(part.bias.clone())
    norm.running_mean, norm.running_var = part.running_mean.clone(), part.running_var + part.eps
    return norm


def _rows(layer: Layer, order: Tensor) -> Layer:
    weight, bias = layer
    return weight[order.to(weight.device)], bias[order.to(bias.device)]


def _spline_layer(layer: Layer, map: RationalQuadratic, factor: float) -> Layer:
    """The last layer, which gives widths and heights times `factor`, and slopes less what flowkit adds to them."""
    weight, bias = layer
    bins, each = map.bins, map.num_params
    is_slope = torch.arange(each, device=weight.device).repeat(len(bias) // each) >= 2 * bins
    factors = torch.where(is_slope, 1.0, factor).to(weight)
    return weight * factors[:, None], bias * factors - is_slope.to(bias) * slope_offset(map.min_slope)
