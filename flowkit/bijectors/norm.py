"""Normalization that initializes itself from data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkit.errors import ShapeError
from flowkit.functional.precision import log_term_dtype
from flowkit.transform import Bijector

__all__ = ["ActNorm"]


class ActNorm(Bijector):
    """z = g x + b, and back x = (z - b) / g, with one gain g and bias b for each element of `shape`.

    Log-term: the sum of log g over the event. A gain below 1e-10 counts as 1e-10, as in Flow++'s published code.
    `initialize` sets g and b from a batch so that every element has mean 0 and deviation 1 (biased variance) over the
    batch, and over the dims where `shape` is 1.

    Args:
        shape: what one gain each belongs to. The whole event normalizes per element (Flow++: every position of both
            halves); (C, 1, 1) per channel (Glow).

    Shapes:
        x, z: (*batch, *event), where the event is `shape` with any size in the place of a 1; l: (*batch).

    Raises:
        ShapeError: if x does not end in such an event.

    Reference:
        Kingma, Dhariwal, "Glow", 2018, https://arxiv.org/abs/1807.03039.

    >>> import torch, flowkit as fk
    >>> norm = ActNorm((2,))
    >>> x = torch.randn(100, 2) * 3 + 1
    >>> norm.initialize_(x)
    >>> z, log_det = norm(x)
    >>> torch.allclose(z.std(0, correction=0), torch.ones(2)), torch.allclose(norm.inverse(z)[0], x, atol=1e-5)
    (True, True)
    """

    floor = 1e-10

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.in_ndim = self.out_ndim = len(self.shape)
        self.gain = nn.Parameter(torch.ones(self.shape))
        self.bias = nn.Parameter(torch.zeros(self.shape))

    def _check(self, name: str, value: Tensor) -> None:
        self.check_event(name, value, tuple(None if size == 1 else size for size in self.shape))

    def _log_term(self, gain: Tensor, value: Tensor) -> Tensor:
        batch, event = value.shape[: value.ndim - self.in_ndim], value.shape[value.ndim - self.in_ndim :]
        # How many elements share a gain: the sizes in the places of a 1.
        shared = math.prod([event[dim] for dim, own in enumerate(self.shape) if own == 1])
        return (gain.to(log_term_dtype(value.dtype)).log().sum() * shared).expand(batch)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x)
        gain = self.gain.clamp(min=self.floor)
        return x * gain + self.bias, self._log_term(gain, x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z)
        gain = self.gain.clamp(min=self.floor)
        return (z - self.bias) / gain, -self._log_term(gain, z)

    def initialize_(self, value: Tensor, *, inverse: bool = False) -> None:
        """Set gain and bias so that what leaves in this direction has mean 0 and deviation 1.

        Raises:
            ShapeError: if there are fewer than 2 values for each gain.
        """
        self._check("z" if inverse else "x", value)
        dims = [d for d in range(-value.ndim, 0) if d < -self.in_ndim or self.shape[d] == 1]
        count = math.prod([value.shape[d] for d in dims])
        if count < 2:
            raise ShapeError(
                f"{self.path}: initialize got {tuple(value.shape)}, {count} value for each gain of {self.shape}; "
                "a deviation needs a batch of at least 2, and is good with a hundred"
            )
        with torch.no_grad():
            mean = value.mean(dims, keepdim=True).reshape(self.shape)
            deviation = (value.var(dims, correction=0, keepdim=True) + 1e-8).sqrt().reshape(self.shape)
            self.gain.copy_(deviation if inverse else 1 / deviation)
            self.bias.copy_(mean if inverse else -mean / deviation)

    def extra_repr(self) -> str:
        return f"{self.shape}"
