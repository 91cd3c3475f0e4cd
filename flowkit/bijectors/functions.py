"""Fixed functions of one number."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from flowkit.arguments import as_floating, finite
from flowkit.errors import DomainError, ShapeError
from flowkit.functional.precision import log_term_dtype
from flowkit.functional.reduce import sum_rightmost
from flowkit.functional.softplus import log1mexp, softplus
from flowkit.transform import Bijector

__all__ = ["Exp", "LeakyReLU", "Power", "ScaleShift", "Softplus"]


class Exp(Bijector):
    """z = exp(x), and back x = log z. The logarithm is `Exp().inv`.

    Log-term: x.

    Shapes:
        x, z, l: (*batch); elementwise. z is positive.

    >>> import torch
    >>> Exp()(torch.tensor([0.0, 1.0]))
    (tensor([1.0000, 2.7183]), tensor([0., 1.]))
    """

    in_ndim = 0
    out_ndim = 0
    codomain = constraints.positive

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.exp(), x.to(log_term_dtype(x.dtype), copy=True)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = z.log()
        return x, -x.to(log_term_dtype(z.dtype))


class Softplus(Bijector):
    """z = log(1 + exp(x)), and back x = z + log(1 - exp(-z)).

    Log-term: log sigmoid(x), which is log(1 - exp(-z)). Unlike `exp` it grows no faster than x. All digits are kept in
    both tails: torch's own softplus is x from 20 on, whatever the dtype.

    Shapes:
        x, z, l: (*batch); elementwise. z is positive.

    Reference:
        Mächler, "Accurately computing log(1 - exp(-|a|))", 2012.

    >>> import torch
    >>> z, log_det = Softplus()(torch.tensor([-40.0, 0.0, 40.0]))
    >>> z
    tensor([4.2484e-18, 6.9315e-01, 4.0000e+01])
    >>> Softplus().inverse(z)[0]
    tensor([-40.,   0.,  40.])
    """

    in_ndim = 0
    out_ndim = 0
    codomain = constraints.positive

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return softplus(x), F.logsigmoid(x.to(log_term_dtype(x.dtype)))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_slope = log1mexp(z)
        return z + log_slope, -log_slope.to(log_term_dtype(z.dtype))


class LeakyReLU(Bijector):
    """z = x where x >= 0, and slope x where x < 0.

    Log-term: 0 or log slope.

    Args:
        slope: of the negative half, above 0.

    Shapes:
        x, z, l: (*batch); elementwise.

    Raises:
        ValueError: if the slope is not above 0.

    >>> import torch
    >>> LeakyReLU(slope=0.5)(torch.tensor([-2.0, 2.0]))
    (tensor([-1.,  2.]), tensor([-0.6931,  0.0000]))
    """

    in_ndim = 0
    out_ndim = 0

    def __init__(self, slope: float = 0.01) -> None:
        super().__init__()
        if not finite("LeakyReLU", "slope", slope) > 0:
            raise ValueError(f"LeakyReLU: slope is {slope}, wanted above 0 and finite")
        self.slope = slope

    def _log_term(self, value: Tensor) -> Tensor:
        zeros = torch.zeros_like(value, dtype=log_term_dtype(value.dtype))
        return zeros.masked_fill(value < 0, math.log(self.slope))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.where(x < 0, x * self.slope, x), self._log_term(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.where(z < 0, z / self.slope, z), -self._log_term(z)

    def extra_repr(self) -> str:
        return f"slope={self.slope}"


class Power(Bijector):
    """z = x^p for x > 0, and back x = z^(1/p).

    Log-term: log|p| + (p - 1) log x.

    Args:
        exponent: p, not 0. A negative one turns the order round.

    Shapes:
        x, z, l: (*batch); elementwise. x and z are positive.

    Raises:
        ValueError: if the exponent is 0 or not finite.

    >>> import torch
    >>> Power(2.0)(torch.tensor([1.0, 3.0]))
    (tensor([1., 9.]), tensor([0.6931, 1.7918]))
    """

    in_ndim = 0
    out_ndim = 0
    domain = constraints.positive
    codomain = constraints.positive

    def __init__(self, exponent: float) -> None:
        super().__init__()
        if finite("Power", "exponent", exponent) == 0:
            raise ValueError(f"Power: exponent is {exponent}, wanted finite and not 0")
        self.exponent = exponent

    def _log_term(self, log_x: Tensor) -> Tensor:
        return math.log(abs(self.exponent)) + (self.exponent - 1) * log_x

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x**self.exponent, self._log_term(x.to(log_term_dtype(x.dtype)).log())

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_x = z.to(log_term_dtype(z.dtype)).log() / self.exponent
        return z ** (1 / self.exponent), -self._log_term(log_x)

    def extra_repr(self) -> str:
        return f"exponent={self.exponent}"


class ScaleShift(Bijector):
    """z = scale x + shift with fixed numbers, and back x = (z - shift) / scale: units, and standardized data.

    Log-term: log|scale| of each element, summed over the event. Both are saved with the parameters; free ones are
    `Elementwise(maps.Affine(), shape)`.

    Args:
        scale: a number or a tensor, without a 0.
        shift: likewise. The event has as many dims as the larger of the two: none for numbers.
        domain: the values x may have. What can be said of z follows from it: `ScaleShift(1 / 255, domain=
            constraints.interval(0, 255))` may stand before a `Logit`.

    Shapes:
        x, z: (*batch, *event), where the event is that of `scale` and `shift` with any size in the place of a 1;
            l: (*batch).

    Raises:
        DomainError: if the scale is 0, one of the two is not finite, or a domain with bounds is given for tensors.
        ShapeError: if the two do not broadcast, or x does not end in such an event.
        TypeError: if scale or shift is neither a number nor a tensor.

    >>> import torch
    >>> mean, deviation = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 4.0])
    >>> standardize = ScaleShift(1 / deviation, -mean / deviation)
    >>> standardize(torch.tensor([[2.0, 2.0]]))
    (tensor([[2., 0.]]), tensor([-0.6931]))
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        scale: float | Tensor = 1.0,
        shift: float | Tensor = 0.0,
        *,
        domain: constraints.Constraint = constraints.real,
    ) -> None:
        super().__init__()
        tensors = [as_floating("ScaleShift", name, v) for name, v in (("scale", scale), ("shift", shift))]
        self.domain = domain
        self.codomain = _image(scale, shift, domain)
        try:
            self.shape = torch.broadcast_shapes(*(t.shape for t in tensors))
        except RuntimeError:
            shapes = " and ".join(str(tuple(t.shape)) for t in tensors)
            raise ShapeError(f"ScaleShift: scale and shift have shapes {shapes}, wanted two that broadcast") from None
        if tensors[0].device.type != "meta" and not ((tensors[0] != 0) & tensors[0].isfinite()).all():
            raise DomainError(f"ScaleShift: scale is {scale}, wanted finite and not 0")
        if tensors[1].device.type != "meta" and not tensors[1].isfinite().all():
            raise DomainError(f"ScaleShift: shift is {shift}, wanted finite")
        self.in_ndim = self.out_ndim = len(self.shape)
        # Persistent: the statistics of the data belong to what was trained on them.
        for name, tensor in zip(("scale", "shift"), tensors, strict=True):
            self.register_buffer(name, tensor.detach().expand(self.shape).clone())

    def _check(self, name: str, value: Tensor) -> None:
        self.check_event(name, value, tuple(None if size == 1 else size for size in self.shape))

    def _log_term(self, value: Tensor) -> Tensor:
        log_scale = self.scale.to(log_term_dtype(value.dtype)).abs().log()
        event = value.shape[value.ndim - self.in_ndim :]
        return sum_rightmost(log_scale.expand(event), self.in_ndim).expand(value.shape[: value.ndim - self.in_ndim])

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x)
        return x * self.scale + self.shift, self._log_term(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z)
        return (z - self.shift) / self.scale, -self._log_term(z)

    def extra_repr(self) -> str:
        numbers = () if self.shape else (f"scale={self.scale.item():g}", f"shift={self.shift.item():g}")
        return ", ".join(numbers) or f"{tuple(self.shape)}"


def _image(scale: float | Tensor, shift: float | Tensor, domain: constraints.Constraint) -> constraints.Constraint:
    """Where scale x + shift lies for x in `domain`, an interval, a half-line or all numbers."""
    low, high = getattr(domain, "lower_bound", None), getattr(domain, "upper_bound", None)
    if domain is constraints.real:
        return constraints.real
    if isinstance(scale, Tensor) or isinstance(shift, Tensor) or (low is None and high is None):
        raise DomainError(
            f"ScaleShift: domain is {domain}; of one other than all numbers, wanted bounds, and numbers for scale and "
            "shift"
        )
    ends = [None if end is None else scale * end + shift for end in (low, high)]
    low, high = ends if scale > 0 else reversed(ends)
    if low is None:
        return constraints.less_than(high)
    return constraints.greater_than(low) if high is None else constraints.interval(low, high)
