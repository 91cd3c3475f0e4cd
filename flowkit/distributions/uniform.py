"""The uniform density on a box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import constraints

from flowkit.arguments import as_shape, check_floating
from flowkit.distribution import Distribution, drawn_with
from flowkit.distributions.family import as_parameter
from flowkit.errors import DomainError
from flowkit.functional.precision import log_term_dtype
from flowkit.functional.reduce import sum_rightmost

__all__ = ["Uniform"]


class Uniform(Distribution):
    """Uniform on a box: log p(x) = minus the sum of log(high - low) where low <= x <= high, minus infinity outside.

    The box is closed: its faces belong to it, and no sample lies beyond them.

    Args:
        event_shape: shape of one event; an int stands for one dim.
        low: lower end of every side, broadcast to `event_shape`.
        high: upper end of every side, above `low`, broadcast to `event_shape`.

    Raises:
        DomainError: unless `low` < `high`, both finite.
        ShapeError: if `low` or `high` does not broadcast to `event_shape`.

    Shapes:
        x: (*batch, *event_shape); log_prob: (*batch).

    >>> import torch
    >>> Uniform((2,), high=2.0).log_prob(torch.tensor([[0.5, 1.5], [0.5, 2.5]]))
    tensor([-1.3863,    -inf])
    """

    low: Tensor
    high: Tensor

    def __init__(self, event_shape: int | Sequence[int], low: float | Tensor = 0.0, high: float | Tensor = 1.0) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape, "Uniform: event_shape")
        ends = [as_parameter("Uniform", name, end, self.event_shape) for name, end in (("low", low), ("high", high))]
        if ends[0].device.type != "meta" and not (ends[0] < ends[1]).all():
            raise DomainError(f"Uniform: low is {low} and high is {high}, wanted low < high")
        dtype = torch.promote_types(ends[0].dtype, ends[1].dtype)
        self.register_buffer("low", ends[0].to(dtype), persistent=False)
        self.register_buffer("high", ends[1].to(dtype), persistent=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.interval(self.low, self.high)

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        self.check_event("x", x)
        check_floating("Uniform", "x", x)
        if context is not None:
            self.check_context(context)
        inside = (x >= self.low) & (x <= self.high)
        dtype = log_term_dtype(torch.promote_types(x.dtype, self.low.dtype))
        elements = torch.where(inside, -(self.high.to(dtype) - self.low.to(dtype)).log(), -torch.inf)
        return sum_rightmost(torch.where(x.isnan(), x.to(dtype), elements), len(self.event_shape))

    def rsample(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if context is not None:
            self.check_context(context)
        shape = as_shape(sample_shape) + self.event_shape
        u = torch.rand(shape, dtype=self.low.dtype, device=self.low.device, **drawn_with(generator))
        # Rounding could carry a sample past the upper end, where its density would be 0.
        return torch.minimum(self.low + (self.high - self.low) * u, self.high)

    def extra_repr(self) -> str:
        ends = "" if self.low.ndim or self.high.ndim else f", low={self.low.item()}, high={self.high.item()}"
        return f"{tuple(self.event_shape)}{ends}"
