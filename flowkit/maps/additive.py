"""The additive map."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkit.functional.precision import log_term_dtype
from flowkit.transform import Map

__all__ = ["Additive"]


class Additive(Map):
    """z = x + t, and back x = z - t.

    Log-term: 0. The one parameter is t; 0 is the identity.

    Shapes:
        x, z, l: (*batch); context: (*batch, 1).

    Reference:
        Dinh, Krueger, Bengio, "NICE: Non-linear Independent Components Estimation", 2015, section 3.2,
        https://arxiv.org/abs/1410.8516.

    >>> import torch
    >>> Additive()(torch.tensor([3.0]), torch.tensor([[0.5]]))
    (tensor([3.5000]), tensor([0.]))
    """

    num_params = 1

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x + self.parameters_for(x, context).squeeze(-1), _zero(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z - self.parameters_for(z, context).squeeze(-1), _zero(z)

    def named_params(self, params: Tensor) -> dict[str, Tensor]:
        return {"shift": params.squeeze(-1)}


def _zero(value: Tensor) -> Tensor:
    return torch.zeros_like(value, dtype=log_term_dtype(value.dtype))
