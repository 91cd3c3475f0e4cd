"""From integers to the unit cube: uniform and variational dequantization."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowkit.arguments import whole
from flowkit.distribution import Distribution
from flowkit.errors import DomainError, ShapeError
from flowkit.functional.eager import values_at_hand
from flowkit.functional.precision import log_term_dtype
from flowkit.functional.reduce import sum_rightmost
from flowkit.transform import Transform

__all__ = ["UniformDequantizer", "VariationalDequantizer"]


class Dequantizer(Transform):
    """z = (x + u) / levels with noise u in [0, 1), and back x = floor(levels z): what all dequantizers share."""

    stochastic_forward = True
    codomain = constraints.unit_interval
    unit: Tensor

    def __init__(self, levels: int) -> None:
        super().__init__()
        count = whole(levels)
        if count is None or not 2 <= count <= 1 << 24:  # float32 tells no more integers apart
            raise ValueError(f"{type(self).__name__}: levels is {levels!r}, wanted a whole number from 2 to {1 << 24}")
        self.levels = count
        self.domain = constraints.integer_interval(0, count - 1)
        # Carries dtype and device of the noise, so that .double() and .to(device) mean it too.
        self.register_buffer("unit", torch.ones(()), persistent=False)

    def _check_integers(self, x: Tensor) -> None:
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise DomainError(f"{self.path}: x is {x.dtype}, wanted integers from 0 to {self.levels - 1}")
        if not x.numel() or not values_at_hand(x):
            return
        # Not every unsigned dtype has a minimum of its own; beyond int64 they wrap to below 0, and are refused as well.
        low, high = (value.item() for value in x.long().aminmax())
        if low < 0 or high >= self.levels:
            raise DomainError(
                f"{self.path}: x has values from {low} to {high}, wanted integers from 0 to {self.levels - 1}"
            )

    def _to_cube(self, x: Tensor, u: Tensor) -> Tensor:
        """(x + u) / levels, nudged where rounding would carry it out of its bin, so that the floor gives x again."""
        x = x.to(u.dtype)
        z = (x + u) / self.levels
        with torch.no_grad():
            inside = z
            for _ in range(2):  # the sum and the quotient round once each
                bins = (inside * self.levels).floor()
                inside = torch.where(bins > x, inside.nextafter(-self.unit), inside)
                inside = torch.where(bins < x, inside.nextafter(2 * self.unit), inside)
        return z + (inside - z).detach() if u.requires_grad else inside

    def _to_integers(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The integers, as int64; the noise in [0, 1); where z lies inside the cube."""
        scaled = z * self.levels
        bins = scaled.floor()
        inside = (bins >= 0) & (bins < self.levels)
        u = torch.where(inside, scaled - bins, 0.5)
        # A latent that is not a number gives 0, with a log-term of minus infinity, as everything outside does.
        return bins.nan_to_num(0.0).clamp(0, self.levels - 1).long().clamp(max=self.levels - 1), u, inside

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


class UniformDequantizer(Dequantizer):
    """z = (x + u) / levels with u uniform on [0, 1), and back x = floor(levels z).

    Log-term: -log levels per element; on the way back log levels, or minus infinity where z lies outside the unit
    interval and no x leads there. `log_prob` of a flow that starts with it is a lower bound in expectation.

    Args:
        levels: the integers run from 0 to levels - 1; 256 for 8-bit images.

    Shapes:
        x: (*batch), any integer dtype; z: (*batch), the dtype of the module; l: (*batch). Elementwise.

    Raises:
        DomainError: for x that is not of an integer dtype, or (in eager mode) has values out of range.
        ValueError: for fewer than 2 levels, or more than float32 tells apart.

    Reference:
        Theis, van den Oord, Bethge, "A note on the evaluation of generative models", 2016,
        https://arxiv.org/abs/1511.01844.

    >>> import torch
    >>> dequantize = UniformDequantizer(levels=256)
    >>> x = torch.tensor([0, 128, 255])
    >>> z, term = dequantize(x)
    >>> dequantize.inverse(z)[0]
    tensor([  0, 128, 255])
    """

    in_ndim = 0
    out_ndim = 0

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        self._check_integers(x)
        u = torch.rand(x.shape, dtype=self.unit.dtype, device=x.device, generator=generator)
        z = self._to_cube(x, u)
        return z, torch.full_like(z, -math.log(self.levels), dtype=log_term_dtype(z.dtype))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, _, inside = self._to_integers(z)
        term = torch.full_like(z, math.log(self.levels), dtype=log_term_dtype(z.dtype))
        return x, torch.where(inside, term, -torch.inf)


