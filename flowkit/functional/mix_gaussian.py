"""The normal quantile of a mixture-of-Gaussians CDF, its inverse, and the logarithm of its slope.

    F(x) = sum over k of pi_k Phi(z_k),  z_k = (x - mu_k) exp(-s_k),  pi = softmax(w),  Phi the normal CDF
    y = probit F(x),  Phi(y) = F(x)

The sibling of `logit_mix_logistic_cdf` with normal tails, as in Gaussianization: one component gives an affine map.

Four rules keep every digit that the inputs have:

* The tail that is smaller, F or S = 1 - F, is its own sum of logarithms, and y = probit F is solved for from that
  logarithm: log Phi(v) = log min(F, S), v <= 0, and y is v or -v. It has no end, where F itself ends at 8 deviations.
* log dy/dx = log(f / F) - log m(y) with the inverse Mills ratio m = phi / Phi (mirrored, where S is smaller). The
  equivalent log f - log phi(y) subtracts numbers of the size of y^2.
* m(v) = sqrt(2 / pi) / erfcx(-v / sqrt 2) for v <= 0: phi and Phi never appear where both underflow.
* Gradients are closed forms, in the components' shares of F, S and f.

Both functions have a backward of their own made of differentiable operations; so derivatives of any order exist, in
`torch.func` too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.special import erfcx, log_ndtr

from flowkit.functional.eager import refuse_compiled_transforms, steered_by_values
from flowkit.functional.mixture import batch_first, check_mixture, quantile_bracket
from flowkit.functional.rootfind import solve_increasing

__all__ = ["probit_mix_gaussian_cdf", "probit_mix_gaussian_cdf_inverse"]

_ITERATIONS = 100  # a limit, where iterations stop by themselves
_FIXED_ITERATIONS = {torch.float32: 28, torch.float64: 32}  # where they cannot: compiled, fake or on a GPU
_NOISE = 10  # eps (1 + abs(y)) that a computed y may be off by
_QUANTILE_STEPS = 2  # of third order, from a start that is right to 1 %

_LOG_2 = math.log(2)
_NOTHING = -80.0  # the logarithm of what is nothing beside 1; denormal numbers below are slow
_LOG_MILLS = 0.5 * math.log(2 / math.pi)  # log m(0) + log erfcx(0)
_LOG_PHI = -0.5 * math.log(2 * math.pi)


def probit_mix_gaussian_cdf(x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """y with Phi(y) = F(x) for a mixture of normal distributions, and log dy/dx, element by element.

    Args:
        x: shape (*S).
        logits, means, log_scales: shape (*S, K), K >= 1: w, mu and s of the components. There is no floor on s.

    Returns:
        y and `log_derivative` = log dy/dx, both of shape (*S).

    Domain: finite inputs, abs(s) <= 40 in float32 and 350 in float64. abs(z) saturates at the fourth root of the
    dtype's largest number, 4e9 in float32.
    Error, against 40 digits: y within 10 eps (1 + abs(y)); log dy/dx within
    16 eps max(1, abs(log dy/dx)) where one component has the tail, as nearly everywhere. Shares of components that
    compete far out in a tail are known to eps y^2, and so is log dy/dx there, where their scales differ.
    Derivatives of any order in reverse mode; forward mode is not defined.

    Raises:
        ShapeError: the three parameters do not all have shape (*x.shape, K) with K >= 1.
        DomainError: an argument is not float32 or float64, or has another dtype than x.

    Reference:
        Meng, Song, Song, Ermon, "Gaussianization Flows", 2020, https://arxiv.org/abs/2003.01941.
    """
    check_mixture("x", x, logits, means, log_scales)
    refuse_compiled_transforms("probit_mix_gaussian_cdf", vmap=False)
    return _Forward.apply(x, logits, means, log_scales)


def probit_mix_gaussian_cdf_inverse(
    y: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor
) -> tuple[Tensor, Tensor]:
    """The x with probit F(x) = y, see `probit_mix_gaussian_cdf`, and log dx/dy.

    x lies between the smallest and the largest mu_k + exp(s_k) y, each component's quantile at the level of y,
    because F is a convex combination. In this bracket a safeguarded Newton iteration goes on until the residual in y
    is down to rounding. The error in x is this residual divided by dy/dx, and therefore large where the CDF is flat,
    as between sharp components: no method can do better there.
    Gradients follow from the implicit function theorem.

    Args:
        y: shape (*S).
        logits, means, log_scales: shape (*S, K), K >= 1.

    Returns:
        x and `log_derivative` = log dx/dy at this x, both of shape (*S).

    Domain: finite inputs, abs(s) <= 40 in float32 and 350 in float64. dx/dy and the gradient of y saturate at 1/16 of
    the dtype's largest number.
    Error: the residual in y is within 12 eps (1 + abs(y) + abs(x) dy/dx).

    Raises:
        ShapeError: the three parameters do not all have shape (*y.shape, K) with K >= 1.
        DomainError: an argument is not float32 or float64, or has another dtype than y.

    Reference:
        Meng, Song, Song, Ermon, "Gaussianization Flows", 2020, https://arxiv.org/abs/2003.01941.
    """
    check_mixture("y", y, logits, means, log_scales)
    refuse_compiled_transforms("probit_mix_gaussian_cdf_inverse", vmap=True)
    return _Inverse.apply(y, logits, means, log_scales)


class _Forward(torch.autograd.Function):
    """(x, logits, means, log_scales) -> (y, log dy/dx); saves its inputs and outputs."""

    @staticmethod
    def forward(x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        return _evaluate(x, logits, means, log_scales)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_log: Tensor) -> tuple[Tensor, ...]:
        x, logits, means, log_scales, y, log_slope = ctx.saved_tensors
        offset, share, weight, lean, spread = _partials(x, logits, means, log_scales, y, log_slope)
        on_y, on_log = grad_y.unsqueeze(-1), grad_log.unsqueeze(-1)
        slope = _saturated_exp(log_slope).unsqueeze(-1)
        grad_means = share * (on_log * spread - on_y * slope)
        grad_log_scales = offset * grad_means - on_log * share
        grad_logits = (on_y + on_log * y.unsqueeze(-1)) * lean + on_log * (share - weight)
        return -grad_means.sum(-1), grad_logits, grad_means, grad_log_scales

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
        return _Forward.apply(*batch_first(info, in_dims, inputs)), (0, 0)


class _Inverse(torch.autograd.Function):
    """(y, logits, means, log_scales) -> (x, log dx/dy); saves its inputs and outputs."""

    @staticmethod
    def forward(y: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        solve = _solve_eager if steered_by_values(y, logits, means, log_scales) else _solve
        x, log_derivative = solve(y, logits, means, log_scales)
        # A bracket of NaN can leave a number at its start; the slope there tells.
        return torch.where(log_derivative.isnan(), log_derivative, x), log_derivative

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor, grad_log: Tensor) -> tuple[Tensor, ...]:
        """With log dy/dx as a function of x and the parameters: dx = (dy - its share) dx/dy moves all of it."""
        y, logits, means, log_scales, x, log_derivative = ctx.saved_tensors
        offset, share, weight, lean, spread = _partials(x, logits, means, log_scales, y, -log_derivative)
        onto_x = grad_x + grad_log * (share * spread).sum(-1)
        limit = torch.finfo(y.dtype).max / 16
        grad_y = (onto_x * _saturated_exp(log_derivative)).clamp(-limit, limit)
        on_log = grad_log.unsqueeze(-1)
        grad_means = share * (onto_x.unsqueeze(-1) - on_log * spread)
        grad_log_scales = offset * grad_means + on_log * share
        grad_logits = -(grad_y.unsqueeze(-1) + on_log * y.unsqueeze(-1)) * lean - on_log * (share - weight)
        return grad_y, grad_logits, grad_means, grad_log_scales

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
        return _Inverse.apply(*batch_first(info, in_dims, inputs)), (0, 0)


def _saturated_exp(log_value: Tensor) -> Tensor:
    return log_value.clamp(max=math.log(torch.finfo(log_value.dtype).max / 16)).exp()


def _standardized(x: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x - mu, e^-s and z of every component."""
    limit = torch.finfo(x.dtype).max ** 0.25
    offset, rate = x.unsqueeze(-1) - means, (-log_scales).exp()
    return offset, rate, (offset * rate).clamp(-limit, limit)


