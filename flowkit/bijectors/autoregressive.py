"""Autoregressive bijectors: the features before it condition the map of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkit.errors import ShapeError
from flowkit.functional.reduce import sum_rightmost
from flowkit.transform import Bijector, Map

__all__ = ["Autoregressive"]


class Autoregressive(Bijector):
    """z_i = map(x_i; net(x)_i), where net(x)_i reads only the features before i; back x_i = map^-1(z_i; net(x)_i).

    Log-term: that of the map, summed over the features. Forward is one pass: this way round it is the masked
    autoregressive flow, whose density is fast. Turned round, `Autoregressive(map, net).inv`, it is the inverse
    autoregressive flow, whose samples are fast. The slow way finds one feature after another, as often as the net is
    deep in features, and runs the map once for each.

    Args:
        map: an elementwise map, which knows how many parameters it needs.
        net: `net(x, context)` gives (*x.shape, map.num_params). It ends mixed precision: what it gives is cast to the
            dtype of x. Its features come in their natural order unless it has `groups`, a sequence of tuples: the
            features that become known together, first to last. One whose `incremental` is true also takes
            `net(x, context, find=...)`, and runs once for all features: see `flowkit.nets.MADE`. Any other is run
            again for each group, with 0 for what is not known yet.

    Shapes:
        x, z: (*batch, features); l: (*batch); context: what the net takes.

    Raises:
        ShapeError: if the features do not fit the net, or the net's output does not fit the map.

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

    def __init__(self, map: Map, net: nn.Module) -> None:
        super().__init__()
        if not isinstance(map, Map):
            raise TypeError(f"{type(self).__name__}: map is a {type(map).__name__}, wanted one of flowkit.maps")
        self.map, self.conditioner = map, net
        self.domain, self.codomain = map.domain, map.codomain

    def _fitting(self, params: Tensor, value: Tensor) -> Tensor:
        """`params` in the dtype of `value`, or the error that they do not fit it; within `enter_net`."""
        wanted = (*value.shape, self.map.num_params)
        if params.shape != wanted:
            raise ShapeError(
                f"the conditioner gave {tuple(params.shape)}, wanted {wanted}: "
                f"{type(self.map).__name__}({self.map.extra_repr()}) has {self.map.num_params} parameters"
            )
        return params.to(value.dtype)

    def _conditioned(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self._fitting(self.conditioner(x, context), x)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("x", x, (None,))
        z, terms = self.map(x, self.enter_net(self._conditioned, x, context))
        return z, sum_rightmost(terms, 1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("z", z, (None,))
        terms = []

        def find(features: Sequence[int], params: Tensor) -> Tensor:
            part = _chosen(z, features, -1)
            x, term = self.map.inverse(part, self._fitting(params, part))
            terms.append(term)
            return x

        def found(z: Tensor, context: Tensor | None) -> Tensor:
            if getattr(self.conditioner, "incremental", False):
                return self.conditioner(z, context, find=find)
            columns = [torch.zeros_like(column) for column in z.unbind(-1)]
            for features in getattr(self.conditioner, "groups", [(i,) for i in range(len(columns))]):
                params = self._conditioned(torch.stack(columns, -1), context)
                values = find(features, _chosen(params, features, -2))
                for i, column in zip(features, values.unbind(-1), strict=True):
                    columns[i] = column
            return torch.stack(columns, -1)

        x = self.enter_net(found, z, context)
        return x, torch.cat(terms, -1).sum(-1)


def _chosen(value: Tensor, features: Sequence[int], dim: int) -> Tensor:
    """`value` at some features along `dim`, in this order."""
    if len(features) == 1:
        return value.narrow(dim, features[0], 1)
    return torch.stack([value.select(dim, i) for i in features], dim)
