"""Families of densities: their parameters are constants, or trained, or moved by a net that reads the context."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.arguments import as_floating, as_shape, check_floating, count
from flowkit.distribution import Distribution
from flowkit.errors import DomainError, ShapeError
from flowkit.functional.precision import log_term_dtype
from flowkit.functional.reduce import sum_rightmost

__all__ = ["Family", "Given", "as_parameter"]

Parameters = dict[str, Tensor]


class Family(Distribution):
    """Densities of one form, told apart by named parameters; pieces of the event are independent.

    A subclass hands its parameters to `__init__`, names the positive ones, and writes `pieces` and `draw` in
    terms of them. It then works with constants, with trained parameters, under `Given` and in a `Mixture`.

    Trained parameters are in the state dict: a real one under its name, a positive one as its logarithm, `log_` and its
    name. Constants belong to the construction and are not.

    Attributes:
        positive: names of the parameters that are above 0.
        own_ndim: how many rightmost dims of the event one piece takes: 0 if all elements are independent.
        trainable: whether the parameters are trained.
        params_shape: shape of what a net gives for one event under `Given`.

    Shapes:
        x: (*batch, *event_shape); log_prob: (*batch).

    Raises:
        ShapeError: if a parameter does not broadcast to the event, or x or a sample shape does not fit.
        DomainError: if a positive parameter is not positive and finite, or x is not floating.
    """

    positive: tuple[str, ...] = ()
    own_ndim: int = 0
    trainable: bool

    def __init__(self, event_shape: int | Sequence[int], trainable: bool, **parameters: Any) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape, f"{type(self).__name__}: event_shape")
        self.trainable = trainable
        self._names = tuple(parameters)
        tensors = {}
        for name, value in parameters.items():
            tensor = as_parameter(type(self).__name__, name, value, self.shape_of(name))
            if name in self.positive and tensor.device.type != "meta" and not (tensor > 0).all():
                raise DomainError(f"{type(self).__name__}: {name} is {value}, wanted positive and finite")
            tensors[name] = tensor
        dtype = None
        for tensor in tensors.values():
            dtype = tensor.dtype if dtype is None else torch.promote_types(dtype, tensor.dtype)
        for name, tensor in tensors.items():
            tensor = tensor.to(dtype)
            if not trainable:
                # Constants of the construction, not of training: no place in the state dict.
                self.register_buffer(f"_{name}" if name in self.positive else name, tensor, persistent=False)
                continue
            tensor = tensor.detach().expand(self.shape_of(name)).clone()
            if name in self.positive:
                self.register_parameter(f"log_{name}", nn.Parameter(tensor.log()))
            else:
                self.register_parameter(name, nn.Parameter(tensor))

    @abstractmethod
    def pieces(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Log-density of every piece: the joint batch, and the event without its `own_ndim` rightmost dims."""

    @abstractmethod
    def draw(self, shape: torch.Size, parameters: Parameters, generator: torch.Generator | None) -> Tensor:
        """Draws of this shape, batch and event; the parameters broadcast to it."""

    def shape_of(self, name: str) -> torch.Size:
        """The shape of a parameter, at least; by default one for every element."""
        return self.event_shape

    def split(self, raw: Tensor) -> Parameters:
        """What a net gave, (*batch, *params_shape), by name."""
        return dict(zip(self._names, raw.unbind(-1), strict=True))

    @property
    def params_shape(self) -> torch.Size:
        """Shape of what a net gives for one event under `Given`: one number for each parameter of each element."""
        return torch.Size((*self.event_shape, len(self._names)))

    def _value(self, name: str) -> Tensor:
        if name not in self.positive:
            return getattr(self, name)
        return getattr(self, f"log_{name}").exp() if self.trainable else getattr(self, f"_{name}")

    def own_parameters(self) -> Parameters:
        """The parameters as they are, by name, each of a shape that broadcasts to the event's."""
        return {name: self._value(name) for name in self._names}

    def is_positive(self, name: str) -> bool:
        """Whether the parameter of this name is above 0, so that a net moves it by a factor."""
        return name in self.positive

    def moved_parameters(self, raw: Tensor) -> Parameters:
        """The parameters moved by `raw`: real ones by its sum, positive ones by the factor exp(raw).

        Args:
            raw: (*batch, *params_shape); 0 moves nothing.
        """
        own, moves = self.own_parameters(), self.split(raw)
        return {
            name: value * moves[name].exp() if self.is_positive(name) else value + moves[name]
            for name, value in own.items()
        }

    def log_density(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Log-density at x (*batch, *event) under parameters whose batch broadcasts against that of x.

        In float32 or better: a sum over the event leaves the range of half precision, and its digits before that.
        """
        dtype = log_term_dtype(x.dtype)
        for value in parameters.values():
            dtype = torch.promote_types(dtype, value.dtype)
        pieces = self.pieces(x.to(dtype), {name: value.to(dtype) for name, value in parameters.items()})
        return sum_rightmost(pieces, self.event_ndim - self.own_ndim)

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        self.check_event("x", x)
        check_floating(type(self).__name__, "x", x)
        self._refuse(context)
        return self.log_density(x, self.own_parameters())

    def rsample(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if not self.has_rsample:
            return super().rsample(sample_shape, context, generator=generator)
        self._refuse(context)
        return self.draw(as_shape(sample_shape) + self.event_shape, self.own_parameters(), generator)

    def _refuse(self, context: Tensor | None) -> None:
        if context is not None:
            self.check_context(context)

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}{', trainable=True' if self.trainable else ''}"


class Given(Distribution):
    """p(x | context): a family whose parameters a net moves as the context says.

    Of the family's own parameters, real ones become theirs plus what the net gives, and positive ones theirs times the
    exponential of it. So a net whose last layer starts at 0 starts at the family as it is; its parameters may be
    trained too.

    Args:
        family: the distribution, such as `Normal`, `StudentT` or `Mixture`.
        net: `net(context)` gives (*batch, *family.params_shape), or the same flattened to one dim, as an
            `nn.Embedding` does. It ends mixed precision: what it gives is cast to the dtype of the family.
        context_ndim: how many rightmost dims of a context are its event: 0 labels, 1 vectors, 3 images.

    Shapes:
        x: (*batch, *family.event_shape); context: (*batch, *its event), which broadcasts against x over the batch dims;
        log_prob: (*batch). Samples have sample_shape + context batch + event.

    Raises:
        ShapeError: if the context is missing or of a shape that the net refuses, or the net's output does not fit the
            family.
        DomainError: if the net refuses the values or the dtype of the context, as an embedding does a label that it
            has no row for.
        TypeError: if the family has no parameters for a net to move, or `net` is no module.
        ValueError: if `context_ndim` is no whole number of at least 0.

    >>> import torch, flowkit as fk
    >>> normal = fk.Normal((2,))
    >>> base = Given(normal, fk.nets.MLP((4,), normal.params_shape), context_ndim=1)
    >>> base.sample((5,), torch.zeros(3, 4)).shape, base.log_prob(torch.zeros(2), torch.zeros(3, 4)).shape
    (torch.Size([5, 3, 2]), torch.Size([3]))
    >>> labels = Given(normal, torch.nn.Embedding(10, normal.params_shape.numel()), context_ndim=0)
    >>> labels.sample((), torch.tensor([7, 0, 7])).shape
    torch.Size([3, 2])
    """

    def __init__(self, family: Family, net: nn.Module, context_ndim: int) -> None:
        super().__init__()
        if not isinstance(family, Family):
            raise TypeError(
                f"Given: family is a {type(family).__name__}, wanted one with parameters, such as flowkit.Normal; "
                "any other becomes conditional by a Flow on it"
            )
        if not isinstance(net, nn.Module):
            raise TypeError(f"Given: net is a {type(net).__name__}, wanted a torch.nn.Module that takes the context")
        self.family, self.net, self.context_ndim = family, net, count("Given", "context_ndim", context_ndim, least=0)
        self.event_shape, self.has_rsample = family.event_shape, family.has_rsample

    def _enter_net(self, context: Tensor) -> Tensor:
        """`net(context)`; what it says of a context that it cannot take comes with what came and what was wanted."""
        came = f"Given: context has shape {tuple(context.shape)} and dtype {context.dtype}"
        try:
            return self.net(context)
        except ShapeError as error:
            raise ShapeError(f"{came}; {error}") from error
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError) as error:
            if isinstance(self.net, nn.Embedding):
                values = f", values from {context.amin()} to {context.amax()}" if context.numel() else ""
                labels = f"labels from 0 to {self.net.num_embeddings - 1} in torch.int64"
                raise DomainError(f"{came}{values}, wanted {labels}") from error
            wanted = f"wanted one that the net, {type(self.net).__name__}, takes"
            # A floating dtype is that of the parameters: another has been refused before.
            if context.is_floating_point():
                raise ShapeError(f"{came}, {wanted}: {error}") from error
            own = next((f" in {p.dtype}" for p in self.net.parameters() if p.is_floating_point()), "")
            raise DomainError(f"{came}, {wanted}{own}: {error}") from error

    def _read(self, context: Tensor | None) -> tuple[Parameters, torch.Size]:
        """The parameters that the context gives, and its batch."""
        batch = self.check_context(context)
        assert context is not None  # refused just before
        raw, wanted = self._enter_net(context), batch + self.family.params_shape
        if raw.shape != wanted:
            if raw.shape != (*batch, self.family.params_shape.numel()):
                raise ShapeError(
                    f"Given: the net gave {tuple(raw.shape)} for a context of shape {tuple(context.shape)}, "
                    f"wanted {tuple(wanted)}: {self.family} takes {tuple(self.family.params_shape)}"
                )
            raw = raw.reshape(wanted)
        own = next(iter(self.family.own_parameters().values()))
        return self.family.moved_parameters(raw.to(own.dtype)), batch

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        self.check_event("x", x)
        check_floating(type(self).__name__, "x", x)
        parameters, context_batch = self._read(context)
        self.joint_batch(x.shape[: x.ndim - self.event_ndim], context_batch)
        return self.family.log_density(x, parameters)

    def sample(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        with torch.no_grad():
            parameters, batch = self._read(context)
            return self.family.draw(as_shape(sample_shape) + batch + self.event_shape, parameters, generator)

    def rsample(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if not self.has_rsample:
            return super().rsample(sample_shape, context, generator=generator)
        parameters, batch = self._read(context)
        return self.family.draw(as_shape(sample_shape) + batch + self.event_shape, parameters, generator)

    def sample_and_log_prob(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples and their log-density; the net runs once."""
        parameters, batch = self._read(context)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.has_rsample):
            x = self.family.draw(as_shape(sample_shape) + batch + self.event_shape, parameters, generator)
        return x, self.family.log_density(x, parameters)

    def extra_repr(self) -> str:
        return f"context_ndim={self.context_ndim}"


def as_parameter(owner: str, name: str, value: Any, shape: torch.Size) -> Tensor:
    """`value` as a floating tensor that broadcasts to `shape`; the default dtype, but for floating tensors.

    Raises:
        TypeError: if it is no number and no tensor.
        ShapeError: if it does not broadcast.
        DomainError: if it is not finite.
    """
    tensor = as_floating(owner, name, value)
    try:
        tensor.expand(shape)
    except RuntimeError:
        raise ShapeError(
            f"{owner}: {name} has shape {tuple(tensor.shape)}, wanted one that broadcasts to {tuple(shape)}"
        ) from None
    if tensor.device.type != "meta" and not tensor.isfinite().all():
        raise DomainError(f"{owner}: {name} is {value}, wanted finite numbers")
    return tensor
