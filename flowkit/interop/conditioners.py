"""What the converters of weights share: networks with given weights, and outputs read by another library's rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.bijectors import Coupling, Elementwise, Partition
from flowkit.distributions import Normal
from flowkit.flow import Flow, tensor_of
from flowkit.maps import Affine
from flowkit.nets import MLP
from flowkit.transform import Chain, Map, Transform, within

__all__ = ["Layer", "Read", "coupled", "flow_of", "mlp", "scaled", "slope_offset"]

Layer = tuple[Tensor, Tensor]
"""Weight and bias of a linear layer."""


class Read(nn.Module):
    """A net whose outputs are read by a rule: what it gives is `rule(net(value, context))`.

    So a map of flowkit serves weights that were trained for another parametrization of it. It hands on what the net
    knows of its dependencies, see `flowkit.Autoregressive`.

    Args:
        net: a conditioner.
        rule: from its outputs to the parameters of a map, both along the last dim.
    """

    def __init__(self, net: nn.Module, rule: nn.Module) -> None:
        super().__init__()
        self.net, self.rule = net, rule
        if hasattr(net, "groups"):
            self.groups, self.incremental = net.groups, getattr(net, "incremental", False)

    def forward(
        self,
        value: Tensor,
        context: Tensor | None = None,
        *,
        find: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        if find is None:
            return self.rule(self.net(value, context))
        return self.net(value, context, find=lambda outputs: find(self.rule(outputs)))


def mlp(
    layers: Sequence[Layer],
    out: tuple[int, int],
    context: int,
    activation: Callable[[], nn.Module],
    *,
    residual: bool = False,
) -> MLP:
    """The multilayer perceptron with these layers; the columns of the first are the value's, then the context's."""
    widths = [len(weight) for weight, _ in layers[:-1]]
    hidden = widths[2::2] if residual else widths
    kind: Any = activation
    net = MLP((layers[0][0].shape[1] - context,), out, hidden, context, kind, residual=residual)
    own = [module for module in net.modules() if isinstance(module, nn.Linear)]
    for linear, (weight, bias) in zip(own, layers, strict=True):
        linear.weight, linear.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return net


def coupled(passing: Tensor, map: Map, net: nn.Module) -> Chain:
    """A coupling in which the features where `passing` is true condition the others."""
    view = Partition(passing)
    return within(view, Coupling(map, net, dim=-1, passing=view.passing))


def scaled(transform: Transform, loc: Tensor, scale: Tensor, *, trained: bool) -> tuple[Transform, Normal]:
    """A normal base of this location and scale; of trained ones as a layer on a standard normal."""
    if not trained:
        return transform, Normal(loc.shape, loc.clone(), scale.clone())
    standardize = Elementwise(Affine(), loc.shape)
    standardize.params = nn.Parameter(torch.stack([-scale.log(), -loc / scale], -1))
    return Chain(transform, standardize), Normal(loc.shape, torch.zeros_like(loc), torch.ones_like(scale))


def flow_of(transform: Transform, base: Normal, like: nn.Module, **options: Any) -> Flow:
    """The flow, on the device and in the mode of the model that it comes from."""
    return Flow(transform, base, **options).to(tensor_of(like)).train(like.training)


def slope_offset(min_slope: float) -> float:
    """What `flowkit.maps.RationalQuadratic` adds to the parameter of a slope, so that 0 gives slope 1."""
    return math.log(math.expm1(1 - min_slope))
