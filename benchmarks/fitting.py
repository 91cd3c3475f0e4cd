"""What the benchmarks of fits share: the same architectures in three libraries, one loop, tables for the docs.

The other libraries are imported only where one of their models is built: zuko's import switches the checks of
`torch.distributions` off everywhere.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import flowkit as fk

PAGE = Path(__file__).parents[1] / "docs" / "densities.md"


class Model(NamedTuple):
    """A flow of any library."""

    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return sum(parameter.numel() for parameter in self.module.parameters())


def flowkit_nsf(features: int, transforms: int, hidden: Sequence[int], bins: int, bound: float) -> Model:
    """Splines conditioned by MADEs, the order reversed from one to the next, and nothing between: as zuko has them."""

    def layer(number: int) -> fk.Autoregressive:
        spline = fk.maps.RationalQuadratic(bins, bound)
        order = range(features) if number % 2 == 0 else range(features)[::-1]
        return fk.Autoregressive(
            spline, fk.nets.MADE(features, spline.num_params, hidden, activation=nn.ReLU, order=order)
        )

    flow = fk.Flow(fk.Chain(*map(layer, range(transforms))), fk.Normal((features,)))
    return Model(flow, flow.log_prob)


def flowkit_maf(features: int, transforms: int, hidden: Sequence[int]) -> Model:
    """The zoo's, without batch norm."""
    flow = fk.zoo.maf(features, transforms, hidden, batch_norm=False)
    return Model(flow, flow.log_prob)


def flowkit_realnvp(features: int, transforms: int, hidden: Sequence[int]) -> Model:
    """The zoo's; it learns one number more in each coupling, the scale of the paper's section 4.1."""
    flow = fk.zoo.realnvp_tabular(features, couplings=transforms, hidden=hidden)
    return Model(flow, flow.log_prob)


def zuko_model(name: str, features: int, transforms: int, hidden: Sequence[int], **options: int) -> Model:
    """`zuko.flows.NSF`, `MAF` or `RealNVP`; its splines have the bound 5."""
    import zuko

    flow = getattr(zuko.flows, name)(features, transforms=transforms, hidden_features=tuple(hidden), **options)
    return Model(flow, lambda x: flow().log_prob(x))


def nflows_nsf(features: int, transforms: int, hidden: Sequence[int], bins: int, bound: float) -> Model:
    """The same as `flowkit_nsf`; nflows wants one width for all hidden layers."""
    from nflows.distributions.normal import StandardNormal
    from nflows.flows.base import Flow
    from nflows.transforms import (
        CompositeTransform,
        MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
        ReversePermutation,
    )

    (width,) = set(hidden)
    parts = []
    for number in range(transforms):
        parts += [ReversePermutation(features)] if number else []
        parts.append(
            MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                features,
                width,
                num_bins=bins,
                tails="linear",
                tail_bound=bound,
                num_blocks=len(hidden) - 1,
                use_residual_blocks=False,
            )
        )
    flow = Flow(CompositeTransform(parts), StandardNormal([features]))
    return Model(flow, flow.log_prob)


def optimize(model: Model, batches: Iterable[Tensor], steps: int, learning_rate: float) -> Iterator[int]:
    """Maximize the mean log-likelihood by Adam, its rate falling to 0 as a cosine; yields after each step."""
    adam = torch.optim.Adam(model.module.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for step, batch in zip(range(1, steps + 1), batches, strict=False):
        adam.zero_grad(set_to_none=True)
        (-model.log_prob(batch).mean()).backward()
        adam.step()
        schedule.step()
        yield step


def mean_and_error(values: Sequence[float]) -> str:
    """The mean and its standard error."""
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """In Markdown; numbers stand to the right."""
    head = [f"| {' | '.join(columns)} |", "|" + "|".join("---" if i == 0 else "--:" for i in range(len(columns))) + "|"]
    return "\n".join([*head, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def write_between_marks(name: str, text: str) -> None:
    """Put `text` between `<!-- name -->` and `<!-- end of name -->` on the page."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page, found = re.subn(
        f"{start}.*?{end}", lambda _: f"{start}\n\n{text}\n\n{end}", PAGE.read_text(), flags=re.DOTALL
    )
    if found != 1:
        raise RuntimeError(f"{PAGE} has {found} places for {name}, wanted one")
    PAGE.write_text(page)
