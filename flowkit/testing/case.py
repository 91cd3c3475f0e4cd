"""What is checked: a copy of a part, and examples to run it on."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowkit.distribution import Distribution
from flowkit.transform import Inverse, Transform, run_forward

COUNT = 8  # examples of a case

Bounds = tuple[float | Tensor, float | Tensor]  # least and greatest; of every element, or of each


@dataclass(frozen=True, kw_only=True)
class TransformCase:
    """A transform in float64 and eval mode, and examples to run it on; made by `TransformCase.of`.

    Attributes:
        transform: the copy under test.
        inputs: (N, *event), float64 or int64.
        latents: (N, *latent event), independent of the inputs.
        context: (N, *its event), or None.
        direction: "forward", or "inverse" if this case is another one turned round.
        part: class of the transform, as messages name it.
        seed: of all noise.
    """

    transform: Transform
    inputs: Tensor
    latents: Tensor
    context: Tensor | None
    direction: str
    part: str
    seed: int

    @classmethod
    def of(
        cls,
        transform: Transform,
        *,
        event_shape: Sequence[int],
        context: Tensor | None = None,
        inputs: Tensor | None = None,
        latents: Tensor | None = None,
        perturb: float = 0.1,
        tails: float = 6.0,
        count: int = COUNT,
        seed: int = 0,
    ) -> TransformCase:
        """Arguments as for `check_transform`."""
        random = torch.Generator().manual_seed(seed)
        device = _device(transform)
        tested = perturb_(copy.deepcopy(transform).double().eval(), perturb, random)
        drawn = draw(transform.domain, (count, *event_shape), random, tails) if inputs is None else _rows(inputs, count)
        case = cls(
            transform=tested,
            inputs=drawn.to(device),
            latents=drawn.to(device),
            context=None if context is None else _rows(context, count).to(device),
            direction="forward",
            part=type(transform).__name__,
            seed=seed,
        )
        if latents is None:
            with torch.no_grad():
                latents = case.copy().run()[0]
            # A rearrangement has no codomain, and any values are as good as others. What draws noise forward may not
            # reach all of its codomain: outside, its inverse has a log-term of minus infinity.
            if transform.codomain is not None and not transform.stochastic_forward:
                latents = draw(transform.codomain, latents.shape, random, tails)
        return replace(case, latents=_rows(latents, count).to(device))

    @property
    def turned(self) -> TransformCase:
        """The same case turned round, so that every property is written for forward alone."""
        return replace(
            self,
            transform=Inverse(self.transform),
            inputs=self.latents,
            latents=self.inputs,
            direction="inverse" if self.direction == "forward" else "forward",
        )

    @property
    def sides(self) -> tuple[TransformCase, TransformCase]:
        """This case and this case turned round."""
        return self, self.turned

    def copy(self) -> TransformCase:
        """The same case on a copy of the transform."""
        return replace(self, transform=copy.deepcopy(self.transform))

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one example."""
        return self.inputs.shape[1:]

    @property
    def bijective(self) -> bool:
        """Whether neither direction draws noise."""
        return not (self.transform.stochastic_forward or self.transform.stochastic_inverse)

    def generator(self, seed: int | None = None) -> torch.Generator:
        """A new generator on the device of the examples, from the case's seed or another."""
        return torch.Generator(self.inputs.device).manual_seed(self.seed if seed is None else seed)

    def run(
        self,
        x: Tensor | None = None,
        context: Tensor | None = None,
        *,
        transform: Transform | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(z, l) of the case's examples, or of other ones; all noise has the case's seed."""
        if x is None:
            x, context = self.inputs, self.context
        return run_forward(transform or self.transform, x, context, generator or self.generator())

    def batch(self, *shape: int) -> tuple[Tensor, Tensor | None]:
        """Inputs and contexts with these batch dims, the examples in turn."""
        return _batch(self.inputs, shape), None if self.context is None else _batch(self.context, shape)

    def state(self) -> dict[str, Tensor]:
        """All parameters and buffers, persistent or not."""
        return {**dict(self.transform.named_parameters()), **dict(self.transform.named_buffers())}


@dataclass(frozen=True, kw_only=True)
class DistributionCase:
    """A distribution in float64 and eval mode, and examples to run it on; made by `DistributionCase.of`.

    Attributes:
        distribution: the copy under test.
        inputs: (N, *event), draws of its own unless they were given.
        context: (N, *its event), or None.
        bounds: ends of the interval that holds every element, if the density is cut off there; or None.
        part: class of the distribution, as messages name it.
        seed: of all noise.
    """

    distribution: Distribution
    inputs: Tensor
    context: Tensor | None
    bounds: Bounds | None
    part: str
    seed: int

    @classmethod
    def of(
        cls,
        distribution: Distribution,
        *,
        context: Tensor | None = None,
        inputs: Tensor | None = None,
        bounds: Bounds | None = None,
        perturb: float = 0.1,
        count: int = COUNT,
        seed: int = 0,
    ) -> DistributionCase:
        """Arguments as for `check_distribution`, and `count`, the number of examples."""
        random = torch.Generator().manual_seed(seed)
        device = _device(distribution)
        tested = perturb_(copy.deepcopy(distribution).double().eval(), perturb, random)
        context = None if context is None else _rows(context, count).to(device)
        if inputs is None:
            generator = torch.Generator(device).manual_seed(seed)
            drawn = copy.deepcopy(tested).sample((count,) if context is None else (), context, generator=generator)
            inputs = drawn
        return cls(
            distribution=tested,
            inputs=_rows(inputs, count).to(device),
            context=context,
            bounds=bounds,
            part=type(distribution).__name__,
            seed=seed,
        )

    def copy(self) -> DistributionCase:
        """The same case on a copy of the distribution."""
        return replace(self, distribution=copy.deepcopy(self.distribution))

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one example."""
        return self.inputs.shape[1:]

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The bounds of each element of a flattened event."""
        assert self.bounds is not None
        low, high = (torch.as_tensor(end).to(self.inputs).expand(self.event_shape).flatten() for end in self.bounds)
        return low, high

    @property
    def exact(self) -> bool:
        """Whether `log_prob` is the log-density itself."""
        return bool(getattr(self.distribution, "exact", True))

    @property
    def discrete(self) -> bool:
        """Whether the events are integers."""
        return not self.inputs.is_floating_point()

    def generator(self, seed: int | None = None) -> torch.Generator:
        """A new generator on the device of the examples, from the case's seed or another."""
        return torch.Generator(self.inputs.device).manual_seed(self.seed if seed is None else seed)

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, distribution: Distribution | None = None) -> Tensor:
        """Log-density; where it is a bound, the noise has the case's seed."""
        drawn = {} if self.exact else {"generator": self.generator()}
        return (distribution or self.distribution).log_prob(x, context, **drawn)

    def sample(
        self, shape: Sequence[int], context: Tensor | None = None, *, distribution: Distribution | None = None
    ) -> Tensor:
        """Samples of the case's distribution or of another one, from the case's seed."""
        return (distribution or self.distribution).sample(shape, context, generator=self.generator())

    def batch(self, *shape: int) -> tuple[Tensor, Tensor | None]:
        """Inputs and contexts with these batch dims, the examples in turn."""
        return _batch(self.inputs, shape), None if self.context is None else _batch(self.context, shape)

    def state(self) -> dict[str, Tensor]:
        """All parameters and buffers, persistent or not."""
        return {**dict(self.distribution.named_parameters()), **dict(self.distribution.named_buffers())}


Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def perturb_(module: Module, scale: float, generator: torch.Generator) -> Module:
    """Add noise of deviation `scale` to every parameter that requires a gradient, in place, and return the module.

    What requires none may be a constant of the part, such as a permutation.
    """
    for parameter in filter(lambda parameter: parameter.requires_grad, module.parameters()):
        noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        parameter.add_((scale * noise).to(parameter))
    return module