def _evaluate(x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """y and log dy/dx."""
    _, _, z = _standardized(x, means, log_scales)
    log_weights = logits.log_softmax(-1)
    half_square = 0.5 * z * z
    log_scaled = erfcx(z.abs() * math.sqrt(0.5)).log()
    smaller = (log_scaled - _LOG_2) - half_square  # log Phi(-|z|), and the other one
    larger = (-smaller.clamp(min=_NOTHING).exp()).log1p()
    positive = z > 0
    below, below_shift = _shifted(log_weights, torch.where(positive, larger, smaller))
    above, above_shift = _shifted(log_weights, torch.where(positive, smaller, larger))
    log_below, log_above = below.logsumexp(-1) + below_shift, above.logsumexp(-1) + above_shift
    left = log_below <= log_above
    log_tail = torch.minimum(log_below, log_above) - torch.logaddexp(log_below, log_above)  # F + S = 1 but for rounding
    v, near = _quantile(log_tail), left.unsqueeze(-1)
    log_share = torch.where(near, below, above).log_softmax(-1)
    log_mills = torch.where(positive == near, _LOG_PHI - half_square - larger, _LOG_MILLS - log_scaled)
    hazard = (log_share + log_mills - log_scales).logsumexp(-1)
    log_mills_of_v = _LOG_MILLS - erfcx(-math.sqrt(0.5) * v).log()
    return torch.where(left, v, -v), hazard - log_mills_of_v


def _shifted(log_weights: Tensor, exponents: Tensor) -> tuple[Tensor, Tensor]:
    """Their sum but for a shift, taken off first: far out, weights added to the exponents would be rounded away."""
    shift = exponents.detach().amax(-1, keepdim=True)
    return log_weights + (exponents - shift), shift.squeeze(-1)


def _quantile(log_probability: Tensor) -> Tensor:
    """The v with log Phi(v) = `log_probability`, which is at most log 1/2 up to rounding; not for autograd.

    Halley's method on the logarithm, from a rational function of sqrt(-2 log 2 Phi), which bounds -v.
    Error: 2 eps, relative above 1 and absolute below, besides that of `log_probability`.
    """
    bound = (-2 * (log_probability + _LOG_2)).clamp(min=0).sqrt()
    t = bound * bound * (0.6267 + 0.4836 * bound) / (1 + bound * (0.6707 + 0.4836 * bound))
    for _ in range(_QUANTILE_STEPS):
        scaled = erfcx(t * math.sqrt(0.5))
        mills = math.sqrt(2 / math.pi) / scaled
        step = ((-0.5 * t * t - log_probability) + (0.5 * scaled).log()) / mills
        t = t + step / (1 + 0.5 * step * (mills - t))
    return -t


def _partials(
    x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor, y: Tensor, log_slope: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x - mu; the shares r of f; pi; dy/dw; and h = z e^-s - y dy/dx.

    dy/dmu = -r dy/dx, dy/ds = (x - mu) dy/dmu;  d(log dy/dx) is r h by mu, r ((x - mu) h - 1) by s and
    r - pi + y dy/dw by w; and by x minus what it is by all mu.
    """
    offset, rate, z = _standardized(x, means, log_scales)
    sign = torch.where(y <= 0, 1.0, -1.0).to(y.dtype)
    shares = _shifted(logits, log_ndtr(sign.unsqueeze(-1) * z))[0].softmax(-1)  # of the smaller tail
    weights = logits.softmax(-1)
    by_tail = sign * math.sqrt(math.pi / 2) * erfcx(-math.sqrt(0.5) * (sign * y))  # 1 / m
    spread = z * rate - (y * _saturated_exp(log_slope)).unsqueeze(-1)
    density = _shifted(logits - log_scales, -0.5 * z * z)[0].softmax(-1)
    return offset, density, weights, by_tail.unsqueeze(-1) * (shares - weights), spread


def _solve(y: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """x and log dx/dy by a fixed number of iterations."""
    # Nets give the parameters as views of one tensor, which a compiled loop does not take.
    logits, log_scales = logits.clone(), log_scales.clone()
    bracket = quantile_bracket(y.unsqueeze(-1), logits.softmax(-1), means, log_scales.exp(), dim=-1)
    x, log_slope = solve_increasing(
        lambda guess: _evaluate_near(y, guess, logits, means, log_scales),
        y,
        *bracket,
        iterations=_FIXED_ITERATIONS[y.dtype],
        compact=False,
    )
    return x, -log_slope


def _solve_eager(y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    """The same, each element until it has converged."""
    target = y.reshape(-1)
    logits, means, log_scales = (t.reshape(-1, t.shape[-1]) for t in parameters)
    bracket = quantile_bracket(target.unsqueeze(-1), logits.softmax(-1), means, log_scales.exp(), dim=-1)
    x, log_slope = solve_increasing(
        lambda guess, y, *left: _evaluate_near(y, guess, *(t.T for t in left)),
        target,
        *bracket,
        (target, logits.T, means.T, log_scales.T),
        iterations=_ITERATIONS,
        compact=True,
    )
    return x.view(y.shape), -log_slope.view(y.shape)


def _evaluate_near(y: Tensor, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    """What `_evaluate` gives, and y itself where it is y but for rounding: steps from there would chase noise."""
    value, log_slope = _evaluate(x, *parameters)
    noise = _NOISE * torch.finfo(y.dtype).eps * (1 + y.abs())
    return torch.where((value - y).abs() <= noise, y, value), log_slope
