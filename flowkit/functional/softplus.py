"""Softplus with all its digits, and the logarithm that its inverse needs."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["log1mexp", "softplus"]


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), as -log sigmoid(-x): torch's own is x from 20 on, whatever the dtype."""
    return -F.logsigmoid(-x)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) for x > 0: by expm1 below log 2 and by log1p above, each where it keeps its digits.

    The inverse of softplus is x + log1mexp(x), and the logarithm of softplus' slope at that place is log1mexp(x).

    Reference:
        Mächler, "Accurately computing log(1 - exp(-|a|))", 2012.
    """
    split = math.log(2)
    # The clamps keep the gradient of the form that is not taken finite.
    near, far = x.clamp(max=split), x.clamp(min=split)
    return torch.where(x < split, (-torch.expm1(-near)).log(), torch.log1p(-(-far).exp()))
