"""The mixture-of-logistics CDF on a GPU: one Triton kernel each for forward, backward and inverse, in log space.

A program holds all components of a block of elements in registers: parameters are read once and gradients written once,
and the search of the inverse ends without a word to the host. Arithmetic is cheap beside that traffic, so there is no
linear space here. Kernels stand behind operators of their own, which the compiler calls as they are.

`flowkit.functional.logistic` has the functions that users call, and the reference. With `TRITON_INTERPRET=1` set before
the import, the kernels run on a CPU, element by element, for tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op

from flowkit.functional.mixture import largest
from flowkit.functional.rootfind import FAR

__all__ = ["triton_backward", "triton_forward", "triton_solve"]

_BLOCK = 2048  # components of a program
_CUT = {
    torch.float32: 60.0,
    torch.float64: 600.0,
}  # slopes that hold terms smaller than exp(-cut) are done by logarithms
_ITERATIONS = 100  # a limit: a program ends when its elements have converged

LOG2_E = tl.constexpr(1 / math.log(2))
LN_2 = tl.constexpr(math.log(2))


@triton.jit
def _exp(x):  # type: ignore[no-untyped-def]
    """e^x to the last digits: hardware has powers of 2."""
    octaves = x * LOG2_E
    power = tl.exp2(octaves)
    return tl.fma(power, tl.fma(octaves, -LN_2, x), power)


@triton.jit
def _places(count, inner, block_n: tl.constexpr):  # type: ignore[no-untyped-def]
    """Indices of this program's elements, the last one in place of any beyond; the same in two dims; which to write."""
    index = tl.program_id(0).to(tl.int64) * block_n + tl.arange(0, block_n)
    at = tl.minimum(index, count - 1)
    return at, at // inner, at % inner, index < count


@triton.jit
def _read(pointer, k, outer, inner, stride_k, stride_outer, stride_inner, components, padding):  # type: ignore[no-untyped-def]
    """A parameter of all components, (block_k, block_n)."""
    offsets = k[:, None] * stride_k + (outer * stride_outer + inner * stride_inner)[None, :]
    return tl.load(pointer + offsets, mask=(k < components)[:, None], other=padding)


@triton.jit
def _terms(x, logits, means, log_scales, rates, limit):  # type: ignore[no-untyped-def]
    """sigmoid(z), sigmoid(-z), and the terms of F, S and f, each over the exponential of a shift, with the shifts."""
    z = tl.minimum(tl.maximum((x[None, :] - means) * rates, -limit), limit)
    distance = tl.abs(z)
    smaller = tl.exp(-distance)
    larger = 1 / (1 + smaller)
    smaller = smaller * larger
    lower, upper, density = logits + tl.minimum(z, 0), logits - tl.maximum(z, 0), logits - log_scales - distance
    lower_shift, upper_shift, density_shift = tl.max(lower, 0), tl.max(upper, 0), tl.max(density, 0)
    lower = tl.exp(lower - lower_shift[None, :]) * larger
    upper = tl.exp(upper - upper_shift[None, :]) * larger
    density = tl.exp(density - density_shift[None, :]) * larger * larger
    below, above = tl.where(z > 0, larger, smaller), tl.where(z > 0, smaller, larger)
    return below, above, lower, upper, density, lower_shift, upper_shift, density_shift


