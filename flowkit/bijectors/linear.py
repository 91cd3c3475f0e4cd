"""Linear maps: of vectors, and of the channels at every pixel."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.linalg import solve_triangular

from flowkit.arguments import as_shape, whole
from flowkit.errors import ShapeError
from flowkit.functional.precision import full_precision, log_term_dtype
from flowkit.transform import Bijector

__all__ = ["Conv1x1", "HouseholderLinear", "LUConv1x1", "LULinear", "MatrixExpLinear", "QRLinear"]


# ---------------------------------------------------------------------------------------------------------------------
# Matrices that are invertible by construction


class Matrix(nn.Module, ABC):
    """An invertible matrix W as a product, a solution and a log-determinant; whoever multiplies need not know its form.

    Columns are (*views, size, N), and W is (*views, size, size); its parameters take part in the dtype of the columns.
    """

    @abstractmethod
    def forward(self, columns: Tensor) -> Tensor:
        """W columns."""

    @abstractmethod
    def solve(self, columns: Tensor) -> Tensor:
        """W^-1 columns."""

    @abstractmethod
    def log_det(self, dtype: torch.dtype) -> Tensor:
        """log|det W|: (*views)."""


class Triangles(Matrix):
    """W = F U, with U upper triangular: what LU and QR share.

    One square parameter holds all: what makes F below the diagonal, log diag U on it, and the rest of U above.
    """

    def __init__(self, size: int, views: Sequence[int] = ()) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.zeros(*views, size, size))

    def _upper(self, dtype: torch.dtype) -> Tensor:
        factors = self.factors.to(dtype)
        return factors.triu(1) + torch.diag_embed(factors.diagonal(dim1=-2, dim2=-1).exp())

    def _unit_lower(self, dtype: torch.dtype) -> Tensor:
        factors = self.factors.to(dtype)
        return factors.tril(-1) + torch.eye(factors.shape[-1], dtype=dtype, device=factors.device)

    def log_det(self, dtype: torch.dtype) -> Tensor:
        return self.factors.to(dtype).diagonal(dim1=-2, dim2=-1).sum(-1)


class LU(Triangles):
    """W = L U, with ones on the diagonal of L."""

    def forward(self, columns: Tensor) -> Tensor:
        return self._unit_lower(columns.dtype) @ (self._upper(columns.dtype) @ columns)

    def solve(self, columns: Tensor) -> Tensor:
        half = solve_triangular(self._unit_lower(columns.dtype), columns, upper=False, unitriangular=True)
        return solve_triangular(self._upper(columns.dtype), half, upper=True)


class QR(Triangles):
    """W = -Q R, with Q a product of reflections whose vectors are the columns of L, as LAPACK keeps them.

    The sign makes W the identity where all is 0: the product of the reflections along all axes is -1.
    """

    def forward(self, columns: Tensor) -> Tensor:
        return -reflected(self._unit_lower(columns.dtype).mT, self._upper(columns.dtype) @ columns)

    def solve(self, columns: Tensor) -> Tensor:
        half = -reflected(self._unit_lower(columns.dtype).mT, columns, transposed=True)
        return solve_triangular(self._upper(columns.dtype), half, upper=True)


class Reflections(Matrix):
    """W = H_1 ... H_K, orthogonal; neighbours start equal and undo one another."""

    def __init__(self, size: int, count: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(count // 2, size).repeat_interleave(2, dim=0))

    def forward(self, columns: Tensor) -> Tensor:
        return reflected(self.vectors.to(columns.dtype), columns)

    def solve(self, columns: Tensor) -> Tensor:
        return reflected(self.vectors.to(columns.dtype), columns, transposed=True)

    def log_det(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros((), dtype=dtype, device=self.vectors.device)


class Exponential(Matrix):
    """W = exp(A) = 1 + A + A^2 / 2 + ..."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.zeros(size, size))

    def forward(self, columns: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(self.exponent.to(columns.dtype)) @ columns

    def solve(self, columns: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(-self.exponent.to(columns.dtype)) @ columns

    def log_det(self, dtype: torch.dtype) -> Tensor:
        return self.exponent.to(dtype).diagonal().sum()


def reflected(vectors: Tensor, columns: Tensor, *, transposed: bool = False) -> Tensor:
    """H_1 ... H_K columns, or its transpose, with H_k = 1 - 2 v_k v_k^T / |v_k|^2 for the rows v_k of `vectors`.

    All at once: with the unit vectors as columns of V, the product is 1 - V T V^T, where T^-1 has 1/2 on its diagonal
    and V^T V above it (Joffrain et al., "Accumulating Householder transformations, revisited", 2006).
    """
    unit = vectors / vectors.norm(dim=-1, keepdim=True)
    half = 0.5 * torch.eye(unit.shape[-2], dtype=unit.dtype, device=unit.device)
    middle = (unit @ unit.mT).triu(1) + half
    middle = middle.mT if transposed else middle
    return columns - unit.mT @ solve_triangular(middle, unit @ columns, upper=not transposed)


# ---------------------------------------------------------------------------------------------------------------------
# Of vectors


class Linear(Bijector):
    """z = W x + b over a vector, for any matrix: what all of them share."""

    in_ndim = 1
    out_ndim = 1
    bias: nn.Parameter | None

    def __init__(self, matrix: Matrix, features: int, bias: bool) -> None:
        super().__init__()
        self.matrix, self.features = matrix, features
        self.register_parameter("bias", nn.Parameter(torch.zeros(features)) if bias else None)

    def _log_term(self, value: Tensor) -> Tensor:
        return self.matrix.log_det(log_term_dtype(value.dtype)).expand(value.shape[:-1])

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("x", x, (self.features,))
        # Autocast would round the map itself, not only its parameters; solvers know no bfloat16.
        with full_precision(x.device.type):
            z = self.matrix(_columns(x)).mT.reshape(x.shape)
        return (z if self.bias is None else z + self.bias).to(x.dtype), self._log_term(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("z", z, (self.features,))
        with full_precision(z.device.type):
            x = self.matrix.solve(_columns(z if self.bias is None else z - self.bias)).mT.reshape(z.shape)
        return x.to(z.dtype), -self._log_term(z)

    def extra_repr(self) -> str:
        return f"{self.features}, bias={self.bias is not None}"


def _columns(value: Tensor) -> Tensor:
    """(*batch, features) as (features, N), in float32 or better."""
    return value.to(log_term_dtype(value.dtype)).reshape(math.prod(value.shape[:-1]), value.shape[-1]).mT


def _checked_features(part: str, features: int) -> int:
    count = whole(features)
    if count is None or count < 1:
        raise ValueError(f"{part}: features is {features!r}, wanted a whole number of at least 1")
    return count


class LULinear(Linear):
    """z = L U x + b, with L lower triangular, its diagonal 1, and U upper triangular, its diagonal exp(d) > 0.

    Log-term: the sum of d. The inverse solves two triangular systems; either way costs features^2 for each x. It starts
    as the identity. Without a pivot it reaches the matrices whose leading minors are positive, no exchange of two
    features among them: `Permute` before it does that, and `QRLinear` reaches more.

    Args:
        features: size of the vector.
        bias: whether there is a b.

    Shapes:
        x, z: (*batch, features); l: (*batch).

    Raises:
        ShapeError: if x does not end in `features`.
        ValueError: for fewer than 1 feature.

    Reference:
        Oliva et al., "Transformation autoregressive networks", 2018, https://arxiv.org/abs/1801.09819.

    >>> import torch
    >>> mix = LULinear(3)
    >>> x = torch.randn(2, 3)
    >>> torch.allclose(mix.inverse(mix(x)[0])[0], x, atol=1e-5)
    True
    """

    def __init__(self, features: int, bias: bool = True) -> None:
        features = _checked_features("LULinear", features)
        super().__init__(LU(features), features, bias)


class QRLinear(Linear):
    """z = -Q R x + b, with Q a product of reflections and R upper triangular, its diagonal exp(d) > 0.

    Log-term: the sum of d. The inverse is R^-1 Q^T, by a triangular system. It starts as the identity, and comes as
    near as one likes to every matrix with a positive determinant. Reflection k runs along e_k + sum over i > k of
    v_ik e_i, the form in which LAPACK keeps them: features^2 parameters in all, as many as a matrix has.

    Args:
        features: size of the vector.
        bias: whether there is a b.

    Shapes:
        x, z: (*batch, features); l: (*batch).

    Raises:
        ShapeError: if x does not end in `features`.
        ValueError: for fewer than 1 feature.

    Reference:
        Hoogeboom, van den Berg, Welling, "Emerging convolutions for generative normalizing flows", 2019, section 4,
        https://arxiv.org/abs/1901.11137.

    >>> import torch
    >>> mix = QRLinear(3)
    >>> x = torch.randn(2, 3)
    >>> torch.allclose(mix.inverse(mix(x)[0])[0], x, atol=1e-5)
    True
    """

    def __init__(self, features: int, bias: bool = True) -> None:
        features = _checked_features("QRLinear", features)
        super().__init__(QR(features), features, bias)


class HouseholderLinear(Linear):
    """z = H_1 ... H_K x + b, with the reflections H_k = 1 - 2 v_k v_k^T / |v_k|^2; back by the transpose.

    Log-term: 0, the product is a rotation. It starts as the identity: the vectors are drawn, two and two the same, and
    an even number of reflections can undo itself. The default number reaches every rotation.

    Args:
        features: size of the vector.
        reflections: K, even; None for `features`, or one less if that is odd, and at least 2.
        bias: whether there is a b.

    Shapes:
        x, z: (*batch, features); l: (*batch).

    Raises:
        ShapeError: if x does not end in `features`.
        ValueError: for fewer than 1 feature, or a number of reflections that is odd or below 2.

    Reference:
        Tomczak, Welling, "Improving variational auto-encoders using Householder flow", 2016,
        https://arxiv.org/abs/1611.09630.

    >>> import torch
    >>> rotate = HouseholderLinear(4, reflections=2, bias=False)
    >>> x = torch.randn(5, 4)
    >>> torch.allclose(rotate(x)[0].norm(dim=-1), x.norm(dim=-1))
    True
    """

    def __init__(self, features: int, reflections: int | None = None, bias: bool = True) -> None:
        features = _checked_features("HouseholderLinear", features)
        count = max(features - features % 2, 2) if reflections is None else whole(reflections)
        if count is None or count < 2 or count % 2:
            raise ValueError(
                f"HouseholderLinear: reflections is {reflections!r}, wanted an even number of at least 2: "
                "an odd one cannot start as the identity"
            )
        super().__init__(Reflections(features, count), features, bias)

    def extra_repr(self) -> str:
        return f"{self.features}, reflections={len(self.matrix.vectors)}, bias={self.bias is not None}"  # type: ignore[arg-type]


class MatrixExpLinear(Linear):
    """z = exp(A) x + b, with the exponential of a matrix, and back x = exp(-A) (z - b).

    Log-term: the trace of A. It starts as the identity, at A = 0. It costs about features^3 a call, however small the
    batch.

    Args:
        features: size of the vector.
        bias: whether there is a b.

    Shapes:
        x, z: (*batch, features); l: (*batch).

    Raises:
        ShapeError: if x does not end in `features`.
        ValueError: for fewer than 1 feature.

    Reference:
        Xiao, Liu, "Generative flows with matrix exponential", 2020, https://arxiv.org/abs/2007.09651.

    >>> import torch
    >>> mix = MatrixExpLinear(3)
    >>> x = torch.randn(2, 3)
    >>> torch.allclose(mix.inverse(mix(x)[0])[0], x, atol=1e-5)
    True
    """

    def __init__(self, features: int, bias: bool = True) -> None:
        features = _checked_features("MatrixExpLinear", features)
        super().__init__(Exponential(features), features, bias)


# ---------------------------------------------------------------------------------------------------------------------
# Of channels


class PixelLinear(Bijector):
    """One matrix over the channels at every pixel, one for each view: what the 1x1 convolutions share."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(as_shape(shape, f"{type(self).__name__}: shape"))
        if len(self.shape) < 3:
            raise ShapeError(f"{type(self).__name__}: shape is {self.shape}, wanted (*views, C, H, W)")
        self.in_ndim = self.out_ndim = len(self.shape)
        *self._views, self._channels, height, width = self.shape
        self._pixels = height * width

    @abstractmethod
    def _matrix(self) -> Tensor:
        """(*views, C, C)."""

    @abstractmethod
    def _inverse_matrix(self) -> Tensor:
        """(*views, C, C), in float64."""

    @abstractmethod
    def _log_det(self) -> Tensor:
        """log|det| of the matrix, in float64: (*views)."""

    def _log_term(self, value: Tensor) -> Tensor:
        log_det = self._log_det().sum() * self._pixels
        return log_det.to(log_term_dtype(value.dtype)).expand(value.shape[: value.ndim - self.in_ndim])

    def _mix(self, weight: Tensor, value: Tensor) -> Tensor:
        flat = value.flatten(-2)
        # Autocast would round the map itself, not only its parameters.
        with full_precision(value.device.type):
            weight = weight.to(value.dtype)
            if self._channels <= self._pixels:
                mixed = weight.expand(*flat.shape[:-2], *weight.shape[-2:]) @ flat
            else:
                # One product for the whole batch: the weight has a gradient for each, which would outgrow the values.
                batch = flat.shape[: flat.ndim - self.in_ndim + 1]
                columns = flat.reshape(math.prod(batch), *flat.shape[len(batch) :]).movedim(0, -2)
                mixed = (weight @ columns.flatten(-2)).unflatten(-1, columns.shape[-2:]).movedim(-2, 0)
        return mixed.reshape(value.shape)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("x", x, self.shape)
        return self._mix(self._matrix(), x), self._log_term(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("z", z, self.shape)
        return self._mix(self._inverse_matrix(), z), -self._log_term(z)

    def extra_repr(self) -> str:
        return f"{self.shape}"


class Conv1x1(PixelLinear):
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
        super().__init__(shape)
        size = self._channels
        self.weight = nn.Parameter(torch.eye(size) + 0.001 * torch.randn(*self._views, size, size))

    def _matrix(self) -> Tensor:
        return self.weight

    def _inverse_matrix(self) -> Tensor:
        return torch.linalg.inv(self.weight.double())

    def _log_det(self) -> Tensor:
        return torch.linalg.slogdet(self.weight.double()).logabsdet


class LUConv1x1(PixelLinear):
    """z[d, i, j] = sum over c of (L U)[d, c] x[c, i, j]: a 1x1 convolution that is invertible by construction.

    L is lower triangular, its diagonal 1; U is upper triangular, its diagonal exp(d) > 0. Log-term: H W times the sum
    of d. It starts as the identity. As for `LULinear` there is no pivot: `Permute` or `Flip` along the channels before
    it exchanges them.

    Args:
        shape: (*views, C, H, W); each view has matrices of its own, as in `Conv1x1`.

    Shapes:
        x, z: (*batch, *shape); l: (*batch).

    Raises:
        ShapeError: if `shape` has fewer than 3 dims, or x does not end in it.

    Reference:
        Kingma, Dhariwal, "Glow", 2018, section 3.2, https://arxiv.org/abs/1807.03039.

    >>> import torch
    >>> mix = LUConv1x1((3, 4, 4))
    >>> x = torch.randn(2, 3, 4, 4)
    >>> torch.allclose(mix.inverse(mix(x)[0])[0], x, atol=1e-5)
    True
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.matrix = LU(self._channels, self._views)

    def _identity(self) -> Tensor:
        return torch.eye(self._channels, dtype=torch.float64, device=self.matrix.factors.device)

    def _matrix(self) -> Tensor:
        with full_precision(self.matrix.factors.device.type):
            return self.matrix(self._identity())

    def _inverse_matrix(self) -> Tensor:
        return self.matrix.solve(self._identity())

    def _log_det(self) -> Tensor:
        return self.matrix.log_det(torch.float64)
