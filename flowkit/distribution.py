"""The protocol of densities: bases, noise and flows all follow it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowkit.arguments import check_generator, check_tensor
from flowkit.errors import DomainError, NotExact, ShapeError

__all__ = ["Distribution", "drawn_with"]


class Distribution(nn.Module, ABC):
    """A density over events of a fixed shape, perhaps conditional on a context. Calling it is `log_prob`.

    A subclass sets `event_shape`, writes `log_prob` and `rsample`; one without a reparametrized sample says
    `has_rsample = False` and writes `sample` instead. A conditional one sets `context_ndim`.

    Attributes:
        event_shape: shape of one event.
        exact: whether `log_prob` is the log-density itself; if not, it is one draw of a lower bound.
        context_ndim: how many rightmost dims of a context are its event (0 labels, 1 vectors, 3 images);
            None if the distribution takes no context.
        has_rsample: whether samples carry gradients to the parameters.

    Shapes:
        x: (*batch, *event_shape); context: (*batch, *its event), which broadcasts; log_prob: (*batch).
        samples: sample_shape + context batch + event_shape.

    Raises:
        ShapeError: if x, the context or a sample shape does not fit.
        DomainError: for another floating dtype than that of the parameters.
        TypeError: for what is no tensor.
    """

    event_shape: torch.Size
    exact: bool = True
    context_ndim: int | None = None
    has_rsample: bool = True

    # nn.Module erases the signature of `forward`.
    def __call__(self, *args: object, **kwargs: object) -> Tensor:
        return super().__call__(*args, **kwargs)

    def forward(self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """`log_prob`, through `__call__`: the way in that DDP and FSDP synchronise."""
        return self.log_prob(x, context, **drawn_with(generator))

    @property
    def event_ndim(self) -> int:
        """How many rightmost dims of x are its event."""
        return len(self.event_shape)

    @property
    def support(self) -> constraints.Constraint:
        """The values that an element of x may have."""
        return constraints.real

    @abstractmethod
    def log_prob(self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Log-density in nats at x (*batch, *event): (*batch). `generator` is for those that draw noise for it."""

    def rsample(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples with gradients: sample_shape + context batch + event.

        Raises:
            NotExact: if the distribution has none (`has_rsample` is False).
        """
        raise NotExact(
            f"{type(self).__name__}.rsample: its samples carry no gradient (has_rsample is False); use sample"
        )

    def sample(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples without gradients: sample_shape + context batch + event."""
        with torch.no_grad():
            return self.rsample(sample_shape, context, generator=generator)

    def sample_and_log_prob(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples and their log-density: sample_shape + context batch + event, sample_shape + context batch."""
        draw = self.rsample if self.has_rsample else self.sample
        x = draw(sample_shape, context, generator=generator)
        return x, self.log_prob(x, context)

    def check_event(self, name: str, value: Tensor, event: torch.Size | None = None) -> None:
        """Refuse a value whose rightmost dims are not the event, by default that of this distribution.

        Raises:
            ShapeError: naming what came and what was wanted.
            TypeError: for what is no tensor.
        """
        self.check_tensor(name, value)
        event = self.event_shape if event is None else event
        if value.shape[max(value.ndim - len(event), 0) :] != event:
            wanted = ", ".join(["*batch", *map(str, event)])
            raise ShapeError(f"{type(self).__name__}: {name} has shape {tuple(value.shape)}, wanted ({wanted})")

    def check_tensor(self, name: str, value: Tensor) -> None:
        """Refuse what is no tensor, or a tensor of another floating dtype than the parameters have.

        Raises:
            TypeError: for an array, a list or a number.
            DomainError: for another dtype.
        """
        check_tensor(type(self).__name__, name, value)
        if torch.compiler.is_compiling() or not value.is_floating_point():
            return
        # Under autocast a net may have made the value, in the lower precision.
        if torch.amp.is_autocast_available(value.device.type) and torch.is_autocast_enabled(value.device.type):
            return
        own = None
        for parameter in self.parameters():
            if parameter.dtype == value.dtype:
                return
            own = own or (parameter.dtype if parameter.is_floating_point() else None)
        if own is not None:
            raise DomainError(
                f"{type(self).__name__}: {name} is {value.dtype}, but the parameters are {own}: wanted "
                f"{name}.to({own}), or the module in {value.dtype}"
            )

    def check_context(self, context: Tensor | None) -> torch.Size:
        """The batch of a context; refuses one that is missing, not wanted, or has too few dims.

        Raises:
            ShapeError: naming what came and what was wanted.
            TypeError: for what is no tensor.
        """
        kind = type(self).__name__
        if context is None:
            if self.context_ndim is not None:
                raise ShapeError(f"{kind}: context is missing; this distribution is conditional")
            return torch.Size()
        self.check_tensor("context", context)
        if self.context_ndim is None:
            raise ShapeError(
                f"{kind}: context has shape {tuple(context.shape)}, but this distribution takes none "
                "(context_ndim is None)"
            )
        if context.ndim < self.context_ndim:
            raise ShapeError(
                f"{kind}: context has shape {tuple(context.shape)}, wanted at least {self.context_ndim} dims of event"
            )
        return context.shape[: context.ndim - self.context_ndim]

    def joint_batch(self, batch: torch.Size, context_batch: torch.Size) -> torch.Size:
        """The batch of values and contexts together.

        Raises:
            ShapeError: if the two do not broadcast.
        """
        try:
            return torch.broadcast_shapes(batch, context_batch)
        except RuntimeError:
            raise ShapeError(
                f"{type(self).__name__}: context has batch {tuple(context_batch)}, which does not broadcast to the "
                f"batch {tuple(batch)} of the values"
            ) from None


def drawn_with(generator: torch.Generator | None) -> dict[str, Any]:
    """The generator as a keyword, if there is one.

    A distribution that knows none then serves where none is asked for; and torch exports a draw of any size only if
    the keyword is left out.
    """
    check_generator(generator)
    return {} if generator is None else {"generator": generator}
