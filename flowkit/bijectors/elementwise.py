"""Maps whose parameters are free, or read off the context."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from flowkit.arguments import as_shape, check_kind, count, takes_context
from flowkit.errors import ShapeError
from flowkit.functional.reduce import sum_rightmost
from flowkit.transform import Bijector, Map

__all__ = ["Elementwise", "FromContext"]


class Elementwise(Bijector):
    """z_i = map(x_i; p_i), every element of the event with free parameters of its own.

    Log-term: that of the map, summed over the event. Parameters start at `map.start`.

    Args:
        map: an elementwise map.
        shape: shape of the event.

    Shapes:
        x, z: (*batch, *shape); l: (*batch).

    Raises:
        TypeError: if `map` is no map.
        ShapeError: if `shape` is none.

    >>> import torch, flowkit as fk
    >>> affine = Elementwise(fk.maps.Affine(), (3,))
    >>> affine(torch.ones(2, 3))
    (tensor([[1., 1., 1.],
            [1., 1., 1.]], grad_fn=<AddBackward0>), tensor([0., 0.], grad_fn=<SumBackward1>))
    """

    def __init__(self, map: Map, shape: int | Sequence[int]) -> None:
        super().__init__()
        check_kind("Elementwise", "map", map, Map, "one of flowkit.maps")
        self.map, self.shape = map, tuple(as_shape(shape, "Elementwise: shape"))
        self.in_ndim = self.out_ndim = len(self.shape)
        self.params = nn.Parameter(map.start.repeat(*self.shape, 1))
        self.domain, self.codomain = map.domain, map.codomain

    def _expanded(self, value: Tensor) -> Tensor:
        return self.params.to(value.dtype).expand(*value.shape, self.map.num_params)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("x", x, self.shape)
        z, terms = self.map(x, self._expanded(x))
        return z, sum_rightmost(terms, self.in_ndim)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("z", z, self.shape)
        x, terms = self.map.inverse(z, self._expanded(z))
        return x, sum_rightmost(terms, self.in_ndim)

    def extra_repr(self) -> str:
        return f"shape={self.shape}"


class FromContext(Bijector):
    """z = map(x; net(context)): the parameters of every element are read off the context.

    Log-term: that of the map, summed over the event.

    Args:
        map: an elementwise map.
        net: `net(context)` gives (*batch, *event, map.num_params).
        event_ndim: how many rightmost dims of x are its event.

    Shapes:
        x, z: (*batch, *event); l: (*batch); context: (*batch, *what the net takes).

    Raises:
        ShapeError: if the context is missing or the net's output does not fit.
        DomainError: if the net fails on the context for its dtype.
        TypeError: if `map` is no map, or `net` no network or one that gives no floating tensor.
        ValueError: if `event_ndim` is negative.

    >>> import torch, flowkit as fk
    >>> shift = FromContext(fk.maps.Affine(), fk.nets.MLP((4,), (3, 2), hidden=(8,)), event_ndim=1)
    >>> shift(torch.zeros(5, 3), torch.ones(5, 4))[0].shape
    torch.Size([5, 3])
    """

    def __init__(self, map: Map, net: nn.Module, event_ndim: int) -> None:
        super().__init__()
        check_kind("FromContext", "map", map, Map, "one of flowkit.maps")
        takes_context("FromContext", "net", net)  # that it is a network; it reads the context as its value
        self.map, self.net = map, net
        self.in_ndim = self.out_ndim = count("FromContext", "event_ndim", event_ndim, 0)
        self.domain, self.codomain = map.domain, map.codomain

    def _read(self, name: str, value: Tensor, context: Tensor | None) -> Tensor:
        self.check_event(name, value, (None,) * self.in_ndim)
        params = self.enter_net(self.net, self.needed_context(context))
        wanted = (*value.shape, self.map.num_params)
        self.check_params("net", params)
        if params.shape != wanted:
            raise ShapeError(f"{self.path}: the net gave {tuple(params.shape)} for the context, wanted {wanted}")
        return params.to(value.dtype)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, terms = self.map(x, self._read("x", x, context))
        return z, sum_rightmost(terms, self.in_ndim)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, terms = self.map.inverse(z, self._read("z", z, context))
        return x, sum_rightmost(terms, self.in_ndim)

    def extra_repr(self) -> str:
        return f"event_ndim={self.in_ndim}"
