"""The scale."""

from __future__ import annotations

from torch import Tensor

from flowkit.functional.precision import log_term_dtype
from flowkit.transform import Map

__all__ = ["Scale"]


class Scale(Map):
    """z = x exp(s), and back x = z exp(-s).

    Log-term: s. The one parameter is s; 0 is the identity.

    Shapes:
        x, z, l: (*batch); context: (*batch, 1).

    Reference:
        Dinh, Krueger, Bengio, "NICE: Non-linear Independent Components Estimation", 2015, section 3.3,
        https://arxiv.org/abs/1410.8516.

    >>> import torch
    >>> Scale()(torch.tensor([3.0]), torch.tensor([[0.5]]).log())
    (tensor([1.5000]), tensor([-0.6931]))
    """

    num_params = 1

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_scale = self.parameters_for(x, context).squeeze(-1)
        return x * log_scale.exp(), log_scale.to(log_term_dtype(x.dtype))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_scale = self.parameters_for(z, context).squeeze(-1)
        return z * (-log_scale).exp(), -log_scale.to(log_term_dtype(z.dtype))

    def named_params(self, params: Tensor) -> dict[str, Tensor]:
        return {"log_scale": params.squeeze(-1)}
