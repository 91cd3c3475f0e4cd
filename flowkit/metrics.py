"""Bounds on the log-likelihood, bits per dimension, and Monte Carlo estimates of entropy and divergence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flowkit.arguments import count, whole
from flowkit.distribution import Distribution, drawn_with
from flowkit.errors import NotExact, ShapeError

__all__ = ["Estimate", "bits_per_dim", "entropy", "kl_divergence", "log_prob_bound"]


class Estimate(NamedTuple):
    """A Monte Carlo mean, and the standard error that it has; float64, one of each for every context.

    Attributes:
        mean: (*context batch).
        standard_error: (*context batch): the deviation of the draws over the square root of their number.
    """

    mean: Tensor
    standard_error: Tensor


def log_prob_bound(
    flow: Distribution,
    x: Tensor,
    context: Tensor | None = None,
    *,
    draws: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The importance-weighted bound: log of the mean over draws of exp(log_prob), in float64.

    Below log P(x) in expectation, the closer the more draws; of an exact flow it is the log-density. Draws run one
    after another, so memory is that of one `log_prob`.

    Args:
        flow: its `log_prob` is one draw of a bound, or exact.
        x: (*batch, *event).
        context: as for `flow.log_prob`.
        draws: K, at least 1.
        generator: for the noise.

    Returns:
        (*batch), float64, in nats.

    Raises:
        ValueError: for fewer than 1 draw.

    Reference:
        Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders", 2016, https://arxiv.org/abs/1509.00519.

    >>> import torch, flowkit as fk
    >>> flow = fk.Flow(fk.UniformDequantizer(levels=4), fk.Uniform((2,)))
    >>> log_prob_bound(flow, torch.tensor([[0, 3]]), draws=8).exp()
    tensor([0.0625], dtype=torch.float64)
    """
    count("log_prob_bound", "draws", draws)
    return bounds(flow, x, context, draws=draws, generator=generator)[1]


def bounds(
    flow: Distribution,
    x: Tensor,
    context: Tensor | None = None,
    *,
    draws: int,
    generator: torch.Generator | None = None,
    each: Callable[[], object] | None = None,
) -> tuple[Tensor, Tensor]:
    """Two bounds from the same draws: the mean of `log_prob`, and the importance-weighted one; `each` runs after each.

    The mean has the expectation of a single draw and less noise. Both are (*batch), float64, in nats.
    """
    total = weighted = flow.log_prob(x, context, **drawn_with(generator)).double()
    if each is not None:
        each()
    if flow.exact:
        return total, weighted
    for _ in range(draws - 1):
        draw = flow.log_prob(x, context, **drawn_with(generator)).double()
        total, weighted = total + draw, torch.logaddexp(weighted, draw)
        if each is not None:
            each()
    return total / draws, weighted - math.log(draws)


