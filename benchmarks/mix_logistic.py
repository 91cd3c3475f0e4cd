"""The logit of a mixture-of-logistics CDF: forward with the log-derivative, with backward, and inverse.

No library on PyPI has it. The baselines are the three forms that published Flow++ code is written in: sums in log
space, the CDF in linear space, and the CDF in log space; the last two exponentiate and take the logit afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from benchmarks.measure import Cell, Contestant, Contract, compiled
from flowkit.functional.logistic import logit_mix_logistic_cdf, logit_mix_logistic_cdf_inverse

TITLE = "The mixture-of-logistics transform, (16, 6, 16, 16) with 32 components"

# Log-scales: normal with this deviation, or uniform between two ends. Means and logits are standard normal.
REGIMES = {
    "init": (0.3, None),
    "wide": (-7.0, 3.0),
    "sharpish": (-7.0, -3.0),
    "sharp": (-7.0, -7.0),
    "broad": (1.0, 3.0),
}
Form = Callable[..., tuple[Tensor, Tensor]]


def inputs(regime: str, shape: Sequence[int], components: int) -> list[Tensor]:
    """x, logits, means and log-scales, with the components where a convolution puts them: before height and width."""
    generator = torch.Generator().manual_seed(0)
    low, high = REGIMES[regime]
    wide = (*shape[:2], components, *shape[2:])
    logits, means, noise = (torch.randn(wide, generator=generator) for _ in range(3))
    log_scales = low * noise if high is None else torch.rand(wide, generator=generator) * (high - low) + low
    x = torch.randn(tuple(shape), generator=generator)
    return [x, *(t.movedim(2, -1) for t in (logits, means, log_scales))]


def log_space(x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """Everything by sums of logarithms: right wherever its last subtraction leaves digits."""
    z = (x.unsqueeze(-1) - means) * torch.exp(-log_scales)
    log_weights, below, above = logits.log_softmax(-1), logsigmoid(z), logsigmoid(-z)
    log_cdf, log_survival = (log_weights + below).logsumexp(-1), (log_weights + above).logsumexp(-1)
    log_density = (log_weights + below + above - log_scales).logsumexp(-1)
    return log_cdf - log_survival, log_density - log_cdf - log_survival


def linear_cdf(x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """The CDF in linear space, then its logit, kept from 0 and 1 by 1e-6."""
    z = (x.unsqueeze(-1) - means) * torch.exp(-log_scales)
    cdf = (logits.softmax(-1) * z.sigmoid()).sum(-1)
    log_density = (logits.log_softmax(-1) + logsigmoid(z) + logsigmoid(-z) - log_scales).logsumexp(-1)
    inner = cdf.clamp(1e-6, 1 - 1e-6)
    log_cdf, log_survival = inner.log(), torch.log1p(-inner)
    return log_cdf - log_survival, log_density - log_cdf - log_survival


def log_cdf(x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """The CDF in log space, then its exponential and the logit of that."""
    z = (x.unsqueeze(-1) - means) * torch.exp(-log_scales)
    log_weights = logits.log_softmax(-1)
    cdf = (log_weights + logsigmoid(z)).logsumexp(-1).exp()
    log_density = (log_weights + logsigmoid(z) + logsigmoid(-z) - log_scales).logsumexp(-1)
    y = -(1 / cdf - 1).log()
    return y, log_density + y.neg().exp().log1p() * 2 + y


def log_space_inverse(y: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """Bisection on the logit, in log space."""

    def too_high(x: Tensor) -> Tensor:
        return log_space(x, logits, means, log_scales)[0] > y

    x = bisect(too_high, means, log_scales, steps=100, widen=True)
    return x, -log_space(x, logits, means, log_scales)[1]


def linear_cdf_inverse(y: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """Bisection on the CDF in linear space, to 1e-10 or a hundred steps."""
    rates, weights, level = torch.exp(-log_scales), logits.softmax(-1), y.sigmoid()
    distance = torch.full((), torch.inf)

    def too_high(x: Tensor) -> Tensor:
        nonlocal distance
        cdf = (weights * ((x.unsqueeze(-1) - means) * rates).sigmoid()).sum(-1)
        distance = (cdf - level).abs().max()
        return cdf > level

    x = bisect(too_high, means, log_scales, steps=100, done=lambda: bool(distance < 1e-10))
    return x, -linear_cdf(x, logits, means, log_scales)[1]


def log_cdf_inverse(y: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """Bisection on the CDF by way of its logarithm, from a level kept from 0 and 1 by 1e-5."""
    rates, log_weights, level = torch.exp(-log_scales), logits.log_softmax(-1), y.sigmoid().clamp(1e-5, 1 - 1e-5)

    def too_high(x: Tensor) -> Tensor:
        return (log_weights + logsigmoid((x.unsqueeze(-1) - means) * rates)).logsumexp(-1).exp() > level

    x = bisect(too_high, means, log_scales, steps=45)
    return x, -log_cdf(x, logits, means, log_scales)[1]


def bisect(
    too_high: Callable[[Tensor], Tensor],
    means: Tensor,
    log_scales: Tensor,
    steps: int,
    done: Callable[[], bool] = lambda: False,
    widen: bool = False,
) -> Tensor:
    """From the usual bracket, twenty times the sum of all scales beyond the means; stops when no x moves any more.

    That bracket need not hold the solution; `widen` doubles it until it does.
    """
    reach, least, most = 20 * log_scales.exp().sum(-1), means.amin(-1), means.amax(-1)
    while widen and bool((too_high(least - reach) | ~too_high(most + reach)).any()):
        reach = 2 * reach
    lower, upper = least - reach, most + reach
    for _ in range(steps):
        middle = (lower + upper) / 2
        high = too_high(middle)
        if done() or bool(((middle == lower) | (middle == upper)).all()):
            break
        lower, upper = torch.where(high, lower, middle), torch.where(high, middle, upper)
    return (lower + upper) / 2


def gradients(form: Form, arguments: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A forward and a backward pass."""
    leaves = [t.detach().requires_grad_() for t in arguments]
    y, log_derivative = form(*leaves)
    return torch.autograd.grad(y.sum() + log_derivative.sum(), leaves)