@triton.jit
def _evaluate(x, logits, means, log_scales, rates, negligible, limit):  # type: ignore[no-untyped-def]
    """y and log dy/dx."""
    sigmoid_below, sigmoid_above, lower, upper, density, lower_shift, upper_shift, density_shift = _terms(
        x, logits, means, log_scales, rates, limit
    )
    below, above = tl.sum(lower, 0), tl.sum(upper, 0)
    y = (lower_shift - upper_shift) + tl.log(below / above)
    slope = tl.sum(lower * sigmoid_above * rates, 0) / below + tl.sum(upper * sigmoid_below * rates, 0) / above
    log_density = density_shift + tl.log(tl.sum(density, 0))
    first, second = -lower_shift - tl.log(below), -upper_shift - tl.log(above)
    in_gap = log_density + tl.maximum(first, second) + tl.log(1 + tl.exp(-tl.abs(first - second)))
    usual = slope > negligible
    return y, tl.where(usual, tl.log(tl.where(usual, slope, 1)), in_gap)


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    x_pointer, logits_pointer, means_pointer, scales_pointer, y_pointer, log_pointer, count, inner, components,
    logits_k, logits_outer, logits_inner, means_k, means_outer, means_inner, scales_k, scales_outer, scales_inner,
    floor: tl.constexpr, least: tl.constexpr, limit: tl.constexpr, block_k: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    at, row, column, ours = _places(count, inner, block_n)
    k = tl.arange(0, block_k)
    logits = _read(logits_pointer, k, row, column, logits_k, logits_outer, logits_inner, components, float("-inf"))
    means = _read(means_pointer, k, row, column, means_k, means_outer, means_inner, components, 0.0)
    log_scales = _read(scales_pointer, k, row, column, scales_k, scales_outer, scales_inner, components, 0.0)
    rates = tl.where((k < components)[:, None], _exp(-log_scales), 0)
    negligible = tl.maximum(floor * tl.max(rates, 0), least)
    y, log_derivative = _evaluate(tl.load(x_pointer + at), logits, means, log_scales, rates, negligible, limit)
    tl.store(y_pointer + at, y, mask=ours)
    tl.store(log_pointer + at, log_derivative, mask=ours)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    x_pointer, logits_pointer, means_pointer, scales_pointer, grad_y_pointer, grad_log_pointer,
    on_x_pointer, on_logits_pointer, on_means_pointer, on_scales_pointer, count, inner, components,
    logits_k, logits_outer, logits_inner, means_k, means_outer, means_inner, scales_k, scales_outer, scales_inner,
    grads_k, grads_outer, grads_inner, limit: tl.constexpr, block_k: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    at, row, column, ours = _places(count, inner, block_n)
    k = tl.arange(0, block_k)
    logits = _read(logits_pointer, k, row, column, logits_k, logits_outer, logits_inner, components, float("-inf"))
    means = _read(means_pointer, k, row, column, means_k, means_outer, means_inner, components, 0.0)
    log_scales = _read(scales_pointer, k, row, column, scales_k, scales_outer, scales_inner, components, 0.0)
    rates = tl.where((k < components)[:, None], _exp(-log_scales), 0)
    x, grad_y, grad_log = tl.load(x_pointer + at), tl.load(grad_y_pointer + at), tl.load(grad_log_pointer + at)
    sigmoid_below, sigmoid_above, lower, upper, density, _, _, _ = _terms(x, logits, means, log_scales, rates, limit)
    on_lower = lower * ((grad_y - grad_log) / tl.sum(lower, 0))[None, :]
    on_upper = upper * ((grad_y + grad_log) / tl.sum(upper, 0))[None, :]
    on_density = density * (grad_log / tl.sum(density, 0))[None, :]
    weights = tl.exp(logits - tl.max(logits, 0)[None, :])
    on_logits = on_lower - on_upper + on_density + weights * (grad_log / tl.sum(weights, 0))[None, :]
    on_means = -rates * ((on_lower + on_density) * sigmoid_above + (on_upper - on_density) * sigmoid_below)
    on_scales = (x[None, :] - means) * on_means - on_density
    tl.store(on_x_pointer + at, -tl.sum(on_means, 0), mask=ours)
    offsets = k[:, None] * grads_k + (row * grads_outer + column * grads_inner)[None, :]
    written = (k < components)[:, None] & ours[None, :]
    tl.store(on_logits_pointer + offsets, on_logits, mask=written)
    tl.store(on_means_pointer + offsets, on_means, mask=written)
    tl.store(on_scales_pointer + offsets, on_scales, mask=written)


