"""Autoregressive bijectors: the features before it condition the map of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkit.arguments import check_kind, takes_context, whole
from flowkit.errors import ShapeError
from flowkit.transform import Bijector, Map

__all__ = ["Autoregressive"]


class Autoregressive(Bijector):
    """z_i = map(x_i; p_i), where p_i = net(x)_i reads only the features before i; back x_i = map^-1(z_i; p_i) in turn.

    Log-term: that of the map, summed over the features. Forward is one pass of the net, and this way round it is a
    masked autoregressive flow, whose density is fast. Turned round, `Autoregressive(map, net).inv`, it is an inverse
    autoregressive flow, whose samples are fast.

    The slow way goes through the groups of features that become known together: as many as the dependencies are deep,
    at most one for each feature. The map runs once on every feature, and the log-term falls out on the way.

    Any net will do whose outputs for feature i read only features before i. It may know more about itself:

    - `net.groups`, a tuple of tuples: the features that become known together, first to last. Without it they follow
      one another in their natural order. The net is run again for each group, with 0 for what is not known yet.
    - `net.incremental`, true if it also takes `net(z, context, find=find)`: it then runs once, calls
      `find(outputs of a group)` for every group in turn, which gives the values of its features, and returns the values
      of all. `flowkit.nets.MADE` does; it spends no more arithmetic on that than on one pass.

    Args:
        map: an elementwise map, which knows how many parameters it needs.
        net: `net(x, context)` gives (*x.shape, map.num_params); one of one argument is called as `net(x)` and serves
            where there is no context. It ends mixed precision: what it gives is cast to the dtype of x.

    Shapes:
        x, z: (*batch, features); l: (*batch); context: what the net takes. An event is one axis: flatten images first.

    Raises:
        ShapeError: if the features do not fit the net, the net's output does not fit the map, or there is a context
            and the net takes none.
        DomainError: if the net fails on x for its dtype.
        TypeError: if `map` is no map, or `net` no network or one that gives no floating tensor.
        ValueError: if the net's groups do not hold each feature once.

    Reference:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling, "Improved variational inference with inverse
        autoregressive flow", 2016, https://arxiv.org/abs/1606.04934; Papamakarios, Pavlakou, Murray, "Masked
        autoregressive flow for density estimation", 2017, https://arxiv.org/abs/1705.07057.

    >>> import torch, flowkit as fk
    >>> map = fk.maps.Affine()
    >>> flow = Autoregressive(map, fk.nets.MADE(3, map.num_params, hidden=(16,)))
    >>> x = torch.randn(5, 3)
    >>> z, log_det = flow(x)
    >>> z.shape, log_det.shape, torch.allclose(flow.inverse(z)[0], x, atol=1e-5)
    (torch.Size([5, 3]), torch.Size([5]), True)
    """

    in_ndim = 1
    out_ndim = 1

    _found: Tensor | None

    def __init__(self, map: Map, net: nn.Module) -> None:
        super().__init__()
        check_kind(type(self).__name__, "map", map, Map, "one of flowkit.maps")
        self.net_takes_context = takes_context(type(self).__name__, "net", net)
        self.map, self.conditioner = map, net
        self.domain, self.codomain = map.domain, map.codomain
        groups = getattr(net, "groups", None)
        listed = isinstance(groups or (), Sequence) and all(
            isinstance(group, Sequence) and group for group in groups or ()
        )
        found = [i for group in groups or () for i in group] if listed else []
        if not listed or {whole(i) for i in found} != set(range(len(found))):
            raise ValueError(
                f"{type(self).__name__}: net.groups is {groups}, wanted groups of features, each in one of them"
            )
        # Where the features stand in the order in which they are found; None for their natural order.
        natural = found == sorted(found)
        self.register_buffer("_found", None if natural else torch.tensor(found), persistent=False)

    def _check(self, name: str, value: Tensor) -> None:
        groups = getattr(self.conditioner, "groups", None)
        self.check_event(name, value, (None if groups is None else sum(map(len, groups)),))

    def _fitting(self, params: Tensor, value: Tensor) -> Tensor:
        """`params` in the dtype of `value`, or the error that they do not fit it; within `enter_net`."""
        wanted = (*value.shape, self.map.num_params)
        self.check_params("conditioner", params)
        if params.shape != wanted:
            raise ShapeError(
                f"the conditioner gave {tuple(params.shape)}, wanted {wanted}: "
                f"{type(self.map).__name__}({self.map.extra_repr()}) has {self.map.num_params} parameters"
            )
        return params.to(value.dtype)

    def _conditioned(self, x: Tensor, *context: Tensor | None) -> Tensor:
        return self._fitting(self.conditioner(x, *context), x)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x)
        z, terms = self.map(x, self.enter_net(self._conditioned, *self.net_arguments(x, context)))
        return z, terms.sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z)
        groups = getattr(self.conditioner, "groups", None) or tuple((i,) for i in range(z.shape[-1]))
        in_turn = z if self._found is None else z.index_select(-1, self._found)
        parts = in_turn.split([len(group) for group in groups], -1)
        terms: list[Tensor] = []

        def find(params: Tensor) -> Tensor:
            part = parts[len(terms)]
            x, term = self.map.inverse(part, self._fitting(params, part))
            terms.append(term)
            return x

        def found(z: Tensor, *context: Tensor | None) -> Tensor:
            if getattr(self.conditioner, "incremental", False):
                return self.conditioner(z, *context, find=find)
            columns = [torch.zeros_like(column) for column in z.unbind(-1)]
            for group in groups:
                params = self._conditioned(torch.stack(columns, -1), *context)
                values = find(torch.stack([params.select(-2, i) for i in group], -2))
                for i, value in zip(group, values.unbind(-1), strict=True):
                    columns[i] = value
            return torch.stack(columns, -1)

        x = self.enter_net(found, *self.net_arguments(z, context))
        return x, torch.cat(terms, -1).sum(-1)
