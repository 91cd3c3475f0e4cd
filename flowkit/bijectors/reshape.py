"""Volume-preserving moves: pairs, partition by a mask, squeeze, flip, permutation. The log-term of all of them is 0."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from flowkit.arguments import whole
from flowkit.errors import ShapeError
from flowkit.functional import rearrange
from flowkit.functional.precision import log_term_dtype
from flowkit.transform import Bijector

__all__ = ["Flip", "PairChannels", "PairCheckerboard", "PairColumns", "Partition", "Permute", "Squeeze"]


class Rearrangement(Bijector):
    """A bijector that only moves elements: any values pass, and the log-term is 0."""

    domain = None
    codomain = None

    def _zero(self, value: Tensor, event_ndim: int) -> Tensor:
        batch = value.shape[: value.ndim - event_ndim]
        return torch.zeros(batch, dtype=log_term_dtype(value.dtype), device=value.device)

    def _check_divides(self, name: str, value: Tensor, dim: int, what: str, factor: int) -> None:
        if value.shape[dim] % factor:
            wanted = "an even one" if factor == 2 else f"a multiple of {factor}"
            raise ShapeError(
                f"{self.path}: {name} has shape {tuple(value.shape)}, its {what} is {value.shape[dim]}, wanted {wanted}"
            )


class Pair(Rearrangement):
    """A split of an image into two halves of equal size, stacked as an axis of their own."""

    in_ndim = 3
    out_ndim = 4
    _halved: tuple[int, str] = (-1, "width")

    @staticmethod
    @abstractmethod
    def _pair(x: Tensor) -> Tensor: ...

    @staticmethod
    @abstractmethod
    def _unpair(pair: Tensor) -> Tensor: ...

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("x", x, (None, None, None))
        self._check_divides("x", x, *self._halved, 2)
        return self._pair(x), self._zero(x, 3)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("z", z, (2, None, None, None))
        return self._unpair(z), self._zero(z, 4)


class PairColumns(Pair):
    """Even columns and odd columns become a pair: z[0] = x[..., 0::2], z[1] = x[..., 1::2].

    This is the split that Flow++'s code calls checkerboard: columns, the same in every row.

    Shapes:
        x: (*batch, C, H, W), W even; z: (*batch, 2, C, H, W/2); l: (*batch).

    Raises:
        ShapeError: for an odd width.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, https://arxiv.org/abs/1902.00275; their code calls it a
        checkerboard.

    >>> import torch
    >>> PairColumns()(torch.arange(4.0).reshape(1, 1, 4))[0].squeeze()
    tensor([[0., 2.],
            [1., 3.]])
    """

    _pair = staticmethod(rearrange.pair_columns)
    _unpair = staticmethod(rearrange.unpair_columns)


class PairCheckerboard(Pair):
    """The two colours of a checkerboard become a pair: z[0] has row + column even, z[1] odd, each row half as wide.

    Shapes:
        x: (*batch, C, H, W), W even; z: (*batch, 2, C, H, W/2); l: (*batch).

    Raises:
        ShapeError: for an odd width.

    Reference:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, https://arxiv.org/abs/1605.08803.

    >>> import torch
    >>> PairCheckerboard()(torch.arange(4.0).reshape(1, 2, 2))[0].squeeze()
    tensor([[0., 3.],
            [1., 2.]])
    """

    _pair = staticmethod(rearrange.pair_checkerboard)
    _unpair = staticmethod(rearrange.unpair_checkerboard)


class PairChannels(Pair):
    """The first half of the channels and the second half become a pair.

    Shapes:
        x: (*batch, C, H, W), C even; z: (*batch, 2, C/2, H, W); l: (*batch).

    Raises:
        ShapeError: for an odd number of channels.

    >>> import torch
    >>> PairChannels()(torch.arange(4.0).reshape(4, 1, 1))[0].squeeze()
    tensor([[0., 1.],
            [2., 3.]])
    """

    _halved = (-3, "number of channels")
    _pair = staticmethod(rearrange.pair_channels)
    _unpair = staticmethod(rearrange.unpair_channels)


class Partition(Rearrangement):
    """The elements where a mask is true, in their order, then the others, as one vector.

    With it a coupling passes any part of an event of any shape: `within(view, Coupling(..., passing=view.passing))`,
    with `view = Partition(mask)`; the next one takes `Partition(~mask)`. For the two colours of a checkerboard and for
    halves of the channels `PairCheckerboard` and `PairChannels` keep the shape of an image, as convolutions need it.
    The order is saved with the parameters, so that a mask that was drawn comes back with its flow.

    Args:
        mask: a tensor, array or list of the shape of an event, with at least one true and one false element.

    Shapes:
        x: (*batch, *event), with the shape of the mask; z: (*batch, number of elements); l: (*batch).

    Attributes:
        passing: how many elements of the mask are true: they come first.

    Raises:
        ShapeError: if an event has another shape than the mask.
        TypeError: if the mask is not boolean.
        ValueError: if the mask is all true or all false.

    Reference:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, section 3.4,
        https://arxiv.org/abs/1605.08803.

    >>> import torch, flowkit as fk
    >>> view = Partition(torch.tensor([True, False, True, False, True]))
    >>> view(torch.arange(5.0))[0]
    tensor([0., 2., 4., 1., 3.])
    >>> net = fk.nets.MLP((3,), (2, 2), hidden=(8,))
    >>> coupling = fk.within(view, fk.Coupling(fk.maps.Affine(), net, dim=-1, passing=view.passing))
    >>> coupling(torch.randn(7, 5))[0].shape
    torch.Size([7, 5])
    """

    out_ndim = 1
    order: Tensor
    places: Tensor

    def __init__(self, mask: Tensor | Sequence[bool]) -> None:
        super().__init__()
        try:
            mask = torch.as_tensor(mask)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"Partition: mask is {mask!r}, wanted a tensor of torch.bool") from None
        if mask.dtype != torch.bool:
            raise TypeError(f"Partition: mask is {mask.dtype}, wanted torch.bool")
        self.shape, self.in_ndim, self.passing = tuple(mask.shape), mask.ndim, int(mask.sum())
        if not 0 < self.passing < mask.numel():
            raise ValueError(f"Partition: {self.passing} of {mask.numel()} elements of mask are true, wanted a part")
        order = (~mask).flatten().int().argsort(stable=True)
        self.register_buffer("order", order)
        self.register_buffer("places", order.argsort())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("x", x, self.shape)
        return x.flatten(-self.in_ndim).index_select(-1, self.order), self._zero(x, self.in_ndim)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("z", z, (len(self.order),))
        return z.index_select(-1, self.places).unflatten(-1, self.shape), self._zero(z, 1)

    def extra_repr(self) -> str:
        return f"{self.shape}, passing={self.passing}"


class Squeeze(Rearrangement):
    """Space to depth: blocks of f x f pixels become channels.

    Element (c, f y + dy, f x + dx) goes to channel c f^2 + f dy + dx, the order of `torch.pixel_unshuffle`; with
    `color_fastest` to channel (f dy + dx) C + c, the order of Flow++.

    Args:
        factor: f, at least 2.
        color_fastest: which of the two orders.

    Shapes:
        x: (*batch, C, H, W), H and W multiples of f; z: (*batch, f^2 C, H/f, W/f); l: (*batch).

    Raises:
        ShapeError: if f does not divide the height, the width, or on the way back f^2 the channels.
        ValueError: if f is below 2.

    Reference:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, section 3.6,
        https://arxiv.org/abs/1605.08803.

    >>> import torch
    >>> Squeeze()(torch.arange(4.0).reshape(1, 2, 2))[0].squeeze()
    tensor([0., 1., 2., 3.])
    """

    in_ndim = 3
    out_ndim = 3

    def __init__(self, factor: int = 2, color_fastest: bool = False) -> None:
        super().__init__()
        count = whole(factor)
        if count is None or count < 2:
            raise ValueError(f"Squeeze: factor is {factor!r}, wanted a whole number of at least 2")
        self.factor, self.color_fastest = count, color_fastest

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("x", x, (None, None, None))
        self._check_divides("x", x, -2, "height", self.factor)
        self._check_divides("x", x, -1, "width", self.factor)
        return rearrange.squeeze(x, self.factor, self.color_fastest), self._zero(x, 3)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("z", z, (None, None, None))
        self._check_divides("z", z, -3, "number of channels", self.factor**2)
        return rearrange.unsqueeze(z, self.factor, self.color_fastest), self._zero(z, 3)

    def extra_repr(self) -> str:
        return f"factor={self.factor}, color_fastest={self.color_fastest}"


class Flip(Rearrangement):
    """The order along one axis is reversed; on a pair axis the halves are exchanged.

    Args:
        dim: the axis, negative; the event is this axis and all to its right.

    Shapes:
        x, z: (*batch, *event of -dim dims); l: (*batch).

    Raises:
        ValueError: if `dim` is not negative.

    >>> import torch
    >>> Flip(dim=-1)(torch.arange(3.0))[0]
    tensor([2., 1., 0.])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim = _checked_dim("Flip", dim)
        self.in_ndim = self.out_ndim = -dim

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("x", x, (None,) * self.in_ndim)
        return x.flip(self.dim), self._zero(x, self.in_ndim)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("z", z, (None,) * self.in_ndim)
        return z.flip(self.dim), self._zero(z, self.in_ndim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Permute(Rearrangement):
    """The elements along one axis in another order: z[i] = x[order[i]], and back x[order[i]] = z[i].

    The order is saved with the parameters, so that one that was drawn comes back with its flow. `Flip` is the reversed
    order, of an axis of any size.

    Args:
        order: each of 0 to n - 1 once, n the size of the axis; `torch.randperm(n)` for a random one.
        dim: the axis, negative; the event is this axis and all to its right.

    Shapes:
        x, z: (*batch, *event of -dim dims), n elements along `dim`; l: (*batch).

    Raises:
        ShapeError: if the axis does not have n elements.
        ValueError: if `order` is no permutation, or `dim` is not negative.

    >>> import torch
    >>> permute = Permute((2, 0, 1))
    >>> permute(torch.tensor([5.0, 6.0, 7.0]))[0]
    tensor([7., 5., 6.])
    >>> permute.inverse(torch.tensor([7.0, 5.0, 6.0]))[0]
    tensor([5., 6., 7.])
    """

    order: Tensor

    def __init__(self, order: Sequence[int] | Tensor, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim = _checked_dim("Permute", dim)
        given = order.tolist() if isinstance(order, Tensor) else order
        listed = [whole(place) for place in given] if isinstance(given, Iterable) else []
        if not listed or set(listed) != set(range(len(listed))):
            wanted = f"each of 0 to {len(listed) - 1} once" if listed else "a list of places"
            raise ValueError(f"Permute: order is {given!r}, wanted {wanted}")
        self.in_ndim = self.out_ndim = -dim
        self.register_buffer("order", torch.tensor(listed))

    def _check(self, name: str, value: Tensor) -> None:
        self.check_event(name, value, (self.order.shape[-1], *(None,) * (self.in_ndim - 1)))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x)
        return x.index_select(self.dim, self.order), self._zero(x, self.in_ndim)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z)
        return z.index_select(self.dim, self.order.argsort()), self._zero(z, self.in_ndim)

    def extra_repr(self) -> str:
        return f"{len(self.order)} elements, dim={self.dim}"


def _checked_dim(part: str, dim: int) -> int:
    axis = whole(dim)
    if axis is None or axis >= 0:
        raise ValueError(f"{part}: dim is {dim!r}, wanted a negative whole number, counted from the right")
    return axis
