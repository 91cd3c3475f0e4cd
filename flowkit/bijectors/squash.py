"""Between the real line and an interval."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from flowkit.arguments import finite
from flowkit.functional.precision import log_term_dtype
from flowkit.transform import Bijector

__all__ = ["Logit", "Sigmoid", "Tanh"]


class Logit(Bijector):
    """z = log p - log(1 - p) with p = margin + (1 - 2 margin) x, and back x = (sigmoid(z) - margin) / (1 - 2 margin).

    Log-term: log(1 - 2 margin) - log p - log(1 - p). A margin keeps z of x in [0, 1] finite; the inverse then also
    gives values that lie outside [0, 1] by at most margin / (1 - 2 margin).

    Args:
        margin: from 0 to below 1/2; RealNVP's alpha. 0.05 is Flow++'s.

    Shapes:
        x, z, l: (*batch); elementwise.

    Raises:
        ValueError: if the margin is out of range.

    Reference:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, section 4.1,
        https://arxiv.org/abs/1605.08803.

    >>> import torch
    >>> z, log_det = Logit(margin=0.05)(torch.tensor([0.0, 0.5, 1.0]))
    >>> z
    tensor([-2.9444,  0.0000,  2.9444])
    """

    in_ndim = 0
    out_ndim = 0

    def __init__(self, margin: float = 0.0) -> None:
        super().__init__()
        if not 0 <= finite("Logit", "margin", margin) < 0.5:
            raise ValueError(f"Logit: margin is {margin}, wanted at least 0 and below 0.5")
        self.margin = margin
        self._width = 1 - 2 * margin
        overhang = margin / self._width
        self.domain = constraints.interval(-overhang, 1 + overhang) if margin else constraints.unit_interval

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # 1 - p from 1 - x, not from p: near 1 the difference would lose its digits.
        log_p = (self.margin + self._width * x).log()
        log_rest = (self.margin + self._width * (1 - x)).log()
        return log_p - log_rest, (math.log(self._width) - log_p - log_rest).to(log_term_dtype(x.dtype))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_slope = F.logsigmoid(z) + F.logsigmoid(-z) - math.log(self._width)
        return (torch.sigmoid(z) - self.margin) / self._width, log_slope.to(log_term_dtype(z.dtype))

    def extra_repr(self) -> str:
        return f"margin={self.margin}"


class Sigmoid(Bijector):
    """z = 1 / (1 + exp(-x)), and back x = log z - log(1 - z).

    Log-term: log sigmoid(x) + log sigmoid(-x).

    Shapes:
        x, z, l: (*batch); elementwise.

    >>> import torch
    >>> Sigmoid()(torch.tensor([0.0]))[0]
    tensor([0.5000])
    """

    in_ndim = 0
    out_ndim = 0
    codomain = constraints.unit_interval

    def __init__(self) -> None:
        super().__init__()
        self.logit = Logit()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.logit.inverse(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.logit(z)


class Tanh(Bijector):
    """z = tanh(x), and back x = (log(1 + z) - log(1 - z)) / 2.

    Log-term: log(1 - z^2) = 2 log 2 + log sigmoid(2x) + log sigmoid(-2x), of x and not of z: it keeps its digits where
    z has rounded to 1. There, from |x| = 9 in float32 and 19 in float64, x cannot come back.

    Shapes:
        x, z, l: (*batch); elementwise.

    >>> import torch
    >>> Tanh()(torch.tensor([0.0, 30.0]))
    (tensor([0., 1.]), tensor([  0.0000, -58.6137]))
    """

    in_ndim = 0
    out_ndim = 0
    codomain = constraints.interval(-1.0, 1.0)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        wide = x.to(log_term_dtype(x.dtype))
        return torch.tanh(x), 2 * math.log(2) + F.logsigmoid(2 * wide) + F.logsigmoid(-2 * wide)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        above, below = z.log1p(), (-z).log1p()
        return (above - below) / 2, -(above + below).to(log_term_dtype(z.dtype))
