"""The logit of a mixture-of-logistics CDF, its inverse, and the logarithm of its slope.

    F(x) = sum over k of pi_k sigmoid(z_k),  z_k = (x - mu_k) exp(-s_k),  pi = softmax(w)
    y = logit F(x) = log F(x) - log(1 - F(x))

from Ho et al. 2019, "Flow++" (https://arxiv.org/abs/1902.00275), section 3.2.1: the nonlinear part of the coupling law
x -> logit F(x) exp(a) + b. CDF and logit are one function here, because the CDF alone runs out of digits in the tails,
where its logit is nearly linear.

Three rules keep every digit that the inputs have:

* S = 1 - F = sum of pi_k sigmoid(-z_k) is its own sum, never a difference.
* log dy/dx = log(f/F + f/S) with f = F'. The equivalent log f - log F - log S subtracts numbers of the size of y in the
  tails.
* Gradients are closed forms. Autograd through a decomposition with min, max or abs doubles dy/dx at x = mean.

Both functions have a backward of their own, which is made of differentiable operations whenever a graph is asked for;
so derivatives of any order exist, in `torch.func` too.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowkit.functional.eager import (
    compiled_for_cpu,
    compiled_in_transform,
    refuse_compiled_transforms,
    steered_by_values,
)
from flowkit.functional.logistic_fused import fused_backward, fused_forward, fused_solve
from flowkit.functional.logistic_linear import Sums, tiled_backward, tiled_forward, tiled_solve
from flowkit.functional.mixture import batch_first, check_mixture, largest, quantile_bracket
from flowkit.functional.rootfind import solve_increasing

__all__ = ["logit_mix_logistic_cdf", "logit_mix_logistic_cdf_inverse"]

_FIXED_ITERATIONS = {torch.float32: 26, torch.float64: 30}  # where values cannot stop them: fake or exported
_HAS_TRITON = find_spec("triton") is not None
_MOST_COMPONENTS = 512  # that a Triton kernel holds in registers


def logit_mix_logistic_cdf(x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """y = logit F(x) for a mixture of logistic distributions, and log dy/dx, element by element.

    Args:
        x: shape (*S).
        logits, means, log_scales: shape (*S, K), K >= 1: w, mu and s of the components. There is no floor on s.

    Returns:
        y and `log_derivative` = log dy/dx, both of shape (*S).

    Domain: finite inputs, abs(s) <= 80 in float32 and 700 in float64 (e^s and e^-s are normal numbers). Where
    (x - mu) e^-s exceeds the dtype's range it saturates at 1/16 of the largest number.
    Error, against 40 digits: y within 4 eps, relative above 1 and absolute below; log dy/dx within
    16 eps max(1, abs(y), abs(log dy/dx)), typically 1 eps. Gradients: shares of components that compete far out in
    a tail are known to eps abs(y).
    Derivatives of any order in reverse mode; forward mode is not defined.

    Raises:
        ShapeError: the three parameters do not all have shape (*x.shape, K) with K >= 1.
        DomainError: an argument is not float32 or float64, or has another dtype than x.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, section 3.2.1, https://arxiv.org/abs/1902.00275.
    """
    check_mixture("x", x, logits, means, log_scales)
    if compiled_in_transform():
        return _log_space(x, logits, means, log_scales)  # of a Function, the compiler may lose derivatives
    y, log_derivative, *_ = _Forward.apply(x, logits, means, log_scales)
    return y, log_derivative


def logit_mix_logistic_cdf_inverse(
    y: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor
) -> tuple[Tensor, Tensor]:
    """The x with logit F(x) = y, see `logit_mix_logistic_cdf`, and log dx/dy.

    x lies between the smallest and the largest mu_k + exp(s_k) y, each component's quantile at the level of y,
    because F is a convex combination. In this bracket a safeguarded Newton iteration on the logit goes on until the
    residual in y is down to rounding. The error in x is this residual divided by dy/dx, and therefore large where the
    CDF is flat, as between sharp components: no method can do better there.
    Gradients follow from the implicit function theorem.

    Args:
        y: shape (*S).
        logits, means, log_scales: shape (*S, K), K >= 1.

    Returns:
        x and `log_derivative` = log dx/dy at this x, both of shape (*S).

    Domain: finite inputs, abs(s) <= 80 in float32 and 700 in float64. The bracket saturates at 1/16 of the dtype's
    largest number, and so do dx/dy and the gradient of y.
    Error: the residual in y is within 6 eps (1 + abs(y) + abs(x) dy/dx), so x is within 4 times
    eps (1 + abs(y)) / (dy/dx) + eps (1 + abs(x)), what rounding y and x alone may cost, with the least dy/dx between x
    and the exact solution: in a gap between sharp components it can be far below that at either end.

    Raises:
        ShapeError: the three parameters do not all have shape (*y.shape, K) with K >= 1.
        DomainError: an argument is not float32 or float64, or has another dtype than y.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, section 3.2.1, https://arxiv.org/abs/1902.00275.
    """
    check_mixture("y", y, logits, means, log_scales)
    refuse_compiled_transforms("logit_mix_logistic_cdf_inverse", vmap=True)
    return _Inverse.apply(y, logits, means, log_scales)


class _Forward(torch.autograd.Function):
    """(x, logits, means, log_scales) -> (y, log dy/dx, *sums); saves its inputs and the three sums."""

    @staticmethod
    def forward(x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, ...]:
        inputs = [x, logits, means, log_scales]
        if steered_by_values(*inputs):
            y, log_derivative, sums = tiled_forward(*inputs)
        elif compiled_for_cpu(x):
            y, log_derivative, sums = fused_forward(*inputs)
        else:
            if _on_gpu(x, logits):
                from flowkit.functional.logistic_triton import triton_forward

                y, log_derivative = triton_forward(x, inputs[1:])
            else:
                y, log_derivative = _log_space(*inputs)
            sums = Sums(*(torch.zeros_like(x) for _ in range(3)))
        return y, log_derivative, *sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*output[2:], *inputs)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_log: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        below, above, slope, *inputs = ctx.saved_tensors
        if not torch.is_grad_enabled():
            if steered_by_values(grad_y, grad_log, *inputs):
                return tiled_backward(grad_y, grad_log, Sums(below, above, slope), *inputs)
            if compiled_for_cpu(grad_y):
                return fused_backward(grad_y, grad_log, Sums(below, above, slope), *inputs)
            if _on_gpu(grad_y, inputs[1]):
                from flowkit.functional.logistic_triton import triton_backward

                return triton_backward(grad_y, grad_log, inputs[0], inputs[1:])
        return _pull_back(grad_y, grad_log, *inputs)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _Forward.apply(*batch_first(info, in_dims, inputs)), (0,) * 5


def _on_gpu(x: Tensor, logits: Tensor) -> bool:
    """Whether the Triton kernels serve."""
    on_gpu = _HAS_TRITON and x.device.type == "cuda" and not torch.compiler.is_exporting()
    return on_gpu and logits.shape[-1] <= _MOST_COMPONENTS


class _Inverse(torch.autograd.Function):
    """(y, logits, means, log_scales) -> (x, log dx/dy); saves its inputs and outputs."""

    @staticmethod
    def forward(y: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        inputs = [y, logits, means, log_scales]
        if _on_gpu(y, logits):
            from flowkit.functional.logistic_triton import triton_solve

            x, log_derivative = triton_solve(y, inputs[1:])
        else:
            solve = tiled_solve if steered_by_values(*inputs) else fused_solve if compiled_for_cpu(y) else _solve
            x, log_derivative = solve(*inputs)
        # A bracket of NaN can leave a number at its start; the slope there tells.
        return torch.where(log_derivative.isnan(), log_derivative, x), log_derivative

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*output, *inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return _pull_back_inverse(*grads, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
        return _Inverse.apply(*batch_first(info, in_dims, inputs)), (0, 0)


# Log space: correct everywhere, differentiable as it stands, free of data-dependent control flow.


def _tails(x: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """e^-s, z, log sigmoid(z) and log sigmoid(-z) of every component."""
    limit = largest(x.dtype)
    rate = torch.exp(-log_scales)
    z = ((x.unsqueeze(-1) - means) * rate).clamp(-limit, limit)
    return rate, z, logsigmoid(z), logsigmoid(-z)


def _log_space(x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """The reference: y and log dy/dx by sums of logarithms."""
    _, _, log_below, log_above = _tails(x, means, log_scales)
    log_weights = logits.log_softmax(-1)
    log_lower, log_upper = log_weights + log_below, log_weights + log_above
    y = log_lower.logsumexp(-1) - log_upper.logsumexp(-1)
    # dy/dx = sum_k e^-s_k (a_k sigmoid(-z_k) + b_k sigmoid(z_k)) with the components' shares a of F and b of S
    hazard_lower = log_lower.log_softmax(-1) + log_above - log_scales
    hazard_upper = log_upper.log_softmax(-1) + log_below - log_scales
    return y, torch.logaddexp(hazard_lower.logsumexp(-1), hazard_upper.logsumexp(-1))


def _shares(x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, ...]:
    """e^-s, z, sigmoid(z), sigmoid(-z), and the components' shares of 1, F, S and f (pi, a, b, r: each sums to 1)."""
    rate, z, log_below, log_above = _tails(x, means, log_scales)
    lower, upper = logits + log_below, logits + log_above
    density = lower + log_above - log_scales
    return (rate, z, z.sigmoid(), (-z).sigmoid(), *(t.softmax(-1) for t in (logits, lower, upper, density)))