def bits_per_dim(
    flow: Distribution,
    x: Tensor,
    context: Tensor | None = None,
    *,
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`-log_prob_bound / (D log 2)`: bits per dimension of each example, D elements in an event.

    An upper bound in expectation unless the flow is exact. Lower is better.

    Args:
        flow, x, context, generator: as for `log_prob_bound`.
        draws: importance samples per example.

    Returns:
        (*batch), float64.

    Raises:
        ShapeError: if x has no elements in an event.

    Reference:
        Theis, van den Oord, Bethge, "A note on the evaluation of generative models", 2016,
        https://arxiv.org/abs/1511.01844.

    >>> import torch, flowkit as fk
    >>> flow = fk.Flow(fk.UniformDequantizer(levels=4), fk.Uniform((3,)))
    >>> bits_per_dim(flow, torch.tensor([[0, 1, 3]])).round(decimals=6)
    tensor([2.], dtype=torch.float64)
    """
    bound = log_prob_bound(flow, x, context, draws=draws, generator=generator)
    dims = math.prod(x.shape[x.ndim - flow.event_ndim :])
    if not dims:
        raise ShapeError(f"bits_per_dim: x has shape {tuple(x.shape)}, with no elements in an event")
    return -bound / (dims * math.log(2))


def entropy(
    distribution: Distribution,
    context: Tensor | None = None,
    *,
    draws: int,
    chunk: int = 4096,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The differential entropy -E log p(x), in nats, by the mean over draws of p.

    Args:
        distribution: p, with an exact density.
        context: as for `distribution.sample`; one estimate for each.
        draws: number of draws for each context, at least 2.
        chunk: how many of them are in memory at a time, for each context.
        generator: for the draws.

    Returns:
        Mean and standard error, float64: (*context batch).

    Raises:
        NotExact: if the distribution has only a bound on its density.
        ValueError: for fewer than 2 draws, or a chunk below 1.

    >>> import torch, flowkit as fk
    >>> found = entropy(fk.Normal((3,)), draws=10_000, generator=torch.Generator().manual_seed(0))
    >>> abs(found.mean - 4.2568) < 3 * found.standard_error  # 3/2 (1 + log 2 pi)
    tensor(True)
    """
    _refuse_bound("entropy", "distribution", distribution)

    def terms(count: int) -> Tensor:
        return -distribution.sample_and_log_prob((count,), context, **drawn_with(generator))[1]

    return _estimate("entropy", terms, draws, chunk)


def kl_divergence(
    p: Distribution,
    q: Distribution,
    context: Tensor | None = None,
    *,
    draws: int,
    chunk: int = 4096,
    generator: torch.Generator | None = None,
) -> Estimate:
    """KL(p || q) = E log p(x) - log q(x), in nats, by the mean over draws of p.

    Single draws may be negative, and so may be the mean. It is infinite if q is 0 at a draw; then so is the error.

    Args:
        p: where the draws come from.
        q: what it is compared with; of both the density is exact.
        context: for those of the two that are conditional; one estimate for each.
        draws, chunk, generator: as for `entropy`.

    Returns:
        Mean and standard error, float64: (*context batch).

    Raises:
        NotExact: if p or q has only a bound on its density.
        ShapeError: if draws of p are no events of q, or a context is given to none.
        ValueError: for fewer than 2 draws, or a chunk below 1.

    >>> import torch, flowkit as fk
    >>> p, q = fk.Normal((2,)), fk.Normal((2,), loc=1.0)
    >>> found = kl_divergence(p, q, draws=10_000, generator=torch.Generator().manual_seed(0))
    >>> abs(found.mean - 1.0) < 3 * found.standard_error
    tensor(True)
    """
    for name, distribution in (("p", p), ("q", q)):
        _refuse_bound("kl_divergence", name, distribution)
    if context is not None and p.context_ndim is None and q.context_ndim is None:
        raise ShapeError("kl_divergence: a context is given, but neither p nor q is conditional")
    of_p, of_q = (None if one.context_ndim is None else context for one in (p, q))
    # Draws of an unconditional p meet every context of q.
    contexts = q.check_context(of_q) if of_p is None else ()

    def terms(count: int) -> Tensor:
        x, log_p = p.sample_and_log_prob((count,), of_p, **drawn_with(generator))
        x, log_p = (value.unflatten(0, (count, *[1] * len(contexts))) for value in (x, log_p))
        return log_p.double() - q.log_prob(x, of_q).double()

    return _estimate("kl_divergence", terms, draws, chunk)


def _refuse_bound(metric: str, name: str, distribution: Distribution) -> None:
    if not distribution.exact:
        raise NotExact(f"{metric}: {name} has only a bound on its density (exact is False)")


@torch.no_grad()
def _estimate(metric: str, terms: Callable[[int], Tensor], draws: int, chunk: int) -> Estimate:
    """Mean of `terms(count)` over its first dim and over chunks, with its standard error; sums in float64."""
    for name, value, least in (("draws", draws, 2), ("chunk", chunk, 1)):
        if (whole(value) or 0) < least:
            raise ValueError(f"{metric}: {name} is {value!r}, wanted a whole number of at least {least}")
    done, total, squares = 0, torch.zeros(()), torch.zeros(())
    while done < draws:
        count = min(chunk, draws - done)
        values = terms(count).double()
        # Chan's update: a chunk has a sum of squares about its mean, and no difference of large sums is taken.
        variance, centre = torch.var_mean(values, 0, correction=0)
        squares = squares + count * variance
        if done:
            squares = squares + (centre - total / done).square() * (done * count / (done + count))
        total = total + values.sum(0)
        done += count
    mean, error = total / draws, (squares / (draws - 1) / draws).sqrt()
    return Estimate(mean, torch.where(mean.isinf(), torch.inf, error))
