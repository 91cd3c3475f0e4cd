"""The affine map."""

from __future__ import annotations

from torch import Tensor

from flowkit.arguments import finite
from flowkit.functional.precision import log_term_dtype
from flowkit.transform import Map

__all__ = ["Affine"]


class Affine(Map):
    """z = x exp(s) + t, and back x = (z - t) exp(-s).

    Log-term: s. The two parameters are (r, t), with s = r, or s = bound tanh(r / bound), which keeps the scale
    within exp(-bound) and exp(bound); 1 is Flow++'s choice.

    Args:
        log_scale_bound: the bound on |s|, above 0; None for none.

    Shapes:
        x, z, l: (*batch); context: (*batch, 2).

    Raises:
        ValueError: if the bound is not above 0.

    Reference:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, https://arxiv.org/abs/1605.08803.

    >>> import torch
    >>> z, log_det = Affine()(torch.tensor([3.0]), torch.tensor([[0.0, 1.0]]))
    >>> z, log_det
    (tensor([4.]), tensor([0.]))
    """

    num_params = 2

    def __init__(self, log_scale_bound: float | None = None) -> None:
        super().__init__()
        if log_scale_bound is not None and not finite("Affine", "log_scale_bound", log_scale_bound) > 0:
            raise ValueError(f"Affine: log_scale_bound is {log_scale_bound}, wanted above 0 or None")
        self.log_scale_bound = log_scale_bound

    def _log_scale(self, raw: Tensor) -> Tensor:
        bound = self.log_scale_bound
        return raw if bound is None else bound * (raw / bound).tanh_()  # in place: of what nobody else reads

    def _split(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        # From the front: their gradients are then two blocks, and not interleaved, which convolutions would undo.
        raw, shift = self.parameters_for(value, context).movedim(-1, 0).unbind(0)
        return raw, shift

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raw, shift = self._split(x, context)
        log_scale = self._log_scale(raw)
        return x * log_scale.exp() + shift, log_scale.to(log_term_dtype(x.dtype))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raw, shift = self._split(z, context)
        log_scale = self._log_scale(raw)
        return (z - shift) * (-log_scale).exp(), -log_scale.to(log_term_dtype(z.dtype))

    def named_params(self, params: Tensor) -> dict[str, Tensor]:
        raw, shift = params.unbind(-1)
        return {"log_scale": self._log_scale(raw), "shift": shift}

    def extra_repr(self) -> str:
        return "" if self.log_scale_bound is None else f"log_scale_bound={self.log_scale_bound}"