def _pull_back(
    grad_y: Tensor, grad_log: Tensor, x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of grad_y * y + grad_log * log dy/dx.

    With h = a sigmoid(-z) + b sigmoid(z):  dy/dz = h, dy/dw = a - b;  log dy/dx = log f - log F - log S gives
    d/dz = r (sigmoid(-z) - sigmoid(z)) - a sigmoid(-z) + b sigmoid(z) and d/dw = r - a - b + pi (from F + S = 1).
    """
    rate, z, below, above, pi, a, b, r = _shares(x, logits, means, log_scales)
    grad_y, grad_log = grad_y.unsqueeze(-1), grad_log.unsqueeze(-1)
    on_lower, on_upper, on_density = (grad_y - grad_log) * a, (grad_y + grad_log) * b, grad_log * r
    grad_z = on_lower * above + on_upper * below + on_density * (above - below)
    grad_means = -rate * grad_z
    return -grad_means.sum(-1), on_lower - on_upper + on_density + grad_log * pi, grad_means, -z * grad_z - on_density


def _pull_back_inverse(
    grad_x: Tensor,
    grad_log: Tensor,
    x: Tensor,
    log_derivative: Tensor,
    logits: Tensor,
    means: Tensor,
    log_scales: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of grad_x * x + grad_log * log dx/dy, by the implicit function theorem at the solution x.

    dx = (dy - (a - b) dw) dx/dy + r dmu + r (x - mu) ds, and log dx/dy is -log dy/dx, which moves along with x.
    dx/dy and the gradient of y saturate: in a gap they may exceed the dtype's range, and 0 * inf is no gradient.
    """
    limit = largest(x.dtype)
    rate, z, below, above, pi, a, b, r = _shares(x, logits, means, log_scales)
    derivative = log_derivative.clamp(max=math.log(limit)).exp()
    by_z = r * (above - below) - a * above + b * below  # of log dy/dx
    onto_x = grad_x - grad_log * (rate * by_z).sum(-1)
    grad_y = (onto_x * derivative).clamp(-limit, limit)
    through_x, grad_log = onto_x.unsqueeze(-1) * r, grad_log.unsqueeze(-1)
    return (
        grad_y,
        grad_y.unsqueeze(-1) * (b - a) - grad_log * (r - a - b + pi),
        through_x + grad_log * rate * by_z,
        through_x * (x.unsqueeze(-1) - means) + grad_log * (z * by_z + r),
    )


def _solve(y: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """x and log dx/dy by a fixed number of iterations in log space."""
    # Nets give the parameters as views of one tensor, which a compiled loop does not take.
    logits, log_scales = logits.clone(), log_scales.clone()
    lower, upper, start, resolution = quantile_bracket(
        y.unsqueeze(-1), logits.softmax(-1), means, log_scales.exp(), dim=-1
    )
    x, log_slope = solve_increasing(
        lambda guess: _log_space(guess, logits, means, log_scales),
        y,
        lower,
        upper,
        start,
        resolution,
        iterations=_FIXED_ITERATIONS[y.dtype],
        compact=False,
    )
    return x, -log_slope
