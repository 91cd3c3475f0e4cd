"""From integers to real numbers: uniform and variational dequantization, and argmax for categories."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowkit.arguments import takes_context, whole
from flowkit.distribution import Distribution, drawn_with
from flowkit.errors import DomainError, ShapeError
from flowkit.functional import discrete
from flowkit.functional.eager import values_at_hand
from flowkit.functional.precision import log_term_dtype
from flowkit.functional.reduce import sum_rightmost
from flowkit.transform import Transform

__all__ = ["ArgmaxDequantizer", "BinaryDequantizer", "UniformDequantizer", "VariationalDequantizer"]

MOST = 1 << 24  # float32 tells no more integers apart

# One number, or a tensor of them that broadcasts over the event.
Levels = int | Sequence[int] | Tensor


class Dequantizer(Transform):
    """Integers from 0 to levels - 1, and the dtype of the noise they are given: what all dequantizers share."""

    stochastic_forward = True
    levels: int | Tensor
    unit: Tensor

    def __init__(self, levels: Levels) -> None:
        super().__init__()
        part = type(self).__name__
        # Carries dtype and device of the noise, so that .double() and .to(device) mean it too.
        self.register_buffer("unit", torch.ones(()), persistent=False)
        one = whole(levels)
        each = None if one is not None else _whole_numbers(levels)
        if not (2 <= one <= MOST if one is not None else each is not None):
            raise ValueError(f"{part}: levels is {levels!r}, wanted a whole number from 2 to {MOST}, or some of them")
        if each is None:
            self.levels = one  # type: ignore[assignment]
        else:
            self.register_buffer("levels", each, persistent=False)
        known = (
            [one] if one is not None else [] if each is None or each.device.type == "meta" else each.unique().tolist()
        )
        # Two numbers of the upper half of the unit interval in each bin; one will do if rounding never leaves its bin.
        self._needed = max((n if n & (n - 1) == 0 else 2 * n, n) for n in known) if known else (0, 0)

    def _check_digits(self, dtype: torch.dtype) -> None:
        """Refuse a dtype of z that has too few numbers in the unit interval to tell the levels apart."""
        numbers = round(2 / torch.finfo(dtype).eps)
        if self._needed[0] > numbers:
            raise DomainError(
                f"{self.path}: levels is {self._needed[1]}, but {dtype} tells only {numbers // 2} apart, or {numbers} "
                "as a power of 2; wanted a wider dtype, as by .float()"
            )

    @property
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.integer_interval(0, self.levels - 1)

    @property
    def _levels_event(self) -> tuple[int | None, ...]:
        """The rightmost dims of x that have levels of their own, None for any size."""
        shape = self.levels.shape if isinstance(self.levels, Tensor) else ()
        return tuple(None if size == 1 else size for size in shape)

    def _check_integers(self, x: Tensor) -> None:
        self.check_event("x", x, (None,) * (self.in_ndim - len(self._levels_event)) + self._levels_event)
        levels = self.levels
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            top = str(levels - 1) if isinstance(levels, int) else "levels - 1"
            raise DomainError(f"{self.path}: x is {x.dtype}, wanted integers from 0 to {top}")
        if not x.numel() or not values_at_hand(x, *([levels] if isinstance(levels, Tensor) else [])):
            return
        # Not every unsigned dtype has a minimum of its own; beyond int64 they wrap to below 0, and are refused as well.
        wide = x.long()
        if isinstance(levels, int):
            low, high = (value.item() for value in wide.aminmax())
            if low < 0 or high >= levels:
                raise DomainError(
                    f"{self.path}: x has values from {low} to {high}, wanted integers from 0 to {levels - 1}"
                )
        elif (wrong := (wide < 0) | (wide >= levels)).any():
            place = tuple(wrong.nonzero()[0].tolist())
            most = int(levels.expand(x.shape)[place])
            raise DomainError(
                f"{self.path}: x is {wide[place].item()} at {place}, wanted integers from 0 to {most - 1} there"
            )

    def _log_levels(self, value: Tensor) -> Tensor | float:
        """The sum of log levels over the event of `value`."""
        event = value.shape[value.ndim - self.in_ndim :]
        if isinstance(self.levels, Tensor):
            return self.levels.to(log_term_dtype(self.unit.dtype)).log().expand(event).sum()
        return event.numel() * math.log(self.levels)

    def extra_repr(self) -> str:
        at_hand = isinstance(self.levels, int) or self.levels.device.type == "meta"
        return f"levels={self.levels if at_hand else self.levels.tolist()}"  # type: ignore[union-attr]


def _whole_numbers(levels: Levels) -> Tensor | None:
    """Levels for each element, as int64; None for what is none, or out of range."""
    try:
        each = torch.as_tensor(levels)
    except (TypeError, ValueError, RuntimeError):
        return None
    if each.is_floating_point() or each.is_complex() or each.dtype == torch.bool or not (each.ndim and each.numel()):
        return None
    return each.long() if each.device.type == "meta" or bool(((each >= 2) & (each <= MOST)).all()) else None


class UniformDequantizer(Dequantizer):
    """z = (x + u) / levels with u uniform on [0, 1), and back x = floor(levels z).

    Log-term: -log levels per element; on the way back log levels, or minus infinity where z lies outside the unit
    interval and no x leads there. `log_prob` of a flow that starts with it is a lower bound in expectation.

    Args:
        levels: the integers run from 0 to levels - 1; 256 for 8-bit images. A tensor or a sequence has levels for each
            element of the event, (3, 7) for two columns of a table, the same for all places where its size is 1.

    Shapes:
        x: (*batch), any integer dtype; z: (*batch), the dtype of the module; l: (*batch). Elementwise, or with levels
        for each element (*batch, *event), (*batch, *event), (*batch), where the event has the dims of `levels`.

    Raises:
        DomainError: for x that is not of an integer dtype, or (in eager mode) has values out of range; and for more
            levels than the dtype of z tells apart: 128 in bfloat16 and 1024 in float16, and 256 and 2048.
        ShapeError: for x that does not end in the shape of `levels`.
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
    >>> UniformDequantizer(levels=(3, 7))(torch.tensor([[2, 6], [0, 0]]))[1].exp() * 21
    tensor([1.0000, 1.0000])
    """

    codomain = constraints.unit_interval

    def __init__(self, levels: Levels) -> None:
        super().__init__(levels)
        self.in_ndim = self.out_ndim = len(self._levels_event)

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        self._check_integers(x)
        self._check_digits(self.unit.dtype)
        u = torch.rand(x.shape, dtype=self.unit.dtype, device=x.device, **drawn_with(generator))
        z = discrete.to_bins(x, u, self.levels)
        return z, -self._log_term(z)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("z", z, self._levels_event)
        self._check_digits(z.dtype)
        x, _, inside = discrete.from_bins(z, self.levels)
        return x, torch.where(_everywhere(inside, self.in_ndim), self._log_term(z), -torch.inf)

    def _log_term(self, value: Tensor) -> Tensor:
        batch = value.shape[: value.ndim - self.in_ndim]
        return value.new_zeros(batch, dtype=log_term_dtype(value.dtype)) + self._log_levels(value)


def _everywhere(inside: Tensor, dims: int) -> Tensor:
    """Whether all of the `dims` rightmost dims are inside."""
    return sum_rightmost((~inside).long(), dims) == 0


class DrawnDequantizer(Dequantizer):
    """z is a bijection of u, given x, with u drawn from q(u | x), and x can be told from z.

    So z has the density q(u | x) / |det dz/du|, and minus its logarithm is the log-term.
    """

    def __init__(self, noise: Distribution, levels: Levels, encoder: nn.Module | None = None) -> None:
        super().__init__(levels)
        part = type(self).__name__
        if not isinstance(noise, Distribution):
            raise TypeError(f"{part}: noise is a {type(noise).__name__}, wanted a flowkit Distribution")
        if not (encoder is None or callable(encoder)):
            raise TypeError(f"{part}: encoder is a {type(encoder).__name__}, wanted a network or None")
        if encoder is None and noise.context_ndim is not None:
            raise ValueError(f"{part}: a conditional noise needs an encoder")
        self.net_takes_context = encoder is None or takes_context(part, "encoder", encoder)
        self.encoder, self.noise = encoder, noise
        self.out_ndim = noise.event_ndim
        self.in_ndim = self.out_ndim - len(self._added)
        if self.in_ndim < len(self._levels_event):
            raise ShapeError(
                f"{part}: levels has shape {self._levels_event}, wanted at most the {self.in_ndim} dims of the event"
            )

    @property
    def _added(self) -> tuple[int, ...]:
        """What z has to the right of the shape of x."""
        return ()

    @abstractmethod
    def _code(self, x: Tensor) -> Tensor:
        """x as the encoder sees it."""

    @abstractmethod
    def _place(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor | float]:
        """z, and log|det dz/du|."""

    @abstractmethod
    def _find(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor | float, Tensor]:
        """x, u and log|det dz/du|; and whether x leads to this z."""

    def _encode(self, x: Tensor, context: Tensor | None) -> Tensor | None:
        if self.encoder is None:
            return None
        encoded = self.enter_net(self.encoder, *self.net_arguments(self._code(x), context))
        # Mixed precision ends here, as it does behind a coupling's net: the noise is a density.
        return encoded.to(self.unit.dtype) if encoded.is_floating_point() else encoded

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        self._check_integers(x)
        encoded = self._encode(x, context)
        shape = x.shape[: x.ndim - self.in_ndim] if encoded is None else ()
        u, log_density = self.noise.sample_and_log_prob(shape, encoded, generator=generator)
        wanted = (*x.shape, *self._added)
        if u.shape != wanted:
            raise ShapeError(
                f"{self.path}: x has shape {tuple(x.shape)}, but the noise comes as {tuple(u.shape)}"
                + (f", wanted {wanted}" if self._added else "")
            )
        z, log_slope = self._place(x, u)
        return z, log_slope - log_density.to(log_term_dtype(log_density.dtype))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        event = (None,) * (self.in_ndim - len(self._levels_event)) + self._levels_event
        self.check_event("z", z, event + self._added)
        x, u, log_slope, possible = self._find(z)
        log_density = self.noise.log_prob(u, self._encode(x, context))
        return x, torch.where(possible, log_density.to(log_term_dtype(log_density.dtype)) - log_slope, -torch.inf)


class VariationalDequantizer(DrawnDequantizer):
    """z = (x + u) / levels with u drawn from q(u | x), and back x = floor(levels z).

    Log-term: -log q(u | x) - D log levels, D elements in an event; on the way back its negative for
    u = levels z - x, or minus infinity where z lies outside the unit cube and no x leads there. The log-likelihood
    is a lower bound in expectation, the tighter the better q fits.

    Args:
        noise: any distribution over the unit cube; conditional if there is an encoder.
        levels: the integers run from 0 to levels - 1; 256 for 8-bit images. A tensor or a sequence broadcasts over the
            event, as in `UniformDequantizer`.
        encoder: `encoder(x / levels - 0.5, context)` gives the one tensor on which the noise is conditional. None
            for a noise that does not look at x.

    Shapes:
        x: (*batch, *noise.event_shape), any integer dtype; z: the same, the dtype of the module; l: (*batch).

    Raises:
        DomainError: for x that is not of an integer dtype, or (in eager mode) has values out of range; and for more
            levels than the dtype of z tells apart: 128 in bfloat16 and 1024 in float16, and 256 and 2048.
        ShapeError: for x that does not have the shape of the noise, or levels that do not fit it.
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

    codomain = constraints.unit_interval

    def _code(self, x: Tensor) -> Tensor:
        return x.to(self.unit.dtype) / self.levels - 0.5

    def _place(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor | float]:
        self._check_digits(u.dtype)
        u = u.clamp(max=1 - torch.finfo(u.dtype).eps / 2)  # the largest number below 1
        return discrete.to_bins(x, u, self.levels), -self._log_levels(x)

    def _find(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor | float, Tensor]:
        self._check_digits(z.dtype)
        x, u, inside = discrete.from_bins(z, self.levels)
        # Rounding can leave u at 0, where the density of a noise on the open cube is not defined.
        return x, u.clamp(min=torch.finfo(u.dtype).tiny), -self._log_levels(z), _everywhere(inside, self.in_ndim)


