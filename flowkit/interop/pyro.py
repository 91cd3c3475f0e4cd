"""Flows in Pyro's models and guides."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from flowkit.distribution import Distribution
from flowkit.interop.to_torch import FlowDistribution, of_distribution

__all__ = ["as_pyro_distribution"]


def as_pyro_distribution(
    distribution: Distribution,
    context: Tensor | None = None,
    *,
    cache_size: int = 1,
    validate_args: bool | None = None,
) -> Any:
    """A flow, or any distribution of flowkit, for `pyro.sample`: in a model as a prior or likelihood, or in a guide.

    It is what `as_torch_distribution` gives, with the methods that Pyro asks of distributions besides (`to_event`,
    `mask`, `expand_by`, ...). Parameters go to Pyro's optimizer by `pyro.module("flow", flow)`, which stands in the
    model or guide before the sample.

    Args:
        distribution: exact, and with `context_shape` if it is a conditional flow.
        context: (*batch, *its event); its batch is that of the sample's plates.
        cache_size: 1, so that a guide, which draws a sample and asks for its density, runs every net once; 0 for
            gradients of that density by the sample itself.
        validate_args: whether `log_prob` checks shape and support; None for the default of Pyro.

    Returns:
        A Pyro distribution with batch shape the context's batch.

    Raises:
        ImportError: if Pyro is not installed.
        NotExact: if there is only a bound on the density.
        ShapeError: if the context does not fit.

    Reference:
        Bingham et al., "Pyro: Deep Universal Probabilistic Programming", 2019, https://arxiv.org/abs/1810.09538.

    See docs/pyro.md for a flow trained in a model, and one as a guide.
    """
    return of_distribution(_pyro_distribution(), distribution, context, cache_size, validate_args)


@cache
def _pyro_distribution() -> type[FlowDistribution]:
    """The class, made when it is first asked for, since Pyro is no requirement of flowkit."""
    try:
        from pyro.distributions.torch_distribution import TorchDistributionMixin
    except ImportError as error:
        raise ImportError("as_pyro_distribution needs Pyro: pip install pyro-ppl") from error

    return type("PyroFlowDistribution", (FlowDistribution, TorchDistributionMixin), {"__module__": __name__})
