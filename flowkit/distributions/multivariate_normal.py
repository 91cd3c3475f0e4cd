"""The normal with a full covariance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkit.arguments import as_shape
from flowkit.distribution import drawn_with
from flowkit.distributions.family import Family, Parameters, as_parameter
from flowkit.errors import DomainError, ShapeError
from flowkit.functional.precision import full_precision

__all__ = ["MultivariateNormal"]


class MultivariateNormal(Family):
    """The normal with a full covariance: log p(x) = -|u|^2/2 - log det L - D log(2 pi)/2, with L u = x - loc.

    L is the lower triangular factor of the covariance L L^T, with a positive diagonal. The covariance is that of the
    last axis; along the axes before it, if the event has more than one, vectors are independent.

    Args:
        event_shape: shape of one event, of at least one dim; an int stands for one dim.
        loc: broadcast to `event_shape`.
        scale_tril: L, lower triangular with a positive diagonal, a D x D matrix or several that broadcast to
            (*event_shape, D); the identity if neither it nor `covariance` is given.
        covariance: in place of `scale_tril`: symmetric and positive definite.
        trainable: whether location and L are trained, from these values on, as `loc`, `log_diagonal` and `lower`: the
            logarithm of L's diagonal, and what is below it, row by row.

    Shapes:
        x: (*batch, *event_shape); log_prob: (*batch).

    Raises:
        ShapeError: if something does not broadcast to its shape, a matrix is none, or the event has no dims.
        DomainError: if `scale_tril` is not lower triangular with a positive diagonal, or `covariance` not symmetric
            and positive definite.
        ValueError: if both are given.

    >>> import torch
    >>> base = MultivariateNormal(2, covariance=torch.tensor([[4.0, 1.0], [1.0, 1.0]]))
    >>> base.log_prob(torch.zeros(3, 2))
    tensor([-2.3872, -2.3872, -2.3872])
    >>> list(MultivariateNormal(2, trainable=True).state_dict())
    ['loc', 'log_diagonal', 'lower']
    """

    positive = ("diagonal",)
    own_ndim = 1
    loc: Tensor
    index: Tensor

    def __init__(
        self,
        event_shape: int | Sequence[int],
        loc: float | Tensor = 0.0,
        scale_tril: Any = None,
        covariance: Any = None,
        trainable: bool = False,
    ) -> None:
        event = as_shape(event_shape, "MultivariateNormal: event_shape")
        if not event:
            raise ShapeError("MultivariateNormal: event_shape is (), wanted at least one dim")
        if scale_tril is not None and covariance is not None:
            raise ValueError("MultivariateNormal: give scale_tril or covariance, not both")
        size = event[-1]
        matrices = torch.Size((*event, size))
        if covariance is not None:
            factor = _factor(_as_matrix("covariance", covariance, matrices))
        else:
            factor = _as_matrix("scale_tril", torch.eye(size) if scale_tril is None else scale_tril, matrices)
        factor = factor.expand(matrices)
        if factor.device.type != "meta" and not torch.equal(factor, factor.tril()):
            raise DomainError("MultivariateNormal: scale_tril has values above its diagonal, wanted lower triangular")
        rows, columns = torch.tril_indices(size, size, -1)
        super().__init__(
            event, trainable, loc=loc, diagonal=factor.diagonal(dim1=-2, dim2=-1), lower=factor[..., rows, columns]
        )
        # Where each entry of L stands in (0, diagonal, lower).
        index = torch.zeros(size, size, dtype=torch.long)
        index.fill_diagonal_(1)
        index = index * (1 + torch.arange(size))[:, None]
        index[rows, columns] = 1 + size + torch.arange(len(rows))
        self.register_buffer("index", index, persistent=False)

    @property
    def scale_tril(self) -> Tensor:
        """L: (*event_shape, D)."""
        parameters = self.own_parameters()
        return self._triangle(parameters)

    def shape_of(self, name: str) -> torch.Size:
        *rows, size = self.event_shape
        return torch.Size((*rows, size * (size - 1) // 2)) if name == "lower" else self.event_shape

    @property
    def params_shape(self) -> torch.Size:
        """For each vector the location, the logarithm of the diagonal and what is below it, row by row."""
        return torch.Size((*self.event_shape[:-1], sum(self.shape_of(name)[-1] for name in self._names)))

    def split(self, raw: Tensor) -> Parameters:
        parts = raw.split([self.shape_of(name)[-1] for name in self._names], dim=-1)
        return dict(zip(self._names, parts, strict=True))

    def _triangle(self, parameters: Parameters) -> Tensor:
        diagonal, lower = parameters["diagonal"], parameters["lower"]
        zero = torch.zeros_like(diagonal[..., :1])
        return torch.cat([zero, diagonal, lower], dim=-1)[..., self.index]

    def pieces(self, x: Tensor, parameters: Parameters) -> Tensor:
        factor, centred = self._triangle(parameters), x - parameters["loc"]
        # Infinitely far from the mean, where the solution would be infinity less infinity; a NaN stays one.
        far = centred.isinf().any(-1) & ~centred.isnan().any(-1)
        centred = torch.where(far.unsqueeze(-1), 0.0, centred)
        dims = factor.ndim - 1
        if dims == self.event_ndim:
            u = self._solve_shared(factor, centred)
        else:
            u = torch.linalg.solve_triangular(factor, centred.unsqueeze(-1), upper=False).squeeze(-1)
        log_det = parameters["diagonal"].log().sum(-1)
        return torch.where(far, -torch.inf, -0.5 * (u * u + math.log(2 * math.pi)).sum(-1)) - log_det

    def _solve_shared(self, factor: Tensor, centred: Tensor) -> Tensor:
        """L^-1 of vectors under one L for the whole batch: all of them are columns of one right-hand side."""
        dims = factor.ndim - 1
        batch = centred.shape[: centred.ndim - dims]
        columns = centred.reshape(math.prod(batch), *centred.shape[centred.ndim - dims :]).movedim(0, -1)
        return torch.linalg.solve_triangular(factor, columns, upper=False).movedim(-1, 0).reshape(centred.shape)

    def draw(self, shape: torch.Size, parameters: Parameters, generator: torch.Generator | None) -> Tensor:
        factor, loc = self._triangle(parameters), parameters["loc"]
        u = torch.randn(shape, dtype=loc.dtype, device=loc.device, **drawn_with(generator))
        with full_precision(loc.device.type):
            moved = u @ factor.mT if factor.ndim == 2 else (u.unsqueeze(-2) @ factor.mT).squeeze(-2)
        return loc + moved


def _as_matrix(name: str, value: Any, shape: torch.Size) -> Tensor:
    """`value` as a floating tensor of square matrices that broadcasts to `shape`; numbers and rows are no matrices."""
    tensor = as_parameter("MultivariateNormal", name, value, shape)
    if tensor.shape[-2:] != shape[-2:]:
        wanted = f"{shape[-1]} x {shape[-1]} matrices that broadcast to {tuple(shape)}"
        raise ShapeError(f"MultivariateNormal: {name} has shape {tuple(tensor.shape)}, wanted {wanted}")
    return tensor


def _factor(covariance: Tensor) -> Tensor:
    """The Cholesky factor, computed in float64."""
    if covariance.device.type == "meta":
        return covariance.tril()
    symmetric = torch.allclose(covariance, covariance.mT, rtol=1e-5, atol=0.0)
    factor, failed = torch.linalg.cholesky_ex(covariance.double())
    if not symmetric or failed.any():
        raise DomainError("MultivariateNormal: covariance is not symmetric and positive definite")
    return factor.to(covariance.dtype)