class ArgmaxDequantizer(DrawnDequantizer):
    """z of K numbers for each x, the largest at place x, and back x = argmax z: categories, which have no order.

    With u drawn from q(u | x), z_x = u_x, and z_k = u_x - softplus(u_x - u_k) for the others, which is below z_x.
    Log-term: the sum of log sigmoid(u_x - u_k) over the others, minus log q(u | x); on the way back its negative. The
    log-likelihood is a lower bound in expectation. What follows is a flow over real numbers (*event, K).

    Args:
        noise: any distribution over (*event, K); conditional if there is an encoder. `Normal((*event, K))` will do to
            begin with.
        levels: K, the number of categories; the integers run from 0 to K - 1.
        encoder: `encoder(onehot, context)` gives the one tensor on which the noise is conditional; onehot is
            (*batch, *event, K), of 0 and 1. None for a noise that does not look at x.

    Shapes:
        x: (*batch, *event), any integer dtype; z: (*batch, *event, K), the dtype of the module; l: (*batch).

    Raises:
        DomainError: for x that is not of an integer dtype, or (in eager mode) has values out of range.
        ShapeError: for x whose noise is not (*batch, *event, K).
        ValueError: for fewer than 2 levels, more than float32 tells apart, levels that are not one number, or a
            conditional noise without an encoder.
        TypeError: for a noise that is no distribution, or an encoder that cannot be called.

    Reference:
        Hoogeboom, Nielsen, Jaini, Forré, Welling, "Argmax flows and multinomial diffusion", 2021, section 3,
        https://arxiv.org/abs/2102.05379.

    >>> import torch, flowkit as fk
    >>> dequantize = ArgmaxDequantizer(fk.Normal((4, 3)), levels=3)
    >>> x = torch.tensor([[2, 0, 1, 1]])
    >>> z, term = dequantize(x)
    >>> z.shape, z.argmax(-1), dequantize.inverse(z)[0]
    (torch.Size([1, 4, 3]), tensor([[2, 0, 1, 1]]), tensor([[2, 0, 1, 1]]))
    """

    def __init__(self, noise: Distribution, levels: int, encoder: nn.Module | None = None) -> None:
        super().__init__(noise, _one_number(self, levels), encoder)

    @property
    def _added(self) -> tuple[int, ...]:
        assert isinstance(self.levels, int)
        return (self.levels,)

    def _code(self, x: Tensor) -> Tensor:
        assert isinstance(self.levels, int)
        return (torch.arange(self.levels, device=x.device) == x.long().unsqueeze(-1)).to(self.unit.dtype)

    def _place(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor | float]:
        z, log_slope = discrete.to_argmax(x, u)
        return z, sum_rightmost(log_slope, self.in_ndim)

    def _find(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor | float, Tensor]:
        x, u, log_slope, finite = discrete.from_argmax(z)
        return x, u, sum_rightmost(log_slope, self.in_ndim), _everywhere(finite, self.in_ndim)


