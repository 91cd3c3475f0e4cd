"""Linear maps over channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkit.errors import ShapeError
from flowkit.functional.precision import full_precision, log_term_dtype
from flowkit.transform import Bijector

__all__ = ["Conv1x1"]


class Conv1x1(Bijector):
    """z[d, i, j] = sum over c of W[d, c] x[c, i, j]: one invertible matrix over the channels, at every pixel.

    Log-term: H W log|det W|, with the determinant and the inverse matrix in float64. Of a pair (2, C, H, W) each half
    has a matrix of its own, and the halves are not mixed. W starts at the identity plus noise of deviation 0.001.

    Args:
        shape: (*views, C, H, W); the weight is (*views, C, C).

    Shapes:
        x, z: (*batch, *shape); l: (*batch).

    Raises:
        ShapeError: if `shape` has fewer than 3 dims, or x does not end in it.

    Reference:
        Kingma, Dhariwal, "Glow", 2018, https://arxiv.org/abs/1807.03039; per half as in Flow++'s published code.

    >>> import torch
    >>> mix = Conv1x1((3, 4, 4))
    >>> x = torch.randn(2, 3, 4, 4)
    >>> torch.allclose(mix.inverse(mix(x)[0])[0], x, atol=1e-5)
    True
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        if len(shape) < 3:
            raise ShapeError(f"Conv1x1: shape is {tuple(shape)}, wanted (*views, C, H, W)")
        self.shape = tuple(shape)
        self.in_ndim = self.out_ndim = len(self.shape)
        *views, channels, height, width = self.shape
        self._pixels = height * width
        self.weight = nn.Parameter(torch.eye(channels) + 0.001 * torch.randn(*views, channels, channels))

    def _log_term(self, value: Tensor) -> Tensor:
        log_det = torch.linalg.slogdet(self.weight.double()).logabsdet.sum() * self._pixels
        return log_det.to(log_term_dtype(value.dtype)).expand(value.shape[: value.ndim - self.in_ndim])

    @staticmethod
    def _mix(weight: Tensor, value: Tensor) -> Tensor:
        # Autocast would round the map itself, not only its parameters.
        with full_precision(value.device.type):
            return (weight.to(value.dtype) @ value.flatten(-2)).unflatten(-1, value.shape[-2:])

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("x", x, self.shape)
        return self._mix(self.weight, x), self._log_term(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("z", z, self.shape)
        return self._mix(torch.linalg.inv(self.weight.double()), z), -self._log_term(z)

    def extra_repr(self) -> str:
        return f"{self.shape}"
