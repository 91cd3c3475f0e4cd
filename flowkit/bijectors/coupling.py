"""Couplings: half of the event passes and conditions the map of the other half."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowkit.arguments import check_kind, count, takes_context, whole
from flowkit.errors import ShapeError
from flowkit.functional.reduce import sum_rightmost
from flowkit.maps.affine import Affine
from flowkit.maps.mix_logistic import MixLogistic
from flowkit.transform import Bijector, Map

__all__ = ["AffineCoupling", "Coupling", "MixLogisticCDFCoupling"]


class Coupling(Bijector):
    """z = (a, map(b; net(a))), with (a, b) the halves of x along one axis; back x = (a, map^-1(b; net(a))).

    Log-term: that of the map, summed over the event. The first half passes; of an axis of odd size it is the
    smaller one. For images the axis is the pair axis that `PairColumns` and its like make: `dim=-4`.

    Args:
        map: an elementwise map, which knows how many parameters it needs.
        net: `net(a, context)` gives (*b.shape, map.num_params); a net of one argument, such as a
            `torch.nn.Sequential`, is called as `net(a)` and serves where there is no context. It ends mixed
            precision: what it gives is cast to the dtype of x.
        dim: the axis, negative; the event is this axis and all to its right.
        passing: how many elements along the axis pass, at least 1; half of them if not given. `Partition` puts the
            elements of any mask first.

    Shapes:
        x, z: (*batch, *event of -dim dims); l: (*batch); context: what the net takes.

    Raises:
        ShapeError: if the axis has too few elements for both parts, the net's output does not fit the map, or there
            is a context and the net takes none.
        DomainError: if the net fails on x for its dtype.
        TypeError: if `map` is no map, or `net` no network or one that gives no floating tensor.
        ValueError: if `dim` is not negative, or `passing` below 1.

    Reference:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, https://arxiv.org/abs/1605.08803.

    >>> import torch, flowkit as fk
    >>> map = fk.maps.Affine()
    >>> net = fk.nets.MLP((1,), (2, map.num_params), hidden=(8,))
    >>> coupling = Coupling(map, net, dim=-1)
    >>> x = torch.randn(5, 3)
    >>> z, log_det = coupling(x)
    >>> torch.equal(z[:, :1], x[:, :1]), torch.allclose(coupling.inverse(z)[0], x, atol=1e-5)
    (True, True)
    """

    net_reads = "the net reads the half that passes"

    def __init__(self, map: Map, net: nn.Module, dim: int, passing: int | None = None) -> None:
        super().__init__()
        part, axis = type(self).__name__, whole(dim)
        check_kind(part, "map", map, Map, "one of flowkit.maps")
        if axis is None or axis >= 0:
            raise ValueError(f"{part}: dim is {dim!r}, wanted a negative whole number, counted from the right")
        dim, passing = axis, None if passing is None else count(part, "passing", passing)
        self.net_takes_context = takes_context(part, "net", net)
        self.map, self.conditioner, self.dim, self.passing = map, net, dim, passing
        self.in_ndim = self.out_ndim = -dim
        self.domain, self.codomain = map.domain, map.codomain

    def _halves(self, name: str, value: Tensor) -> tuple[Tensor, Tensor]:
        self.check_event(name, value, (None,) * self.in_ndim)
        size = value.shape[self.dim]
        least = 2 if self.passing is None else self.passing + 1
        if size < least:
            raise ShapeError(
                f"{self.path}: {name} has shape {tuple(value.shape)}, wanted at least {least} along {self.dim}"
            )
        passing = size // 2 if self.passing is None else self.passing
        first, second = value.split([passing, size - passing], dim=self.dim)
        return first, second

    def _conditioned(self, first: Tensor, second: Tensor, context: Tensor | None) -> Tensor:
        params = self.enter_net(self.conditioner, *self.net_arguments(first, context))
        wanted = (*second.shape, self.map.num_params)
        self.check_params("conditioner", params)
        if params.shape != wanted:
            raise ShapeError(
                f"{self.path}: the conditioner gave {tuple(params.shape)}, wanted {wanted}: "
                f"{type(self.map).__name__}({self.map.extra_repr()}) has {self.map.num_params} parameters"
            )
        return params.to(second.dtype)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        first, second = self._halves("x", x)
        second, terms = self.map(second, self._conditioned(first, second, context))
        return torch.cat([first, second], dim=self.dim), sum_rightmost(terms, self.in_ndim)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        first, second = self._halves("z", z)
        second, terms = self.map.inverse(second, self._conditioned(first, second, context))
        return torch.cat([first, second], dim=self.dim), sum_rightmost(terms, self.in_ndim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}" + ("" if self.passing is None else f", passing={self.passing}")


class MixLogisticCDFCoupling(Coupling):
    """A coupling whose map is the logit of a mixture-of-logistics CDF, as in Flow++: see `MixLogistic`.

    Args:
        net: `net(a, context)` gives (*b.shape, 2 + 3 components).
        components: mixture components.
        dim: the axis that is halved.

    Shapes:
        x, z: (*batch, *event of -dim dims); l: (*batch).

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, section 3.2.1, https://arxiv.org/abs/1902.00275.

    >>> import torch, flowkit as fk
    >>> net = fk.nets.MLP((1,), (1, 14), hidden=(8,), start=fk.maps.MixLogistic(4).start)
    >>> coupling = MixLogisticCDFCoupling(net, components=4, dim=-1)
    >>> x = torch.randn(5, 2)
    >>> torch.allclose(coupling.inverse(coupling(x)[0])[0], x, atol=1e-5)
    True
    """

    def __init__(self, net: nn.Module, components: int, dim: int) -> None:
        super().__init__(MixLogistic(components), net, dim)


class AffineCoupling(Coupling):
    """A coupling whose map is affine: see `Affine`.

    Args:
        net: `net(a, context)` gives (*b.shape, 2).
        dim: the axis that is halved.
        log_scale_bound: the bound on the log-scale; None for none.

    Shapes:
        x, z: (*batch, *event of -dim dims); l: (*batch).

    Reference:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, https://arxiv.org/abs/1605.08803.

    >>> import torch, flowkit as fk
    >>> coupling = AffineCoupling(fk.nets.MLP((1,), (1, 2), hidden=(8,)), dim=-1)
    >>> x = torch.randn(5, 2)
    >>> torch.allclose(coupling.inverse(coupling(x)[0])[0], x, atol=1e-5)
    True
    """

    def __init__(self, net: nn.Module, dim: int, log_scale_bound: float | None = None) -> None:
        super().__init__(Affine(log_scale_bound), net, dim)