class BinaryDequantizer(DrawnDequantizer):
    """z of one number for each binary digit of x, its sign the digit: `ArgmaxDequantizer` for very many categories.

    With u drawn from q(u | x), z_i = softplus(u_i) where digit i of x is 1, and -softplus(u_i) where it is 0; the
    highest digit comes first. Log-term: the sum of log sigmoid(u_i), minus log q(u | x); on the way back its negative,
    or minus infinity where the digits give no x below `levels`: then x is levels - 1. The log-likelihood is a lower
    bound in expectation.

    Args:
        noise: any distribution over (*event, digits), with as many digits as levels - 1 has; conditional if there is an
            encoder.
        levels: the number of categories; the integers run from 0 to levels - 1.
        encoder: `encoder(signs, context)` gives the one tensor on which the noise is conditional; signs is
            (*batch, *event, digits), of -1 and 1. None for a noise that does not look at x.

    Shapes:
        x: (*batch, *event), any integer dtype; z: (*batch, *event, digits), the dtype of the module; l: (*batch).

    Raises:
        DomainError: for x that is not of an integer dtype, or (in eager mode) has values out of range.
        ShapeError: for x whose noise is not (*batch, *event, digits).
        ValueError: for fewer than 2 levels, more than float32 tells apart, levels that are not one number, or a
            conditional noise without an encoder.
        TypeError: for a noise that is no distribution, or an encoder that cannot be called.

    Reference:
        Hoogeboom, Nielsen, Jaini, Forré, Welling, "Argmax flows and multinomial diffusion", 2021, section 3
        (Cartesian products of argmax surjections), https://arxiv.org/abs/2102.05379.

    >>> import torch, flowkit as fk
    >>> dequantize = BinaryDequantizer(fk.Normal((2, 5)), levels=27)
    >>> z, term = dequantize(torch.tensor([[0, 26]]))
    >>> z > 0
    tensor([[[False, False, False, False, False],
             [ True,  True, False,  True, False]]])
    >>> dequantize.inverse(z)[0]
    tensor([[ 0, 26]])
    """

    def __init__(self, noise: Distribution, levels: int, encoder: nn.Module | None = None) -> None:
        super().__init__(noise, _one_number(self, levels), encoder)

    @property
    def _added(self) -> tuple[int, ...]:
        assert isinstance(self.levels, int)
        return ((self.levels - 1).bit_length(),)

    def _code(self, x: Tensor) -> Tensor:
        return (2 * discrete.binary_digits(x, *self._added) - 1).to(self.unit.dtype)

    def _place(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor | float]:
        z, log_slope = discrete.to_signs(self._code(x).to(u.dtype), u)
        return z, sum_rightmost(log_slope, self.out_ndim)

    def _find(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor | float, Tensor]:
        signs, u, log_slope, finite = discrete.from_signs(z)
        x = discrete.from_binary_digits(signs > 0)
        possible = _everywhere(finite, self.out_ndim) & _everywhere(x < self.levels, self.in_ndim)
        return x.clamp(max=self.levels - 1), u, sum_rightmost(log_slope, self.out_ndim), possible


def _one_number(part: Dequantizer, levels: int) -> int:
    count = whole(levels)
    if count is None:
        raise ValueError(f"{type(part).__name__}: levels is {levels!r}, wanted a whole number from 2 to {MOST}")
    return count
