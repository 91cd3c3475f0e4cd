"""What the CDFs of all mixtures share: the check of their arguments, and where their inverse lies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkit.errors import DomainError, ShapeError

__all__ = ["batch_first", "check_mixture", "largest", "quantile_bracket"]


def check_mixture(name: str, x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> None:
    """Refuse parameters that are not (*x.shape, K) with K >= 1, and dtypes that are unlike or not float32 or float64.

    Raises:
        ShapeError, DomainError: naming the argument.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise DomainError(f"{name}: got dtype {x.dtype}, wanted torch.float32 or torch.float64")
    components = logits.shape[-1] if logits.ndim else 0
    if components == 0 or logits.shape[:-1] != x.shape:
        raise ShapeError(
            f"logits: got shape {tuple(logits.shape)}, wanted {(*x.shape, 'K')} with K >= 1,"
            f" since {name} has shape {tuple(x.shape)}"
        )
    for parameter_name, parameter in (("logits", logits), ("means", means), ("log_scales", log_scales)):
        if parameter.shape != logits.shape:
            raise ShapeError(
                f"{parameter_name}: got shape {tuple(parameter.shape)}, wanted {tuple(logits.shape)}, as logits has"
            )
        if parameter.dtype != x.dtype:
            raise DomainError(f"{parameter_name}: got dtype {parameter.dtype}, wanted {x.dtype}, as {name} has")


def batch_first(info: Any, in_dims: tuple[int | None, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs of a vmapped Function with the mapped dimension in front, in all of them."""
    return tuple(
        t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(inputs, in_dims, strict=True)
    )


def largest(dtype: torch.dtype) -> float:
    """What z and the bracket saturate at: sums of a few of them are still finite."""
    return torch.finfo(dtype).max / 16


def quantile_bracket(
    y: Tensor, pi: Tensor, means: Tensor, scales: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ends of the bracket, the mean of the components' quantiles as a start, and the smallest scale."""
    limit = largest(y.dtype)
    quantiles = (means + scales * y).clamp(-limit, limit)
    lower, upper = quantiles.amin(dim), quantiles.amax(dim)
    start = (pi * quantiles).sum(dim).clamp(lower, upper)
    return lower, upper, start, scales.amin(dim)