def draw(
    constraint: constraints.Constraint | None, shape: Sequence[int], generator: torch.Generator, tails: float = 6.0
) -> Tensor:
    """Values of a set, float64 or int64. Of the real line they are normal, the last quarter `tails` times wider.

    Raises:
        ValueError: for a set that no bounds describe.
    """
    base, low, high = bounds_of(constraint)
    if base is not None and base.is_discrete and low is not None and high is not None:
        if isinstance(high, Tensor):  # of each element of an event
            part = torch.rand(tuple(shape), dtype=torch.float64, generator=generator)
            return low + (part * (high.cpu() - low + 1)).long()
        return torch.randint(int(low), int(high) + 1, tuple(shape), generator=generator)
    normal = torch.randn(tuple(shape), dtype=torch.float64, generator=generator)
    if base is None or isinstance(base, type(constraints.real)):  # a copy is another object
        if normal.ndim:
            normal[len(normal) - len(normal) // 4 :] *= tails
        return normal
    if low is not None and high is not None:
        # Strictly inside, where a finite slope is still finite in float32.
        return low + (high - low) * (0.001 + 0.998 * torch.rand(normal.shape, dtype=normal.dtype, generator=generator))
    if low is not None:
        return low + normal.exp()
    if high is not None:
        return high - normal.exp()
    raise ValueError(f"no way to draw values from {constraint}; give them as an argument")


def bounds_of(constraint: constraints.Constraint | None) -> tuple[constraints.Constraint | None, Any, Any]:
    """The set that every element of a value lies in, and its ends; None for an end that it has not."""
    base = getattr(constraint, "base_constraint", constraint)  # of an independent constraint
    return base, getattr(base, "lower_bound", None), getattr(base, "upper_bound", None)


def _device(module: nn.Module) -> torch.device:
    return next((t.device for t in [*module.parameters(), *module.buffers()]), torch.device("cpu"))


def _rows(values: Tensor, count: int) -> Tensor:
    """`count` rows, taken in turn; float64 if they are floating."""
    return _batch(values.double() if values.is_floating_point() else values, (count,))


def _batch(rows: Tensor, shape: Sequence[int]) -> Tensor:
    index = torch.arange(math.prod(shape), device=rows.device) % len(rows)
    return rows[index].reshape((*shape, *rows.shape[1:]))
