"""Bounds on the log-likelihood, and bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flowkit.distribution import Distribution, drawn_with
from flowkit.errors import ShapeError

__all__ = ["bits_per_dim", "log_prob_bound"]


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
    if draws < 1:
        raise ValueError(f"log_prob_bound: draws is {draws}, wanted at least 1")
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
