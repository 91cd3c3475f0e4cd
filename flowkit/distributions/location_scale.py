"""Normal and logistic: independent elements, each with a location and a scale."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from flowkit.distribution import Distribution, as_shape
from flowkit.errors import DomainError, ShapeError
from flowkit.functional.reduce import sum_rightmost

__all__ = ["Logistic", "Normal"]


class LocationScale(Distribution):
    """x = loc + scale u, for a standard u whose elements are independent.

    Args:
        event_shape: shape of one event; an int stands for one dim.
        loc: broadcast to `event_shape`.
        scale: positive, broadcast to `event_shape`.

    Raises:
        ShapeError: if `loc` or `scale` does not broadcast to `event_shape`.
        DomainError: if `scale` is not positive and finite.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self, event_shape: int | Sequence[int], loc: float | Tensor = 0.0, scale: float | Tensor = 1.0
    ) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        for name, value in (("loc", loc), ("scale", scale)):
            tensor = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.get_default_dtype())
            try:
                tensor.expand(self.event_shape)
            except RuntimeError:
                raise ShapeError(
                    f"{type(self).__name__}: {name} has shape {tuple(tensor.shape)}, "
                    f"wanted one that broadcasts to {tuple(self.event_shape)}"
                ) from None
            if name == "scale" and tensor.device.type != "meta" and not ((tensor > 0) & tensor.isfinite()).all():
                raise DomainError(f"{type(self).__name__}: scale is {value}, wanted positive and finite")
            # Constants of the construction, not of training: no place in the state dict.
            self.register_buffer(name, tensor, persistent=False)

    @abstractmethod
    def _standard_log_prob(self, u: Tensor) -> Tensor:
        """Log-density of the standard element."""

    @abstractmethod
    def _standard_sample(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        """Draws of the standard element, with this distribution's dtype and device."""

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        self.check_event("x", x)
        elements = self._standard_log_prob((x - self.loc) / self.scale) - self.scale.log()
        return sum_rightmost(elements.expand(x.shape), len(self.event_shape))

    def rsample(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        u = self._standard_sample(as_shape(sample_shape) + self.event_shape, generator)
        return self.loc + self.scale * u

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}"


class Normal(LocationScale):
    """Independent normals: log p(x) = sum of -u^2/2 - log(scale) - log(2 pi)/2, with u = (x - loc) / scale.

    Shapes:
        x: (*batch, *event_shape); log_prob: (*batch).

    >>> import torch
    >>> base = Normal((2,))
    >>> base.log_prob(torch.zeros(3, 2))
    tensor([-1.8379, -1.8379, -1.8379])
    >>> base.sample((5,)).shape
    torch.Size([5, 2])
    """

    def _standard_log_prob(self, u: Tensor) -> Tensor:
        return -0.5 * (u * u + math.log(2 * math.pi))

    def _standard_sample(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device, generator=generator)


class Logistic(LocationScale):
    """Independent logistics: log p(x) = sum of -u - 2 softplus(-u) - log(scale), with u = (x - loc) / scale.

    Shapes:
        x: (*batch, *event_shape); log_prob: (*batch).

    >>> import torch
    >>> Logistic((1,)).log_prob(torch.zeros(1)).exp()
    tensor(0.2500)
    """

    def _standard_log_prob(self, u: Tensor) -> Tensor:
        return F.logsigmoid(u) + F.logsigmoid(-u)

    def _standard_sample(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        tiny = torch.finfo(self.loc.dtype).tiny
        # rand draws from [0, 1): the open interval keeps the quantile finite.
        p = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device, generator=generator).clamp(min=tiny)
        return p.log() - torch.log1p(-p)