class VariationalDequantizer(Dequantizer):
    """z = (x + u) / levels with u drawn from q(u | x), and back x = floor(levels z).

    Log-term: -log q(u | x) - D log levels, D elements in an event; on the way back its negative for
    u = levels z - x, or minus infinity where z lies outside the unit cube and no x leads there. The log-likelihood
    is a lower bound in expectation, the tighter the better q fits.

    Args:
        noise: any distribution over the unit cube; conditional if there is an encoder.
        levels: the integers run from 0 to levels - 1; 256 for 8-bit images.
        encoder: `encoder(x / levels - 0.5, context)` gives the one tensor on which the noise is conditional. None
            for a noise that does not look at x.

    Shapes:
        x: (*batch, *noise.event_shape), any integer dtype; z: the same, the dtype of the module; l: (*batch).

    Raises:
        DomainError: for x that is not of an integer dtype, or (in eager mode) has values out of range.
        ShapeError: for x that does not have the shape of the noise.
        ValueError: for fewer than 2 levels, more than float32 tells apart, or a conditional noise without an encoder.
        TypeError: for a noise that is no distribution, or an encoder that cannot be called.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, section 3.1, https://arxiv.org/abs/1902.00275.

    >>> import torch, flowkit as fk
    >>> noise = fk.Flow(fk.Sigmoid().inv, fk.Normal((3,)))
    >>> dequantize = VariationalDequantizer(noise, levels=4)
    >>> x = torch.tensor([[0, 1, 3]])
    >>> dequantize.inverse(dequantize(x)[0])[0]
    tensor([[0, 1, 3]])
    """

    def __init__(self, noise: Distribution, levels: int, encoder: nn.Module | None = None) -> None:
        super().__init__(levels)
        if not isinstance(noise, Distribution):
            raise TypeError(f"VariationalDequantizer: noise is a {type(noise).__name__}, wanted a flowkit Distribution")
        if not (encoder is None or callable(encoder)):
            raise TypeError(f"VariationalDequantizer: encoder is a {type(encoder).__name__}, wanted a network or None")
        if encoder is None and noise.context_ndim is not None:
            raise ValueError("VariationalDequantizer: a conditional noise needs an encoder")
        self.encoder, self.noise = encoder, noise
        self.in_ndim = self.out_ndim = noise.event_ndim

    def _encode(self, x: Tensor, context: Tensor | None) -> Tensor | None:
        if self.encoder is None:
            return None
        encoded = self.enter_net(self.encoder, x.to(self.unit.dtype) / self.levels - 0.5, context)
        # Mixed precision ends here, as it does behind a coupling's net: the noise is a density.
        return encoded.to(self.unit.dtype) if encoded.is_floating_point() else encoded

    def _log_term(self, log_density: Tensor, value: Tensor) -> Tensor:
        log_density = log_density.to(log_term_dtype(log_density.dtype))
        return -log_density - value.shape[value.ndim - self.in_ndim :].numel() * math.log(self.levels)

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        self._check_integers(x)
        self.check_event("x", x, (None,) * self.in_ndim)
        encoded = self._encode(x, context)
        shape = x.shape[: x.ndim - self.in_ndim] if encoded is None else ()
        u, log_density = self.noise.sample_and_log_prob(shape, encoded, generator=generator)
        if u.shape != x.shape:
            raise ShapeError(f"{self.path}: x has shape {tuple(x.shape)}, but the noise comes as {tuple(u.shape)}")
        u = u.clamp(max=1 - torch.finfo(u.dtype).eps / 2)  # the largest number below 1
        return self._to_cube(x, u), self._log_term(log_density, x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("z", z, (None,) * self.in_ndim)
        x, u, inside = self._to_integers(z)
        # Rounding can leave u at 0, where the density of a noise on the open cube is not defined.
        u = u.clamp(min=torch.finfo(u.dtype).tiny)
        term = -self._log_term(self.noise.log_prob(u, self._encode(x, context)), z)
        return x, torch.where(sum_rightmost((~inside).long(), self.in_ndim) == 0, term, -torch.inf)