def cells(contract: Contract) -> Iterator[Cell]:
    """Forward, forward with backward, inverse, in every regime of scales."""
    shape, components = ((2, 2, 4, 4), 4) if contract.tiny else ((16, 6, 16, 16), 32)
    forms: dict[str, tuple[Form, Form]] = {
        "flowkit": (logit_mix_logistic_cdf, logit_mix_logistic_cdf_inverse),
        "flowkit, compiled": (
            compiled(logit_mix_logistic_cdf, contract),
            compiled(logit_mix_logistic_cdf_inverse, contract),
        ),
        "log space": (log_space, log_space_inverse),
        "linear CDF": (linear_cdf, linear_cdf_inverse),
        "log CDF": (log_cdf, log_cdf_inverse),
    }
    for regime in REGIMES:
        arguments = inputs(regime, shape, components)
        wide = [t.double() for t in arguments]
        exact = log_space(*wide)
        slopes = gradients(log_space, wide)
        back = [exact[0].float(), *arguments[1:]]

        def error(found: tuple[Tensor, Tensor], exact=exact) -> float:
            """Of both results, relative where y or they are above 1."""
            scale = torch.maximum(exact[0].abs(), exact[1].abs()).clamp(min=1)
            return max(((one - truth).abs() / scale).max().item() for one, truth in zip(found, exact, strict=True))

        def gradient_error(found: tuple[Tensor, ...], slopes=slopes) -> float:
            """Relative to the largest entry."""
            pairs = zip(found, slopes, strict=True)
            return max(((one - truth).abs().max() / truth.abs().max()).item() for one, truth in pairs)

        def residual(found: tuple[Tensor, Tensor], back=back) -> float:
            """Of x in y, over what rounding x and y costs."""
            x = found[0].double()
            again, log_derivative = log_space(x, *(t.double() for t in back[1:]))
            return ((again - back[0]).abs() / (1 + back[0].abs() + x.abs() * log_derivative.exp())).max().item()

        yield Cell(
            f"{regime}, forward",
            {name: Contestant(lambda f=f, a=arguments: f(*a), error) for name, (f, _) in forms.items()},
            tolerance=1e-4,
            memory=True,
        )
        yield Cell(
            f"{regime}, forward and backward",
            {
                name: Contestant(lambda f=f, a=arguments: gradients(f, a), gradient_error)
                for name, (f, _) in forms.items()
            },
            tolerance=1e-3,
            memory=True,
        )
        yield Cell(
            f"{regime}, inverse",
            {name: Contestant(lambda f=f, b=back: f(*b), residual) for name, (_, f) in forms.items()},
            tolerance=1e-4,
        )
