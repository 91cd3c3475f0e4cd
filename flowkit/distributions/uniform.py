"""The uniform density on a box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkit.distribution import Distribution, as_shape
from flowkit.errors import DomainError
from flowkit.functional.reduce import sum_rightmost

__all__ = ["Uniform"]


class Uniform(Distribution):
    """Uniform on the box [low, high]^event: log p(x) = -D log(high - low) inside, minus infinity outside.

    Args:
        event_shape: shape of one event; an int stands for one dim.
        low: lower end of every side.
        high: upper end of every side, above `low`.

    Raises:
        DomainError: unless `low` < `high`.

    Shapes:
        x: (*batch, *event_shape); log_prob: (*batch).

    >>> import torch
    >>> Uniform((2,), high=2.0).log_prob(torch.tensor([[0.5, 1.5], [0.5, 2.5]]))
    tensor([-1.3863,    -inf])
    """

    low: Tensor
    high: Tensor

    def __init__(self, event_shape: int | Sequence[int], low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        if not low < high:
            raise DomainError(f"Uniform: low is {low} and high is {high}, wanted low < high")
        self.event_shape = as_shape(event_shape)
        self.register_buffer("low", torch.tensor(float(low)), persistent=False)
        self.register_buffer("high", torch.tensor(float(high)), persistent=False)

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        self.check_event("x", x)
        inside = (x >= self.low) & (x <= self.high)
        return sum_rightmost(-torch.where(inside, (self.high - self.low).log(), torch.inf), len(self.event_shape))

    def rsample(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        shape = as_shape(sample_shape) + self.event_shape
        u = torch.rand(shape, dtype=self.low.dtype, device=self.low.device, generator=generator)
        return self.low + (self.high - self.low) * u

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}, low={self.low.item()}, high={self.high.item()}"
