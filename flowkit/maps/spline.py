"""The monotone rational-quadratic spline: the map of neural spline flows."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import constraints

from flowkit.arguments import check_kind, count, finite
from flowkit.functional.precision import log_term_dtype
from flowkit.functional.spline import rational_quadratic_spline, rational_quadratic_spline_inverse, wrap
from flowkit.transform import Map

__all__ = ["RationalQuadratic"]


class RationalQuadratic(Map):
    """z = f(x), f a monotone rational-quadratic spline of an interval onto itself; back in closed form.

    Log-term: log f'(x). The parameters of an element are, in this order, K widths and K heights of the bins and the
    slopes at the knots: K - 1 for linear tails, K for circular ones, K + 1 for bounded ones; and the shift, if there is
    one. They are real numbers, of any size, and all 0 is the identity; `flowkit.functional.rational_quadratic_spline`
    says how they are read.

    Args:
        bins: K, at least 2.
        bound: the interval is [-bound, bound], or these two ends if they are two numbers.
        tails: "linear", the identity outside the interval; "circular", a map of the circle whose circumference the
            interval is, which holds its seam fixed; "bounded", a map of the interval with free slopes at its ends.
            On the circle a conditioner should read cosines and sines, or what it gives jumps at the seam.
        shift: of circular tails: whether the circle is turned by a parameter after the spline, z = f(x) + shift, moved
            into the interval by whole turns, so that no point of it is held fixed.
        min_width, min_height: the least a bin takes, a share of the interval.
        min_slope: the least slope at a knot. The minima bound how ill-conditioned the inverse can become.

    Shapes:
        x, z, l: (*batch), float32 or float64; context: (*batch, num_params).

    Raises:
        ValueError: for fewer than two bins, other tails, an empty interval, minima out of range, or a shift of tails
            that are not circular.
        DomainError: for x or z of another dtype.
        TypeError: for a minimum, a bound or a shift that is no number.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios, "Neural Spline Flows", 2019, https://arxiv.org/abs/1906.04032; on the
        circle Rezende et al., "Normalizing Flows on Tori and Spheres", 2020, https://arxiv.org/abs/2002.02428.

    >>> import torch
    >>> spline = RationalQuadratic(bins=4)
    >>> x, params = torch.tensor([-2.0, 0.5, 30.0]), torch.linspace(-1, 1, 33).reshape(3, 11)
    >>> z, log_det = spline(x, params)
    >>> back, minus = spline.inverse(z, params)
    >>> torch.allclose(back, x, atol=1e-5), torch.allclose(minus, -log_det, atol=1e-5), z[2], log_det[2]
    (True, True, tensor(30.), tensor(0.))
    """

    def __init__(
        self,
        bins: int,
        bound: float | tuple[float, float] = 3.0,
        tails: str = "linear",
        *,
        shift: bool = False,
        min_width: float = 1e-3,
        min_height: float = 1e-3,
        min_slope: float = 1e-3,
    ) -> None:
        super().__init__()
        bins = count("RationalQuadratic", "bins", bins, least=2)
        slopes = {"linear": bins - 1, "circular": bins, "bounded": bins + 1}
        if not isinstance(tails, str) or tails not in slopes:
            raise ValueError(f"RationalQuadratic: tails is {tails!r}, wanted one of {', '.join(slopes)}")
        ends = bound if isinstance(bound, tuple) else (bound,)
        if len(ends) > 2 or not ends:
            raise ValueError(f"RationalQuadratic: bound is {bound}, wanted one number, or two ends")
        upper = finite("RationalQuadratic", "bound", ends[-1])
        lower = finite("RationalQuadratic", "bound", ends[0]) if len(ends) == 2 else -upper
        if not lower < upper:
            raise ValueError(f"RationalQuadratic: bound is {bound}, wanted above 0, or two ends in order")
        for name, minimum, limit in (
            ("min_width", min_width, 1 / bins),
            ("min_height", min_height, 1 / bins),
            ("min_slope", min_slope, 1),
        ):
            if not 0 < finite("RationalQuadratic", name, minimum) < limit:
                raise ValueError(f"RationalQuadratic: {name} is {minimum}, wanted above 0 and below {limit}")
        self.bins, self.lower, self.upper, self.tails = bins, lower, upper, tails
        check_kind("RationalQuadratic", "shift", shift, bool, "True or False")
        if shift and tails != "circular":
            raise ValueError(f"RationalQuadratic: shift is True for {tails} tails, wanted circular ones")
        self.min_width, self.min_height, self.min_slope = min_width, min_height, min_slope
        self.shift = shift
        self._sizes = [bins, bins, slopes[tails], int(shift)]
        self.num_params = sum(self._sizes)
        self.domain = self.codomain = (
            constraints.real if tails == "linear" else constraints.interval(self.lower, self.upper)
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.refuse_half("x", x)
        params, shift = self._split(x, context)
        z, log_slope = rational_quadratic_spline(x, *params, **self._options)
        return self._turned(z, shift), log_slope.to(log_term_dtype(x.dtype))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.refuse_half("z", z)
        params, shift = self._split(z, context)
        x, log_slope = rational_quadratic_spline_inverse(self._turned(z, -shift), *params, **self._options)
        return x, log_slope.to(log_term_dtype(z.dtype))

    def _split(self, value: Tensor, context: Tensor | None) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        widths, heights, slopes, shift = self.parameters_for(value, context).split(self._sizes, dim=-1)
        return (widths, heights, slopes), shift

    def _turned(self, value: Tensor, shift: Tensor) -> Tensor:
        if not self.shift:
            return value
        # Whole turns come off first: added to many of them, value would be rounded away. What is left is exact, and in
        # float32 so many circumferences would not be.
        within_turn = shift.squeeze(-1).double().fmod(self.upper - self.lower).to(value.dtype)
        return wrap(value + within_turn, self.lower, self.upper)[0]

    def named_params(self, params: Tensor) -> dict[str, Tensor]:
        parts = zip(("widths", "heights", "slopes", "shift"), params.split(self._sizes, dim=-1), strict=True)
        return {name: part for name, part in parts if part.shape[-1]}

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "lower": self.lower,
            "upper": self.upper,
            "tails": self.tails,
            "min_width": self.min_width,
            "min_height": self.min_height,
            "min_slope": self.min_slope,
        }

    def extra_repr(self) -> str:
        shift = ", shift=True" if self.shift else ""
        return f"bins={self.bins}, lower={self.lower}, upper={self.upper}, tails={self.tails!r}{shift}"
