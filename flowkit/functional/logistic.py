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

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowkit.errors import DomainError, ShapeError
from flowkit.functional.eager import values_at_hand
from flowkit.functional.rootfind import solve_increasing

__all__ = ["logit_mix_logistic_cdf", "logit_mix_logistic_cdf_inverse"]

_ITERATIONS = 100  # a limit, where iterations stop by themselves
_FIXED_ITERATIONS = {torch.float32: 26, torch.float64: 30}  # where they cannot: compiled, fake or on a GPU


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
    """
    _check("x", x, logits, means, log_scales)
    return _Forward.apply(x, logits, means, log_scales)


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
    """
    _check("y", y, logits, means, log_scales)
    return _Inverse.apply(y, logits, means, log_scales)


def _check(name: str, x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> None:
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


class _Forward(torch.autograd.Function):
    """(x, logits, means, log_scales) -> (y, log dy/dx); saves its inputs and nothing else."""

    @staticmethod
    def forward(x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        if _is_plain(x, logits, means, log_scales):
            return _lean_forward(x, logits, means, log_scales)
        return _log_space(x, logits, means, log_scales)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        if not torch.is_grad_enabled() and _is_plain(*grads, *ctx.saved_tensors):
            return _lean_backward(*grads, *ctx.saved_tensors)
        return _pull_back(*grads, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
        return _Forward.apply(*_batch_first(info, in_dims, inputs)), (0, 0)


class _Inverse(torch.autograd.Function):
    """(y, logits, means, log_scales) -> (x, log dx/dy); saves its inputs and outputs."""

    @staticmethod
    def forward(y: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        solve = _lean_solve if _is_plain(y, logits, means, log_scales) else _solve
        x, log_derivative = solve(y, logits, means, log_scales)
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
        return _Inverse.apply(*_batch_first(info, in_dims, inputs)), (0, 0)


def _batch_first(info: Any, in_dims: tuple[int | None, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs of a vmapped Function with the mapped dimension in front, in all of them."""
    return tuple(
        t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(inputs, in_dims, strict=True)
    )


# Log space: correct everywhere, differentiable as it stands, free of data-dependent control flow.


def _largest(dtype: torch.dtype) -> float:
    """What z and the bracket saturate at: sums of a few of them are still finite."""
    return torch.finfo(dtype).max / 16


def _tails(x: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """e^-s, z, log sigmoid(z) and log sigmoid(-z) of every component."""
    limit = _largest(x.dtype)
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
    limit = _largest(x.dtype)
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
    lower, upper, start, resolution = _bracket(y.unsqueeze(-1), logits.softmax(-1), means, log_scales.exp(), dim=-1)
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


def _bracket(y: Tensor, pi: Tensor, means: Tensor, scales: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ends of the bracket, the mean of the components' quantiles as a start, and the smallest scale."""
    limit = _largest(y.dtype)
    quantiles = (means + scales * y).clamp(-limit, limit)
    lower, upper = quantiles.amin(dim), quantiles.amax(dim)
    start = (pi * quantiles).sum(dim).clamp(lower, upper)
    return lower, upper, start, scales.amin(dim)


# The lean path: eager mode on the CPU. Tiles that stay in cache; components in front, where PyTorch reduces fastest;
# three exponentials per component in linear space, and log space for the elements that leave its range.

_TILE = 98304  # components per tile and thread: few enough to stay in the cache, enough to make up for 50 calls
_CUT = {torch.float32: 60.0, torch.float64: 600.0}  # exp(-cut) is a normal number: denormal ones take 100 times as long


class _Mixture(NamedTuple):
    """What is computed once for N elements: shape (K, N), and (N,) for the last two."""

    logits: Tensor  # the largest is 0
    weights: Tensor  # exp(logits)
    means: Tensor
    log_scales: Tensor
    rates: Tensor  # exp(-log_scales)
    negligible: Tensor  # densities below this may consist of what the cut let in
    total: Tensor  # sum of the weights


def _is_plain(*tensors: Tensor) -> bool:
    """Whether values may steer the computation: they are at hand, and there is no device to wait for."""
    return values_at_hand(*tensors) and all(t.device.type == "cpu" for t in tensors)


def _tiles(shape: torch.Size, components: int) -> Iterator[tuple[slice, ...]]:
    """Indices that cut a tensor of this shape into tiles, whole in the last dimensions."""
    room = _TILE * torch.get_num_threads() // components
    cuts: list[list[slice]] = []
    for size in reversed(shape):
        step = max(1, min(size, room))
        cuts.append([slice(start, start + step) for start in range(0, size, step)])
        room //= step
    return itertools.product(*reversed(cuts))


def _components_first(parameter: Tensor) -> Tensor:
    return parameter.movedim(-1, 0).reshape(parameter.shape[-1], -1).contiguous()


def _mixture(logits: Tensor, means: Tensor, log_scales: Tensor) -> _Mixture:
    logits, means, log_scales = (_components_first(t) for t in (logits, means, log_scales))
    logits = logits - logits.amax(0)
    weights = logits.clamp(min=-_CUT[logits.dtype]).exp_()
    rates = log_scales.neg().exp_()
    numbers = torch.finfo(logits.dtype)
    negligible = (_floor(logits) * rates.amax(0)).clamp_(min=numbers.tiny / numbers.eps)
    return _Mixture(logits, weights, means, log_scales, rates, negligible, weights.sum(0))


def _floor(logits: Tensor) -> float:
    """Sums of K terms below this may be off by more than rounding, because each term is off by up to exp(-cut)."""
    return 2 * len(logits) * math.exp(-_CUT[logits.dtype]) / torch.finfo(logits.dtype).eps


def _select(mixture: _Mixture, index: Tensor) -> _Mixture:
    return _Mixture(*(t.index_select(-1, index) for t in mixture))


def _lean_forward(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    y, log_derivative = torch.empty_like(x), torch.empty_like(x)
    for tile in _tiles(x.shape, parameters[0].shape[-1]):
        here, mixture = x[tile], _mixture(*(t[tile] for t in parameters))
        y[tile], log_derivative[tile] = (t.view(here.shape) for t in _evaluate(here.reshape(-1), mixture))
    return y, log_derivative


def _lean_backward(grad_y: Tensor, grad_log: Tensor, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    grads = tuple(torch.empty_like(t) for t in (x, *parameters))
    for tile in _tiles(x.shape, parameters[0].shape[-1]):
        mixture = _mixture(*(t[tile] for t in parameters))
        on_y, on_log, here = (t[tile].reshape(-1) for t in (grad_y, grad_log, x))
        grad_x, *parts = _differentiate(on_y, on_log, here, mixture)
        grads[0][tile] = grad_x.view(x[tile].shape)
        for whole, part in zip(grads[1:], parts, strict=True):
            whole[tile].movedim(-1, 0).copy_(part.view(-1, *x[tile].shape))
    return grads


def _lean_solve(y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    x, log_derivative = torch.empty_like(y), torch.empty_like(y)
    for tile in _tiles(y.shape, parameters[0].shape[-1]):
        here, mixture = y[tile], _mixture(*(t[tile] for t in parameters))
        target = here.reshape(-1)
        bracket = _bracket(target, mixture.weights / mixture.total, mixture.means, mixture.log_scales.exp(), dim=0)
        root, log_slope = solve_increasing(
            lambda guess, *left: _evaluate(guess, _Mixture(*left)),
            target,
            *bracket,
            mixture,
            iterations=_ITERATIONS,
            compact=True,
        )
        x[tile], log_derivative[tile] = root.view(here.shape), -log_slope.view(here.shape)
    return x, log_derivative


def _evaluate(x: Tensor, mixture: _Mixture) -> tuple[Tensor, Tensor]:
    """y and log dy/dx of N elements, in linear space where it has the digits."""
    sigmoid_above, lower, upper = _linear(x, mixture)
    below, above, slope = lower.sum(0), upper.sum(0), sigmoid_above.mul_(lower).mul_(mixture.rates).sum(0)
    y, log_derivative = (below / above).log_(), (slope / below + slope / above).log_()
    outside = _outside(below, above, slope, mixture)
    if len(outside):
        again = _evaluate_log(x[outside], _select(mixture, outside))
        return y.index_copy_(0, outside, again[0]), log_derivative.index_copy_(0, outside, again[1])
    return y, log_derivative


def _outside(below: Tensor, above: Tensor, slope: Tensor, mixture: _Mixture) -> Tensor:
    """Indices of the elements whose digits linear space does not hold (it may hold NaN: hence the negation)."""
    inside = (torch.minimum(below, above) > _floor(mixture.logits)) & (slope > mixture.negligible)
    return inside.logical_not_().nonzero().squeeze(-1)


def _linear(x: Tensor, mixture: _Mixture) -> tuple[Tensor, Tensor, Tensor]:
    """sigmoid(-z) and the terms of F and S, but for a factor; three exponentials with the mixture's own two."""
    cut = _CUT[x.dtype]
    odds = (x - mixture.means).mul_(mixture.rates).clamp_(-cut, cut).exp_()
    sigmoid_above = (odds + 1).reciprocal_()
    upper = mixture.weights * sigmoid_above
    lower = odds.mul_(upper)
    return sigmoid_above, lower, upper


class _Logarithmic(NamedTuple):
    """Terms of F, S and f of N elements, each divided by the exponential of its own shift, and the two sigmoids."""

    sigmoid_below: Tensor
    sigmoid_above: Tensor
    lower: Tensor
    upper: Tensor
    density: Tensor
    lower_shift: Tensor
    upper_shift: Tensor
    density_shift: Tensor


def _logarithmic(x: Tensor, mixture: _Mixture) -> _Logarithmic:
    cut, limit = _CUT[x.dtype], _largest(x.dtype)
    z = (x - mixture.means).mul_(mixture.rates).clamp_(-limit, limit)
    distance = z.abs()
    smaller = distance.neg().clamp_(min=-cut).exp_()
    larger = (smaller + 1).reciprocal_()
    smaller.mul_(larger)
    right = z > 0
    terms, shifts = [], []
    for exponents, power in (
        (mixture.logits + z.clamp(max=0), 1),
        (mixture.logits - z.clamp_(min=0), 1),
        ((mixture.logits - mixture.log_scales).sub_(distance), 2),
    ):
        shift = exponents.amax(0)
        term = exponents.sub_(shift).clamp_(min=-cut).exp_()
        for _ in range(power):
            term.mul_(larger)
        terms.append(term)
        shifts.append(shift)
    return _Logarithmic(torch.where(right, larger, smaller), torch.where(right, smaller, larger), *terms, *shifts)


def _evaluate_log(x: Tensor, mixture: _Mixture) -> tuple[Tensor, Tensor]:
    terms = _logarithmic(x, mixture)
    below, above = terms.lower.sum(0), terms.upper.sum(0)
    y = (terms.lower_shift - terms.upper_shift) + (below / above).log_()
    slope = (terms.lower * terms.sigmoid_above).mul_(mixture.rates).sum(0) / below
    slope += (terms.upper * terms.sigmoid_below).mul_(mixture.rates).sum(0) / above
    # in a gap between sharp components no hazard is left, and the logarithms are small enough to be subtracted
    log_density = terms.density_shift + terms.density.sum(0).log_()
    in_gap = log_density + torch.logaddexp(-terms.lower_shift - below.log_(), -terms.upper_shift - above.log_())
    return y, torch.where(slope > mixture.negligible, slope.log(), in_gap)


def _differentiate(grad_y: Tensor, grad_log: Tensor, x: Tensor, mixture: _Mixture) -> tuple[Tensor, ...]:
    """What _pull_back does, for N elements, in linear space where it has the digits."""
    sigmoid_above, lower, upper = _linear(x, mixture)
    sigmoid_above.mul_(mixture.rates)
    density = lower * sigmoid_above
    below, above, slope = lower.sum(0), upper.sum(0), density.sum(0)
    outside = _outside(below, above, slope, mixture)
    by_below, by_above = (grad_y - grad_log) / below, (grad_y + grad_log) / above
    on_density = density * (grad_log / slope)
    grad_x = density.mul_(by_below + by_above)
    grad_x.addcmul_(on_density, sigmoid_above.mul_(2).sub_(mixture.rates))
    grads = _collect(grad_x, on_density, lower.mul_(by_below), upper.mul_(by_above), grad_log, x, mixture)
    if len(outside):
        again = _differentiate_log(grad_y[outside], grad_log[outside], x[outside], _select(mixture, outside))
        for whole, part in zip(grads, again, strict=True):
            whole.index_copy_(-1, outside, part)
    return grads


def _differentiate_log(grad_y: Tensor, grad_log: Tensor, x: Tensor, mixture: _Mixture) -> tuple[Tensor, ...]:
    terms = _logarithmic(x, mixture)
    on_lower = terms.lower.mul_((grad_y - grad_log) / terms.lower.sum(0))
    on_upper = terms.upper.mul_((grad_y + grad_log) / terms.upper.sum(0))
    on_density = terms.density.mul_(grad_log / terms.density.sum(0))
    grad_x = (on_lower + on_density).mul_(terms.sigmoid_above)
    grad_x.addcmul_(on_upper - on_density, terms.sigmoid_below).mul_(mixture.rates)
    return _collect(grad_x, on_density, on_lower, on_upper, grad_log, x, mixture)


def _collect(
    grad_x: Tensor,
    on_density: Tensor,
    on_lower: Tensor,
    on_upper: Tensor,
    grad_log: Tensor,
    x: Tensor,
    mixture: _Mixture,
) -> tuple[Tensor, ...]:
    """Gradients of x, logits, means and log_scales from the components' shares of them; overwrites its arguments."""
    grad_logits = on_lower.sub_(on_upper).add_(on_density).addcmul_(mixture.weights, grad_log / mixture.total)
    grad_log_scales = (x - mixture.means).mul_(grad_x).add_(on_density).neg_()
    return grad_x.sum(0), grad_logits, grad_x.neg_(), grad_log_scales
