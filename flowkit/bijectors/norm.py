"""Normalization: set from the data once, or by every batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from flowkit.arguments import as_shape, finite
from flowkit.errors import ShapeError
from flowkit.functional.precision import log_term_dtype
from flowkit.transform import Bijector

__all__ = ["ActNorm", "BatchNorm"]


class Norm(Bijector):
    """A scale and a shift for each element of a shape, the same for all places where it is 1: what norms share."""

    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(as_shape(shape, f"{type(self).__name__}: shape"))
        self.in_ndim = self.out_ndim = len(self.shape)

    def _check(self, name: str, value: Tensor) -> None:
        self.check_event(name, value, tuple(None if size == 1 else size for size in self.shape))

    def _log_term(self, log_scale: Tensor, value: Tensor) -> Tensor:
        batch, event = value.shape[: value.ndim - self.in_ndim], value.shape[value.ndim - self.in_ndim :]
        # How many elements share a scale: the sizes in the places of a 1.
        shared = math.prod([event[dim] for dim, own in enumerate(self.shape) if own == 1])
        return (log_scale.sum() * shared).expand(batch)

    def _moments(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of what shares a scale, of this shape; of at least 2 values."""
        dims = self._averaged(value)
        variance, mean = torch.var_mean(value, dims, correction=0, keepdim=True)
        return mean.reshape(self.shape), variance.reshape(self.shape)

    def _averaged(self, value: Tensor) -> list[int]:
        return [d for d in range(-value.ndim, 0) if d < -self.in_ndim or self.shape[d] == 1]

    def _count(self, value: Tensor) -> int:
        """How many values share a scale."""
        return math.prod([value.shape[d] for d in self._averaged(value)])

    def extra_repr(self) -> str:
        return f"{self.shape}"


class ActNorm(Norm):
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

    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__(shape)
        self.gain = nn.Parameter(torch.ones(self.shape))
        self.bias = nn.Parameter(torch.zeros(self.shape))

    def _log_gain(self, gain: Tensor, value: Tensor) -> Tensor:
        return gain.to(log_term_dtype(value.dtype)).log()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x)
        gain = self.gain.clamp(min=self.floor)
        return x * gain + self.bias, self._log_term(self._log_gain(gain, x), x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z)
        gain = self.gain.clamp(min=self.floor)
        return (z - self.bias) / gain, -self._log_term(self._log_gain(gain, z), z)

    def initialize_(self, value: Tensor, *, inverse: bool = False) -> None:
        """Set gain and bias so that what leaves in this direction has mean 0 and deviation 1.

        Raises:
            ShapeError: if there are fewer than 2 values for each gain.
        """
        self._check("z" if inverse else "x", value)
        count = self._count(value)
        if count < 2:
            raise ShapeError(
                f"{self.path}: initialize got {tuple(value.shape)}, {count} value for each gain of {self.shape}; "
                "a deviation needs a batch of at least 2, and is good with a hundred"
            )
        with torch.no_grad():
            mean, variance = self._moments(value)
            deviation = (variance + 1e-8).sqrt()
            self.gain.copy_(deviation if inverse else 1 / deviation)
            self.bias.copy_(mean if inverse else -mean / deviation)


class BatchNorm(Norm):
    """z = exp(s) (x - m) / sqrt(v) + b, with the mean m and the variance v of each element of `shape`.

    Log-term: the sum of s - log(v) / 2 over the event. A variance below `floor` counts as `floor`. s and b are free.

    In eval mode m and v are the running averages: it is a bijector like any other, and before training the identity.

    In train mode, forward takes m and v from the batch, with gradients through them, and moves the running averages;
    inverse keeps to the running averages and moves nothing. So in train mode neither law holds, an example's z depends
    on its companions, and the log-term takes m and v for constants, as RealNVP does: a training loss, no density.
    Evaluate and sample in eval mode. What is trained through its inverse (`BatchNorm(...).inv`) meets the running
    averages alone, which then never move. Every process of a distributed run takes the moments of its own part of the
    batch. `torch.func.vmap` cannot map over examples in train mode.

    Args:
        shape: what one mean and variance each belong to: (D,) per feature, (C, 1, 1) per channel, over all pixels.
        momentum: weight of the newest batch in the running averages, of which the variance is the unbiased one. At 0
            they stay as they are, and train mode uses them too: set it to fine-tune with statistics that are fixed.
        floor: of the variance.

    Shapes:
        x, z: (*batch, *event), where the event is `shape` with any size in the place of a 1; l: (*batch).

    Raises:
        ShapeError: if x does not end in such an event, or in train mode gives fewer than 2 values for a variance.
        ValueError: for a momentum outside [0, 1], or a floor that is not positive.

    Reference:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, section 3.7 and appendix E,
        https://arxiv.org/abs/1605.08803.

    >>> import torch
    >>> norm = BatchNorm((2,))
    >>> x = torch.randn(100, 2) * 3 + 1
    >>> z, log_det = norm(x)
    >>> torch.allclose(z.std(0, correction=0), torch.ones(2)), log_det.shape
    (True, torch.Size([100]))
    >>> norm.eval().inverse(norm(x)[0])[0].allclose(x, atol=1e-5)
    True
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, shape: int | Sequence[int], momentum: float = 0.1, floor: float = 1e-5) -> None:
        super().__init__(shape)
        if not 0 <= finite("BatchNorm", "momentum", momentum) <= 1:
            raise ValueError(f"BatchNorm: momentum is {momentum}, wanted from 0 to 1")
        if not finite("BatchNorm", "floor", floor) > 0:
            raise ValueError(f"BatchNorm: floor is {floor}, wanted above 0")
        self.momentum, self.floor = momentum, floor
        self.log_gain = nn.Parameter(torch.zeros(self.shape))
        self.bias = nn.Parameter(torch.zeros(self.shape))
        self.register_buffer("running_mean", torch.zeros(self.shape))
        self.register_buffer("running_var", torch.ones(self.shape))

    def _log_scale(self, variance: Tensor, value: Tensor) -> Tensor:
        dtype = log_term_dtype(value.dtype)
        return self.log_gain.to(dtype) - variance.to(dtype).log() / 2

    def _batch_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of this batch, which the running averages follow."""
        count = self._count(x)
        if count < 2:
            raise ShapeError(
                f"{self.path}: x has shape {tuple(x.shape)}, {count} value for each variance of {self.shape}; "
                "in train mode a batch has at least 2 (in eval mode any number)"
            )
        mean, variance = self._moments(x)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var.dtype), self.momentum)
        return mean, variance

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x)
        # A fake tensor only asks for a shape, as when a `Flow` traces its own.
        of_batch = self.training and self.momentum > 0 and not isinstance(x, FakeTensor)
        mean, variance = self._batch_moments(x) if of_batch else (self.running_mean, self.running_var)
        variance = variance.clamp(min=self.floor)
        z = (x - mean) * (self.log_gain.exp() / variance.sqrt()) + self.bias
        return z, self._log_term(self._log_scale(variance, x), x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z)
        variance = self.running_var.clamp(min=self.floor)
        x = (z - self.bias) * ((-self.log_gain).exp() * variance.sqrt()) + self.running_mean
        return x, -self._log_term(self._log_scale(variance, z), z)

    def extra_repr(self) -> str:
        return f"{self.shape}, momentum={self.momentum}"