@triton.jit
def _solve_kernel(  # type: ignore[no-untyped-def]
    y_pointer, logits_pointer, means_pointer, scales_pointer, x_pointer, log_pointer, count, inner, components,
    logits_k, logits_outer, logits_inner, means_k, means_outer, means_inner, scales_k, scales_outer, scales_inner,
    floor: tl.constexpr, least: tl.constexpr, limit: tl.constexpr, eps: tl.constexpr, far: tl.constexpr,
    iterations: tl.constexpr, block_k: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """The search of `rootfind.solve_increasing`, rule by rule."""
    at, row, column, ours = _places(count, inner, block_n)
    k = tl.arange(0, block_k)
    real = (k < components)[:, None]
    logits = _read(logits_pointer, k, row, column, logits_k, logits_outer, logits_inner, components, float("-inf"))
    means = _read(means_pointer, k, row, column, means_k, means_outer, means_inner, components, 0.0)
    log_scales = _read(scales_pointer, k, row, column, scales_k, scales_outer, scales_inner, components, 0.0)
    rates = tl.where(real, _exp(-log_scales), 0)
    negligible = tl.maximum(floor * tl.max(rates, 0), least)
    target = tl.load(y_pointer + at)

    scales = _exp(log_scales)
    quantiles = tl.minimum(tl.maximum(means + scales * target[None, :], -limit), limit)
    lower = tl.min(tl.where(real, quantiles, float("inf")), 0)
    upper = tl.max(tl.where(real, quantiles, float("-inf")), 0)
    weights = tl.exp(logits - tl.max(logits, 0)[None, :])
    start = tl.sum(weights / tl.sum(weights, 0)[None, :] * quantiles, 0)
    resolution = tl.min(tl.where(real, scales, float("inf")), 0)
    small = 2 * eps * (1 + tl.abs(target))

    moved = tl.minimum(tl.maximum(start, lower), upper)
    x, log_slope, step = moved, moved, upper - lower
    left, iteration = 1, 0
    while (iteration < iterations) & (left > 0):
        x = moved
        value, log_slope = _evaluate(x, logits, means, log_scales, rates, negligible, limit)
        residual = value - target
        newton_step = residual * tl.exp(-log_slope)
        lower = tl.where(residual < 0, x, lower)
        upper = tl.where(residual > 0, x, upper)
        slow = tl.abs(newton_step) > 0.5 * step
        close = eps * (tl.abs(x) + resolution)
        done = (
            (tl.abs(residual) <= tl.where(slow, 2 * small, small))
            | (tl.abs(newton_step) <= close)
            | (upper - lower <= 2 * close)
        )
        newton = x - newton_step
        wide = upper - lower > far * (tl.minimum(tl.abs(lower), tl.abs(upper)) + resolution)
        size = tl.sqrt(tl.abs(lower) + resolution) * tl.sqrt(tl.abs(upper) + resolution) - resolution
        signs = (lower > 0).to(tl.int32) - (lower < 0) + (upper > 0) - (upper < 0)
        geometric = tl.where(signs > 0, size, tl.where(signs < 0, -size, 0))
        middle = tl.where(wide, geometric, lower + 0.5 * (upper - lower))
        moved = tl.where((newton > lower) & (newton < upper) & (slow == 0), newton, middle)
        moved = tl.where(done, x, moved).to(x.dtype)
        step = tl.abs(moved - x)
        left = tl.sum((done == 0).to(tl.int32), 0)
        iteration += 1
    tl.store(x_pointer + at, x, mask=ours)
    tl.store(log_pointer + at, -log_slope, mask=ours)


class _Call:
    """How a kernel is called: parameters as (outer, components, inner), which needs a copy of few layouts."""

    def __init__(self, x: Tensor, parameters: Sequence[Tensor]) -> None:
        self.components = parameters[0].shape[-1]
        views = [view for view in map(_collapsed, parameters) if view is not None]
        if len(views) < len(parameters) or any(view.inner != views[0].inner for view in views):
            views = [view for view in (_collapsed(t.contiguous()) for t in parameters) if view is not None]
        self.tensors = [view.tensor for view in views]
        self.sizes = (x.numel(), views[0].inner, self.components)
        self.strides = [stride for view in views for stride in view.strides]
        block_k = triton.next_power_of_2(self.components)
        block_n = max(1, _BLOCK * 4 // x.element_size() // block_k)
        self.blocks = {"block_k": block_k, "block_n": block_n}
        self.grid = (triton.cdiv(x.numel(), block_n),)

    def gradients(self, x: Tensor) -> tuple[list[Tensor], tuple[int, int, int]]:
        """Room for gradients of shape (*S, K), components where `logits` has them, and its strides."""
        count, inner, components = self.sizes
        outer = count // inner if count else 0
        side_by_side = self.strides[0] == 1
        blocks = (outer, inner, components) if side_by_side else (outer, components, inner)
        room = [x.new_empty(blocks) for _ in self.tensors]
        views = [(t if side_by_side else t.movedim(1, -1)).view(*x.shape, components) for t in room]
        strides = (1, inner * components, components) if side_by_side else (inner, inner * components, 1)
        return views, strides


class _Collapsed(NamedTuple):
    """A parameter of shape (*S, K) with S as two dims."""

    tensor: Tensor
    outer: int
    inner: int
    strides: tuple[int, int, int]  # of components, outer and inner


def _collapsed(parameter: Tensor) -> _Collapsed | None:
    """None where the strides of S are not those of two dims."""
    dims: list[list[int]] = []  # size and stride, from the right
    for size, stride in zip(reversed(parameter.shape[:-1]), reversed(parameter.stride()[:-1]), strict=True):
        if size == 1:
            continue
        if dims and stride == dims[-1][0] * dims[-1][1]:
            dims[-1][0] *= size
        else:
            dims.append([size, stride])
    if len(dims) > 2:
        return None
    (inner, of_inner), (outer, of_outer) = (*map(tuple, dims), (1, 0), (1, 0))[:2]
    return _Collapsed(parameter, outer, inner, (parameter.stride(-1), of_outer, of_inner))


def _thresholds(dtype: torch.dtype, components: int) -> tuple[float, float, float]:
    """Densities below the first times the largest rate, or below the second, lack digits; what z saturates at."""
    numbers = torch.finfo(dtype)
    floor = 2 * components * math.exp(-_CUT[dtype]) / numbers.eps
    return floor, numbers.tiny / numbers.eps, largest(dtype)


@custom_op(
    "flowkit::mix_logistic_triton", mutates_args=(), schema="(Tensor x, Tensor[] parameters) -> (Tensor, Tensor)"
)
def triton_forward(x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """y and log dy/dx."""
    x, call = x.contiguous(), _Call(x, parameters)
    y, log_derivative = torch.empty_like(x), torch.empty_like(x)
    if x.numel():
        with torch.cuda.device_of(x):
            _forward_kernel[call.grid](
                x, *call.tensors, y, log_derivative, *call.sizes, *call.strides,
                *_thresholds(x.dtype, call.components), **call.blocks,
            )  # fmt: skip
    return y, log_derivative


@custom_op(
    "flowkit::mix_logistic_triton_backward",
    mutates_args=(),
    schema="(Tensor grad_y, Tensor grad_log, Tensor x, Tensor[] parameters) -> (Tensor, Tensor, Tensor, Tensor)",
)
def triton_backward(
    grad_y: Tensor, grad_log: Tensor, x: Tensor, parameters: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and of the parameters."""
    grad_y, grad_log, x = (t.contiguous() for t in (grad_y, grad_log, x))
    call, grad_x = _Call(x, parameters), torch.empty_like(x)
    views, strides = call.gradients(x)
    if x.numel():
        with torch.cuda.device_of(x):
            _backward_kernel[call.grid](
                x, *call.tensors, grad_y, grad_log, grad_x, *views, *call.sizes, *call.strides, *strides,
                largest(x.dtype), **call.blocks,
            )  # fmt: skip
    return grad_x, *views  # type: ignore[return-value]


@custom_op(
    "flowkit::mix_logistic_triton_solve",
    mutates_args=(),
    schema="(Tensor y, Tensor[] parameters) -> (Tensor, Tensor)",
)
def triton_solve(y: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """x and log dx/dy."""
    y, call = y.contiguous(), _Call(y, parameters)
    x, log_derivative = torch.empty_like(y), torch.empty_like(y)
    if y.numel():
        with torch.cuda.device_of(y):
            _solve_kernel[call.grid](
                y, *call.tensors, x, log_derivative, *call.sizes, *call.strides, *_thresholds(y.dtype, call.components),
                torch.finfo(y.dtype).eps, FAR, _ITERATIONS, **call.blocks,
            )  # fmt: skip
    return x, log_derivative


@triton_forward.register_fake
@triton_solve.register_fake
def _(x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


@triton_backward.register_fake
def _(grad_y: Tensor, grad_log: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape), *_Call(x, parameters).gradients(x)[0]
