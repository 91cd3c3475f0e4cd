"""The laws that every transform and every distribution keeps, as checks to run on parts of your own.

`check_transform(part, event_shape=...)` and `check_distribution(distribution)` run every property of `PROPERTIES` and
of `DISTRIBUTION_PROPERTIES`. A property is a function of a case, to be run by itself as well: so a table of cases and a
table of properties make a test suite. What fails says which property, where, by how much, and what usually causes it.

Everything is checked on copies with their parameters moved by a little noise, because many parts start as the identity,
where most faults do not show. Arithmetic is checked in float64, in eval mode unless a property says otherwise.
"""

from __future__ import annotations

import copy
import functools
import io
import math
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError
from torch.distributions import constraints
from torch.func import functional_call, jacrev, stack_module_state, vmap

from flowkit.distribution import Distribution
from flowkit.errors import DomainError, NotExact, ShapeError
from flowkit.functional.precision import log_term_dtype
from flowkit.transform import Inverse, Transform, run_forward

__all__ = [
    "DISTRIBUTION_PROPERTIES",
    "PROPERTIES",
    "ConformanceError",
    "DistributionCase",
    "TransformCase",
    "check_distribution",
    "check_transform",
    "compiles",
    "density_compiles",
    "perturb_",
]

# Tolerances. An error passes if it is at most tolerance * (1 + |wanted|), in float64, unless it says otherwise.
LAW = 1e-8  # rounding of 1e-16, times the condition of a whole flow and of numerical inverses in it
LOG_TERM = 1e-8  # absolute: the same for the log-determinant of an automatic Jacobian
ROUNDING = 1e-9  # the same sums in another order, times that condition
GRADIENT = 1e-3  # relative, 1e-5 absolute: what central differences with a step of 1e-6 can tell
INTEGRAL = 2e-3  # quadrature of a density, 2,001 points in one dim and 301 x 301 in two
ALARM = 1e-6  # how often a calibrated statistical test fails by chance, were its seed not fixed

COUNT = 8  # examples of a case
SAMPLES = 20000  # tell a deviation 10 % too small, which is 0.025 in Kolmogorov's distance

Check = TypeVar("Check", bound=Callable[..., None])


class ConformanceError(AssertionError):
    """A part breaks a property that every part has.

    Attributes:
        part: class of the part.
        property: name of the property, a key of `PROPERTIES` or `DISTRIBUTION_PROPERTIES`.
        finding: what was found.
    """

    def __init__(self, part: str, property: str, finding: str, cause: str) -> None:
        super().__init__(f"{part} fails {property!r}: {finding}\nUsual cause: {cause}.")
        self.part, self.property, self.finding = part, property, finding


class Finding(AssertionError):
    """What a property found, before it is known of whom."""


# ---------------------------------------------------------------------------------------------------------------------
# Cases


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
        """Arguments as for `check_transform`, and `count`, the number of examples."""
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
                latents = case.run()[0]
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

    @property
    def event_shape(self) -> torch.Size:
        return self.inputs.shape[1:]

    @property
    def bijective(self) -> bool:
        """Whether neither direction draws noise."""
        return not (self.transform.stochastic_forward or self.transform.stochastic_inverse)

    def generator(self, seed: int | None = None) -> torch.Generator:
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
    bounds: tuple[float, float] | None
    part: str
    seed: int

    @classmethod
    def of(
        cls,
        distribution: Distribution,
        *,
        context: Tensor | None = None,
        inputs: Tensor | None = None,
        bounds: tuple[float, float] | None = None,
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
            inputs = tested.sample((count,) if context is None else (), context, generator=generator)
        return cls(
            distribution=tested,
            inputs=_rows(inputs, count).to(device),
            context=context,
            bounds=bounds,
            part=type(distribution).__name__,
            seed=seed,
        )

    @property
    def event_shape(self) -> torch.Size:
        return self.inputs.shape[1:]

    @property
    def exact(self) -> bool:
        """Whether `log_prob` is the log-density itself."""
        return bool(getattr(self.distribution, "exact", True))

    @property
    def discrete(self) -> bool:
        return not self.inputs.is_floating_point()

    def generator(self, seed: int | None = None) -> torch.Generator:
        return torch.Generator(self.inputs.device).manual_seed(self.seed if seed is None else seed)

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, distribution: Distribution | None = None) -> Tensor:
        """Log-density; where it is a bound, the noise has the case's seed."""
        drawn = {} if self.exact else {"generator": self.generator()}
        return (distribution or self.distribution).log_prob(x, context, **drawn)

    def sample(
        self, shape: Sequence[int], context: Tensor | None = None, *, distribution: Distribution | None = None
    ) -> Tensor:
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
    """Add noise of deviation `scale` to every parameter, in place, and return the module."""
    for parameter in module.parameters():
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
    base = getattr(constraint, "base_constraint", constraint)  # of an independent constraint
    low, high = getattr(base, "lower_bound", None), getattr(base, "upper_bound", None)
    if base is not None and base.is_discrete and low is not None and high is not None:
        return torch.randint(int(low), int(high) + 1, tuple(shape), generator=generator)
    normal = torch.randn(tuple(shape), dtype=torch.float64, generator=generator)
    if base is None or base is constraints.real:
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


def _device(module: nn.Module) -> torch.device:
    return next((t.device for t in [*module.parameters(), *module.buffers()]), torch.device("cpu"))


def _rows(values: Tensor, count: int) -> Tensor:
    """`count` rows, taken in turn; float64 if they are floating."""
    return _batch(values.double() if values.is_floating_point() else values, (count,))


def _batch(rows: Tensor, shape: Sequence[int]) -> Tensor:
    index = torch.arange(math.prod(shape), device=rows.device) % len(rows)
    return rows[index].reshape((*shape, *rows.shape[1:]))


# ---------------------------------------------------------------------------------------------------------------------
# How a property says what it found

PROPERTIES: dict[str, Callable[[TransformCase], None]] = {}
DISTRIBUTION_PROPERTIES: dict[str, Callable[[DistributionCase], None]] = {}


def _property(table: dict[str, Any], cause: str, name: str | None = None) -> Callable[[Check], Check]:
    """Enter a check into a table; what it finds, or whatever else it raises, becomes a `ConformanceError`."""

    def enter(check: Check) -> Check:
        label = name or check.__name__

        @functools.wraps(check)
        def checked(case: TransformCase | DistributionCase, **options: Any) -> None:
            try:
                with _own_randomness(case):
                    check(case, **options)
            except Finding as finding:
                raise ConformanceError(case.part, label, str(finding), cause) from None
            except Exception as error:
                raise ConformanceError(case.part, label, f"{type(error).__name__}: {error}", cause) from error

        table[label] = checked
        return checked  # type: ignore[return-value]

    return enter


_of_transforms = functools.partial(_property, PROPERTIES)
_of_distributions = functools.partial(_property, DISTRIBUTION_PROPERTIES)


@contextmanager
def _own_randomness(case: TransformCase | DistributionCase) -> Iterator[None]:
    """The global generator starts at the case's seed, and goes back to where it was."""
    device = case.inputs.device
    forked = {"devices": []} if device.type == "cpu" else {"devices": [device], "device_type": device.type}
    with torch.random.fork_rng(**forked), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # of vmap, where it falls back to a loop
        torch.manual_seed(case.seed)
        yield


def _agree(
    what: str, got: Tensor, wanted: Tensor, tolerance: float, inputs: Tensor | None = None, relative: bool = True
) -> None:
    """Refuse a `got` off by more than tolerance * (1 + |wanted|), naming the worst place and the input there."""
    if got.shape != wanted.shape:
        raise Finding(f"{what} has shape {tuple(got.shape)}, wanted {tuple(wanted.shape)}")
    if not got.numel():
        return
    got, wanted = got.detach().double(), wanted.detach().double()
    scale = 1 + wanted.abs() if relative else torch.ones_like(wanted)
    error = torch.where(got == wanted, 0.0, (got - wanted).abs() / scale).nan_to_num(math.inf, math.inf)
    if bool(error.max() <= tolerance):
        return
    place = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    at = f" at {list(place)}" if place else ""
    shown = ""
    if inputs is not None:
        example = inputs[place[0]] if place and inputs.ndim and place[0] < len(inputs) else inputs
        shown = f" Input: {_abbreviated(example)}."
    allowed = f"{tolerance:.0e}{' * (1 + |wanted|)' if relative else ''}"
    raise Finding(
        f"{what}{at} is {got[place].item():.10g}, wanted {wanted[place].item():.10g}: off by "
        f"{(got[place] - wanted[place]).abs().item():.3g}, allowed {allowed}.{shown}"
    )


def _same(what: str, got: Tensor, wanted: Tensor) -> None:
    """Refuse a `got` that is not bit for bit `wanted`."""
    if got.dtype != wanted.dtype:
        raise Finding(f"{what} is {got.dtype}, wanted {wanted.dtype}")
    _agree(what, got, wanted, 0.0)


def _abbreviated(value: Tensor) -> str:
    numbers = ", ".join(f"{number:.6g}" for number in value.detach().flatten()[:6].tolist())
    return f"[{numbers}{', ...' if value.numel() > 6 else ''}] of shape {tuple(value.shape)}"


def _finite(what: str, value: Tensor, inputs: Tensor) -> None:
    if not bool(value.isfinite().all()):
        raise Finding(f"{what} is not finite everywhere. Inputs: {_abbreviated(inputs)}")


# ---------------------------------------------------------------------------------------------------------------------
# Transforms


def check_transform(
    transform: Transform,
    *,
    event_shape: Sequence[int],
    context: Tensor | None = None,
    inputs: Tensor | None = None,
    latents: Tensor | None = None,
    perturb: float = 0.1,
    tails: float = 6.0,
    skip: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Run every property of `PROPERTIES` on a transform. It passes, or says what is wrong.

    The transform is left as it is: copies are checked, in float64 and eval mode. What draws noise must do so through
    the generator that it is given.

    Args:
        transform: any transform; its two booleans say which laws hold.
        event_shape: shape of one x, without batch dims. () checks an elementwise map on single numbers.
        context: (N, *event of the context), any N: one context for each example, in turn. None for a transform that
            reads none; what is given must make a difference.
        inputs: (N, *event_shape), drawn from `transform.domain` if not given.
        latents: (N, *event of z), drawn from `transform.codomain` if not given.
        perturb: deviation of the noise that is added to every parameter of the copy, so that a part that starts as
            the identity is tested away from it; 0 for parameters that must stay as they are.
        tails: how much wider than normal the last quarter of the drawn real examples is; 1 for a whole flow that
            saturates there, as behind a logit, where no arithmetic keeps the digits.
        skip: names of properties to leave out.
        seed: of everything that is drawn.

    Raises:
        ConformanceError: for the first property that fails.
        ValueError: for a name in `skip` that is no property, or a domain that no bounds describe.

    >>> import flowkit as fk
    >>> check_transform(fk.Logit(margin=0.05), event_shape=(3,), skip=["compiles"])
    """
    _refuse_unknown(skip, PROPERTIES)
    case = TransformCase.of(
        transform,
        event_shape=event_shape,
        context=context,
        inputs=inputs,
        latents=latents,
        perturb=perturb,
        tails=tails,
        seed=seed,
    )
    for name, check in PROPERTIES.items():
        if name not in skip:
            check(case)


def _refuse_unknown(skip: Sequence[str], table: dict[str, Any]) -> None:
    for name in skip:
        if name not in table:
            raise ValueError(f"skip: {name!r} is no property; there are {', '.join(table)}")


# ---------------------------------------------------------------------------------------------------------------------
# Transforms: what comes out, before whether it is right


@_of_transforms("noise that is not drawn with the generator that was given, or a boolean that does not say it is drawn")
def noise(case: TransformCase) -> None:
    """Noise comes from the given generator alone: one seed one draw, the global generator stays; else there is none."""
    for side in case.sides:
        x, context = side.batch(len(side.inputs))
        with torch.no_grad():
            torch.manual_seed(4)
            before = torch.random.get_rng_state()
            first = side.run(x, context, generator=side.generator(5))
            if not torch.equal(torch.random.get_rng_state(), before):
                raise Finding(f"{side.direction} draws from the global generator, in spite of the one given, if any")
            if not side.transform.stochastic_forward:
                continue
            again = side.run(x, context, generator=side.generator(5))
            for name, one, two in zip("zl", again, first, strict=True):
                _same(f"{side.direction}: {name} of a second call with the same seed", one, two)
            other = side.run(x, context, generator=side.generator(7))
            if all(torch.equal(one, two) for one, two in zip(other, first, strict=True)):
                raise Finding(f"{side.direction} should draw noise, but another seed gives the same")
            if not all(value.isfinite().all() for value in side.transform(x, context)):
                raise Finding(f"{side.direction} without a generator is not finite")


@_of_transforms(
    "state that a call changes (running averages, caches, a flag for the first call), an in-place operation on x, or a "
    "branch on `self.training` besides dropout"
)
def purity(case: TransformCase) -> None:
    """A call changes neither the part nor its arguments, gives the same twice, and the same in train and eval mode.

    With dropout in the part, the two modes may differ.
    """
    for side in case.sides:
        with torch.no_grad():
            x, context = side.batch(len(side.inputs))  # copies
            wanted = side.run(x, context)
            _same(f"{side.direction}: x after the call", x, side.inputs)
        for training in (False, True):
            mode = f"{side.direction} in {'train' if training else 'eval'} mode"
            transform = copy.deepcopy(side.transform).train(training)
            x = side.inputs.clone()
            context = None if side.context is None else side.context.clone()
            with torch.no_grad():
                first = side.run(x, context, transform=transform)
                _same(f"{mode}: x after the call", x, side.inputs)
                if context is not None and side.context is not None:
                    _same(f"{mode}: the context after the call", context, side.context)
                for name, value in replace(side, transform=transform).state().items():
                    _same(f"{mode}: {name} after the call", value, side.state()[name])
                if training and has_dropout(transform):
                    continue
                second = side.run(x, context, transform=transform)
            for name, one, two, three in zip("zl", first, second, wanted, strict=True):
                _same(f"{mode}: {name} of a second call, against the first,", two, one)
                _same(f"{mode}: {name}, against that in eval mode,", one, three)


def has_dropout(module: nn.Module) -> bool:
    """Whether some dropout in it has a probability above 0."""
    return any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in module.modules())


@_of_transforms(
    "a constant tensor of a dtype of its own; `torch.tensor(...)` in the middle of a formula; what a net gives under "
    "autocast, not cast back to the dtype of x"
)
def dtypes(case: TransformCase) -> None:
    """z has the dtype of x, and l has promote_types(x.dtype, float32): in float64, float32, bfloat16 and autocast.

    bfloat16 may be refused by a `DomainError`. Integers have no such dtype: the module's counts for them.
    """
    for side in case.sides:
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            transform = copy.deepcopy(side.transform).to(dtype)
            x, context = (_cast(value, dtype) for value in (side.inputs, side.context))
            try:
                with torch.no_grad():
                    results = side.run(x, context, transform=transform)
            except DomainError:
                if dtype is torch.bfloat16:
                    continue
                raise
            _check_dtypes(f"{side.direction} in {dtype}", x, results, dtype)
        transform = copy.deepcopy(side.transform).float()
        x, context = (_cast(value, torch.float32) for value in (side.inputs, side.context))
        with torch.autocast(side.inputs.device.type, dtype=torch.bfloat16):
            results = side.run(x, context, transform=transform)
        _check_dtypes(f"{side.direction} in torch.float32 under autocast", x, results, torch.float32)
        for name, value in zip("zl", results, strict=True):
            if value.isnan().any():
                raise Finding(f"{side.direction} under autocast: {name} is not a number. Inputs: {_abbreviated(x)}")


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _check_dtypes(what: str, x: Tensor, results: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    z, l = results
    if z.is_floating_point() and z.dtype != dtype:
        raise Finding(f"{what}: z is {z.dtype}, wanted {dtype}")
    if not (z.is_floating_point() or x.is_floating_point()):
        raise Finding(f"{what}: integers go to integers, {z.dtype}")
    if l.dtype != log_term_dtype(dtype):
        raise Finding(f"{what}: l is {l.dtype}, wanted {log_term_dtype(dtype)}")


@_of_transforms("a batch dim taken for an event dim, or `in_ndim` and `out_ndim` that say something else than the code")
def batch_shapes(case: TransformCase) -> None:
    """Any batch dims pass, none and empty ones included: z is (*batch, *latent event), l is (*batch)."""
    for side in case.sides:
        event_ndim = side.transform.in_ndim
        extra = len(side.event_shape) - event_ndim  # an elementwise map has part of the event as batch dims
        if extra < 0:
            raise Finding(f"in_ndim is {event_ndim}, but one x has shape {tuple(side.event_shape)}")
        with torch.no_grad():
            latent = side.run()[0].shape[1:]
            for batch in [(), (3,), (2, 3), (0,), (2, 0)]:
                x, context = side.batch(*batch)
                z, l = side.run(x, context)
                found = f"{side.direction} for a batch {batch}"
                if z.shape != (*batch, *latent):
                    raise Finding(f"{found}: z has shape {tuple(z.shape)}, wanted {(*batch, *latent)}")
                if l.shape != (*batch, *side.event_shape[:extra]):
                    wanted = (*batch, *side.event_shape[:extra])
                    raise Finding(f"{found}: l has shape {tuple(l.shape)}, wanted {wanted}")
        if len(latent) - extra != side.transform.out_ndim:
            raise Finding(
                f"{side.direction}: out_ndim is {side.transform.out_ndim}, but in_ndim is {event_ndim} and an event of "
                f"shape {tuple(side.event_shape)} becomes {tuple(latent)}"
            )


# ---------------------------------------------------------------------------------------------------------------------
# Transforms: the laws


def _undone(case: TransformCase) -> None:
    """inverse(forward(x)) gives (x, -l), if the inverse draws no noise."""
    if case.transform.stochastic_inverse:
        return
    back = "inverse" if case.direction == "forward" else "forward"
    with torch.no_grad():
        z, l = case.run()
        x, minus = run_forward(Inverse(case.transform), z, case.context, None)
    _agree(f"{back}({case.direction}(x))", x, case.inputs, LAW, case.inputs)
    _agree(f"the log-term of {back} after {case.direction}, which is minus its own,", minus, -l, LAW, case.inputs)


@_of_transforms(
    "the two directions read different parameters, halves or orders; values are clipped or clamped; a sign of l"
)
def law_1(case: TransformCase) -> None:
    """If the inverse draws no noise, inverse(forward(x)) gives (x, -l)."""
    _undone(case)


@_of_transforms(
    "the two directions read different parameters, halves or orders; values are clipped or clamped; a sign of l"
)
def law_2(case: TransformCase) -> None:
    """If the forward draws no noise, forward(inverse(z)) gives (z, -l)."""
    _undone(case.turned)


@_of_transforms(
    "a sign; a sum over the wrong dims; a missing factor, such as the H W of a map shared by all pixels; the log-term "
    "of the other direction"
)
def log_term(case: TransformCase) -> None:
    """Where no noise is drawn, l of either direction is log|det| of its Jacobian, as autograd finds it."""
    if not case.bijective:
        return
    for side in case.sides:
        if not side.inputs.is_floating_point():
            continue
        # Examples do not influence one another, so the sum over them has all their Jacobians as its own.
        jacobian = torch.autograd.functional.jacobian(
            lambda x, side=side: side.run(x, side.context)[0].reshape(len(x), -1).sum(0), side.inputs
        )
        matrices = jacobian.reshape(*jacobian.shape[:2], -1).movedim(1, 0)
        if matrices.shape[1] != matrices.shape[2]:
            raise Finding(
                f"{side.direction} takes {matrices.shape[2]} elements to {matrices.shape[1]}: that is no bijection"
            )
        with torch.no_grad():
            l = side.run()[1].reshape(len(side.inputs), -1).sum(1)  # an elementwise map has one for each element
        _agree(
            f"{side.direction}: l against log|det| of the Jacobian,",
            l,
            torch.linalg.slogdet(matrices).logabsdet,
            LOG_TERM,
            side.inputs,
            relative=False,
        )


@_of_transforms("`domain` or `codomain` names another set; integers leave as floats, or the other way")
def domain(case: TransformCase) -> None:
    """Values of `domain` go to finite values of `codomain`, and integers come back as integers."""
    transform = case.transform
    with torch.no_grad():
        z, l = case.run()
        x, _ = case.turned.run()
    _finite("z of values in the domain", z, case.inputs)
    _finite("l of values in the domain", l, case.inputs)
    if transform.codomain is not None and not bool(transform.codomain.check(z).all()):
        raise Finding(f"z has values outside the codomain {transform.codomain}: {_abbreviated(z)}")
    if transform.domain is not None and transform.domain.is_discrete:
        if x.is_floating_point():
            raise Finding(f"the domain {transform.domain} is discrete, but inverse gives {x.dtype}")
        if not bool(transform.domain.check(x).all()):
            raise Finding(f"inverse gives values outside the domain {transform.domain}: {_abbreviated(x)}")


# ---------------------------------------------------------------------------------------------------------------------
# Transforms: examples


@_of_transforms("a mean, a norm or a sum over the batch; a formula that reads the batch size; a view of strided memory")
def independence(case: TransformCase) -> None:
    """What comes of an example depends neither on its companions nor on how it lies in memory."""
    for side in case.sides:
        if side.transform.stochastic_forward:
            continue  # the noise of an example depends on its place
        with torch.no_grad():
            z, l = side.run()
            count = len(side.inputs)
            for i in range(count):
                one = side.inputs[i], None if side.context is None else side.context[i]
                z_alone, l_alone = side.run(*one)
                _agree(f"{side.direction}: z of example {i} alone", z_alone, z[i], ROUNDING, side.inputs[i])
                _agree(f"{side.direction}: l of example {i} alone", l_alone, l[i], ROUNDING, side.inputs[i])
            strided = _strided(side.inputs), None if side.context is None else _strided(side.context)
            for what, got, wanted in zip("zl", side.run(*strided), (z, l), strict=True):
                _agree(f"{side.direction}: {what} of inputs with other strides", got, wanted, ROUNDING, side.inputs)
            grid = (2, count // 2)
            x, context = side.batch(*grid)
            for what, got, wanted in zip("zl", side.run(x, context), (z, l), strict=True):
                wanted = wanted[: 2 * (count // 2)].unflatten(0, grid)
                _agree(f"{side.direction}: {what} of the batch {grid}", got, wanted, ROUNDING)


def _strided(value: Tensor) -> Tensor:
    """The same values, their dims in reversed order in memory."""
    dims = tuple(range(value.ndim))[::-1]
    return value.permute(dims).contiguous().permute(dims)


@_of_transforms(
    "no `self.check_event(name, value, event)` at the door, so torch complains for the part, or broadcasts silently"
)
def shape_errors(case: TransformCase) -> None:
    """A wrong shape raises a `ShapeError` that names the part or one inside; sizes that do not matter may pass.

    A net inside may complain of them in words of its own.
    """
    for side in case.sides:
        event, context = side.event_shape, None if side.context is None else side.context[0]
        small = event[len(event) - side.transform.in_ndim :][1:]
        if side.transform.in_ndim:
            _refused(side, f"x of shape {tuple(small)}", side.inputs.new_zeros(small), None, may_pass=False)
        for dim in range(len(event)):
            for size in {event[dim] + 1, 1} - {event[dim]}:
                shape = (*event[:dim], size, *event[dim + 1 :])
                x = torch.full(shape, side.inputs.flatten()[0].item()).to(side.inputs)
                _refused(side, f"x of shape {shape}", x, context, may_pass=True)
        if context is not None:
            _refused(side, "no context", side.inputs[0], None, may_pass=False)
            for dim in range(context.ndim):
                wider = torch.cat([context, context.narrow(dim, 0, 1)], dim)
                _refused(side, f"a context of shape {tuple(wider.shape)}", side.inputs[0], wider, may_pass=True)


def _refused(side: TransformCase, what: str, x: Tensor, context: Tensor | None, *, may_pass: bool) -> None:
    names = {type(module).__name__ for module in side.transform.modules()}
    names |= {module.path for module in side.transform.modules() if isinstance(module, Transform)}
    try:
        with torch.no_grad():
            z, _ = side.run(x, context)
    except ShapeError as error:
        if not any(name in str(error) for name in names):
            raise Finding(f"{side.direction} for {what}: the ShapeError names no part: {error}") from None
        return
    except Exception as error:
        if _complains_inside_a_net(error.__traceback__):
            return
        came = f"{type(error).__name__}: {error}"
        raise Finding(f"{side.direction} for {what}: wanted a ShapeError, got {came}") from None
    if not may_pass:
        raise Finding(f"{side.direction} for {what}: wanted a ShapeError, it passed")
    if z.numel() != x.numel():
        raise Finding(f"{side.direction} for {what}: wanted a ShapeError, it became {tuple(z.shape)}")


def _complains_inside_a_net(trace: TracebackType | None) -> bool:
    """Whether an error comes out of a module that is no transform: what a net says of its input is its own affair."""
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and not isinstance(owner, Transform):
            return True
        trace = trace.tb_next
    return False


@_of_transforms("the context is not handed on, or not read")
def context_read(case: TransformCase) -> None:
    """A context that is given makes a difference, in both directions."""
    for side in case.sides:
        if side.context is None:
            continue
        with torch.no_grad():
            before, after = side.run(), side.run(side.inputs, side.context.roll(1, 0))
        if all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            raise Finding(f"{side.direction}: examples that exchange their contexts come out the same")


# ---------------------------------------------------------------------------------------------------------------------
# Transforms: gradients


@_of_transforms(
    "a detach, a `.data`, a `no_grad` or a clamp on the way; a backward of its own that is not the derivative",
)
def gradients(case: TransformCase) -> None:
    """`torch.autograd.gradcheck` (fast mode) by inputs, context and parameters, in both directions."""
    for side in case.sides:
        x, context = side.batch(3)
        _gradcheck(
            side.transform,
            [x, context],
            lambda *values, side=side: (
                values,
                {"generator": side.generator()} if side.transform.stochastic_forward else {},
            ),
            side.direction,
        )


def _gradcheck(
    module: nn.Module,
    values: Sequence[Tensor | None],
    call: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]],
    what: str,
) -> None:
    """Gradcheck of `module(*args, **kwargs)`, with `args, kwargs = call(*values)`, by values and parameters."""
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    places = [i for i, value in enumerate(values) if value is not None and value.is_floating_point()]
    given = [value for value in values if value is not None and value.is_floating_point()]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in [*given, *map(module.get_parameter, names)]]
    if not leaves:
        return

    def function(*leaves: Tensor) -> tuple[Tensor, ...]:
        arguments = list(values)
        for i, leaf in zip(places, leaves, strict=False):
            arguments[i] = leaf
        args, kwargs = call(*arguments)
        result = functional_call(module, dict(zip(names, leaves[len(places) :], strict=True)), args, kwargs)
        result = result if isinstance(result, tuple) else (result,)
        # A result that was detached must not be passed over as one that depends on nothing.
        nothing = 0 * sum(leaf.sum() for leaf in leaves)
        return tuple(value + nothing for value in result if value.is_floating_point())

    try:
        torch.autograd.gradcheck(function, leaves, eps=1e-6, atol=1e-5, rtol=GRADIENT, nondet_tol=1e-9, fast_mode=True)
    except GradcheckError as error:
        named = [("x", "context")[i] for i in places] + names
        raise Finding(f"{what}: inputs of the gradcheck in order: {', '.join(named)}. {error}") from None


@_of_transforms("a parameter that nothing reads, or that is read detached; DDP refuses such a part")
def parameter_gradients(case: TransformCase) -> None:
    """Every parameter that requires a gradient gets one, and a finite one, in training mode."""
    for side in case.sides:
        if side.direction == "inverse" and side.transform.stochastic_forward and side.transform.stochastic_inverse:
            continue  # an encoder has no part in decoding
        trained = copy.deepcopy(side.transform).train()
        z, l = side.run(side.inputs, side.context, transform=trained)
        _check_gradients(trained, (z, l), side.direction)


def _check_gradients(module: nn.Module, results: Sequence[Tensor], what: str) -> None:
    wanted = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    results = [value for value in results if value.is_floating_point()]
    if not wanted:
        return
    total = sum((value * torch.linspace(1, 2, value.numel()).to(value).view_as(value)).sum() for value in results)
    if not (isinstance(total, Tensor) and total.requires_grad):
        raise Finding(f"{what}: no gradient to any parameter, of {', '.join(wanted)}")
    total.backward()
    for name, parameter in wanted.items():
        if parameter.grad is None:
            raise Finding(f"{what}: no gradient to {name}")
        _finite(f"{what}: the gradient to {name}", parameter.grad, parameter)


# ---------------------------------------------------------------------------------------------------------------------
# Transforms: execution modes


@_of_transforms(
    "a branch on values, a `.item()`, a boolean mask, an `assert` over tensors, a print: what breaks the graph"
)
def compiles(case: TransformCase, backend: str = "aot_eager") -> None:
    """`torch.compile(fullgraph=True)` gives what eager gives, in both directions; the global generator draws noise."""
    for side in case.sides:
        x, context = side.batch(4)
        _compiled_agrees(side.transform, (x, context), backend, side.direction, grad=side.direction == "forward")


def _compiled_agrees(module: nn.Module, args: tuple[Any, ...], backend: str, what: str, grad: bool) -> None:
    torch._dynamo.reset()  # else parts of one class, compiled one after another, run into the limit of recompilations
    try:
        with torch.set_grad_enabled(grad), _fallback_random(backend), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(1)
            eager = module(*args)
            torch.manual_seed(1)
            compiled = torch.compile(module, fullgraph=True, backend=backend, dynamic=False)(*args)
    finally:
        torch._dynamo.reset()
    eager = eager if isinstance(eager, tuple) else (eager,)
    compiled = compiled if isinstance(compiled, tuple) else (compiled,)
    for name, got, wanted in zip(("first result", "second result"), compiled, eager, strict=False):
        if got.dtype != wanted.dtype:
            raise Finding(f"{what}: the {name} compiled is {got.dtype}, eager {wanted.dtype}")
        _agree(f"{what}: the {name} compiled against eager", got, wanted, LAW, args[0])


@contextmanager
def _fallback_random(backend: str) -> Iterator[None]:
    """Under inductor, the noise of eager mode in place of its own."""
    if backend != "inductor":
        yield
        return
    import torch._inductor.config as config

    with config.patch(fallback_random=True):
        yield


@_of_transforms("a branch on values, an in-place write, or an `autograd.Function` without `vmap` or `setup_context`")
def vectorizes(case: TransformCase) -> None:
    """`torch.func.vmap` over examples gives what the batch gives; over copies of the part, what each copy gives."""
    for side in case.sides:
        noisy = side.transform.stochastic_forward
        randomness = "different" if noisy else "error"
        in_dims = (0, None if side.context is None else 0)

        def one(x: Tensor, context: Tensor | None, side: TransformCase = side) -> tuple[Tensor, Tensor]:
            return side.transform(x, context)

        with torch.no_grad():
            got = vmap(one, in_dims, randomness=randomness)(side.inputs, side.context)
            _compare_mapped(f"{side.direction} under vmap", got, side.run(), noisy)
            members = [side.transform, perturb_(copy.deepcopy(side.transform), 0.01, torch.Generator().manual_seed(1))]
            if not side.state():
                continue
            parameters, buffers = stack_module_state(members)

            def member(state: dict[str, Tensor], side: TransformCase = side) -> tuple[Tensor, Tensor]:
                return functional_call(side.transform, state, (side.inputs, side.context))

            got = vmap(member, randomness=randomness)({**parameters, **buffers})
            each = [side.run(side.inputs, side.context, transform=each) for each in members]
            wanted = tuple(torch.stack(results) for results in zip(*each, strict=True))
            _compare_mapped(f"{side.direction} of an ensemble under vmap", got, wanted, noisy)


def _compare_mapped(what: str, got: Sequence[Tensor], wanted: Sequence[Tensor], noisy: bool) -> None:
    for name, one, other in zip("zl", got, wanted, strict=True):
        if noisy and one.shape != other.shape:
            raise Finding(f"{what}: {name} has shape {tuple(one.shape)}, wanted {tuple(other.shape)}")
        if not noisy:
            _agree(f"{what}: {name}", one, other, LAW)


@_of_transforms("a tensor that is kept from an earlier call, or a parameter reached past the module that owns it")
def functional_state(case: TransformCase) -> None:
    """`torch.func.functional_call` with other parameters gives what a part with those parameters gives."""
    for side in case.sides:
        other = perturb_(copy.deepcopy(side.transform), 0.01, torch.Generator().manual_seed(2))
        state = replace(side, transform=other).state()
        kwargs = {"generator": side.generator()} if side.transform.stochastic_forward else {}
        with torch.no_grad():
            before = side.run()
            got = functional_call(side.transform, state, (side.inputs, side.context), kwargs)
            wanted = side.run(side.inputs, side.context, transform=other)
            for name, one, two in zip("zl", got, wanted, strict=True):
                _agree(f"{side.direction} by functional_call: {name}", one, two, ROUNDING, side.inputs)
            for name, one, two in zip("zl", side.run(), before, strict=True):
                _same(f"{side.direction} after a functional_call: {name}", one, two)


@_of_transforms("an `autograd.Function` without `setup_context`, or an in-place write to what is differentiated")
def functional_gradient(case: TransformCase) -> None:
    """`torch.func.jacrev` of one example, by its input and by the parameters, gives what autograd gives."""
    for side in case.sides:
        x, context = side.batch()
        parameters: dict[str, Tensor] = {n: p for n, p in side.transform.named_parameters() if p.requires_grad}

        def totals(x: Tensor, parameters: dict[str, Tensor], side: TransformCase = side, context: Any = context) -> Any:
            kwargs = {"generator": side.generator()} if side.transform.stochastic_forward else {}
            z, l = functional_call(side.transform, parameters, (x, context), kwargs)
            return tuple(value.sum() for value in (z, l) if value.is_floating_point())

        def found(what: str, got: Sequence[Any], place: Tensor, totals: Any) -> None:
            for gradient, total in zip(got, totals, strict=True):
                (wanted,) = (
                    torch.autograd.grad(total, place, retain_graph=True, materialize_grads=True)
                    if (total.requires_grad)
                    else (torch.zeros_like(place),)
                )
                _agree(what, gradient, wanted, LAW)

        if x.is_floating_point():
            leaf = x.clone().requires_grad_()
            results = totals(leaf, parameters)
            found(f"{side.direction}: jacrev by x", jacrev(totals)(x, parameters), leaf, results)
        if parameters:
            results = totals(x, parameters)
            by_name = jacrev(totals, argnums=1)(x, parameters)
            for name, place in parameters.items():
                found(f"{side.direction}: jacrev by {name}", [each[name] for each in by_name], place, results)


# ---------------------------------------------------------------------------------------------------------------------
# Transforms: copies


@_of_transforms("a tensor that is neither a parameter nor a buffer; a local function or a lambda kept as an attribute")
def copies(case: TransformCase) -> None:
    """State dict, saved file, deepcopy and pickle give the same part, bit for bit; the repr names the class."""
    for side in case.sides:
        for how, copied in _copies(side.transform).items():
            with torch.no_grad():
                results = side.run(side.inputs, side.context, transform=copied)
                for name, got, wanted in zip("zl", results, side.run(), strict=True):
                    _same(f"{side.direction} after {how}: {name}", got, wanted)
    _check_repr(case.transform)


def _copies(module: Module) -> dict[str, Module]:
    other = perturb_(copy.deepcopy(module), 0.3, torch.Generator().manual_seed(3))
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved)
    for name, value in other.state_dict().items():
        _same(f"state dict, {name}", value, module.state_dict()[name])
    found = {"a round trip through a state dict": other, "copy.deepcopy": copy.deepcopy(module)}
    return {**found, "pickle": pickle.loads(pickle.dumps(module))}


def _check_repr(module: nn.Module) -> None:
    if type(module).__name__ not in repr(module):
        raise Finding(f"the repr does not name the class: {module!r}")


# ---------------------------------------------------------------------------------------------------------------------
# Distributions


def check_distribution(
    distribution: Distribution,
    *,
    context: Tensor | None = None,
    inputs: Tensor | None = None,
    bounds: tuple[float, float] | None = None,
    perturb: float = 0.1,
    skip: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Run every property of `DISTRIBUTION_PROPERTIES` on a distribution. It passes, or says what is wrong.

    The distribution is left as it is: copies are checked, in float64 and eval mode. Events of one or two real numbers
    are integrated on a grid, and samples compared with the integral; of one integer, with their frequencies. Of larger
    events, samples and density are compared only through `sample_and_log_prob`.

    Args:
        distribution: any distribution, a flow included.
        context: (N, *event of the context), any N, for a conditional one.
        inputs: (N, *event), points at which to ask for the density; drawn from the distribution if not given.
        bounds: ends of the interval that holds every element, where the density is cut off there: (0, 1) for noise on
            the unit cube. None for densities that fade out.
        perturb: deviation of the noise that is added to every parameter of the copy.
        skip: names of properties to leave out.
        seed: of everything that is drawn.

    Raises:
        ConformanceError: for the first property that fails.
        ValueError: for a name in `skip` that is no property.

    >>> import flowkit as fk
    >>> check_distribution(fk.Normal((2,)), skip=["compiles"])
    """
    _refuse_unknown(skip, DISTRIBUTION_PROPERTIES)
    case = DistributionCase.of(distribution, context=context, inputs=inputs, bounds=bounds, perturb=perturb, seed=seed)
    for name, check in DISTRIBUTION_PROPERTIES.items():
        if name not in skip:
            check(case)


@dataclass(frozen=True)
class Grid:
    """A density on a grid: points (M, *event), the mass of the cell of each (M), a center and a width (D)."""

    points: Tensor
    mass: Tensor
    center: Tensor
    width: Tensor


def _grids(case: DistributionCase) -> Iterator[tuple[str, Grid, Tensor]]:
    """Of small events, for two contexts: its name, the density on a grid, and samples (20000, D)."""
    dims = math.prod(case.event_shape)
    if case.discrete or not case.exact or dims not in (1, 2):
        return
    for row in range(1 if case.context is None else 2):
        context = None if case.context is None else case.context[row]
        with torch.no_grad():
            samples = case.sample((SAMPLES,), context).reshape(SAMPLES, dims)
            grid = _grid(case, context, samples, dims)
        yield ("" if context is None else f" under context {row}"), grid, samples


def _grid(case: DistributionCase, context: Tensor | None, samples: Tensor, dims: int) -> Grid:
    size = 2001 if dims == 1 else 301
    if case.bounds is None:
        # x = center + width sinh(t): fine steps where the samples lie, and 74 times as far as their quartiles.
        low, center, high = samples.quantile(torch.tensor([0.25, 0.5, 0.75]).to(samples), dim=0)
        t = torch.linspace(-5, 5, size).to(samples)
        axis, steps = t.sinh(), t.cosh() * (t[1] - t[0])
        width = high - low
    else:
        ends = samples.new_tensor(case.bounds)
        center, width = ends.mean().expand(dims), (ends[1] - ends[0]).expand(dims)
        axis = (torch.arange(size).to(samples) + 0.5) / size - 0.5
        steps = torch.full_like(axis, 1 / size)
    points = torch.cartesian_prod(*[axis] * dims).reshape(-1, dims) * width + center
    cells = torch.cartesian_prod(*[steps] * dims).reshape(-1, dims).prod(-1) * width.prod()
    events = points.reshape(-1, *case.event_shape)
    given = None if context is None else context.expand(len(events), *context.shape)
    return Grid(points, case.log_prob(events, given).exp() * cells, center, width)


@_of_distributions("noise that is not drawn with the generator that was given", name="noise")
def density_noise(case: DistributionCase) -> None:
    """Samples come from the given generator alone: one seed one draw, and the global generator stays."""
    distribution = case.distribution
    torch.manual_seed(4)
    before = torch.random.get_rng_state()
    first = distribution.sample((16,), case.context, generator=case.generator(5))
    case.log_prob(case.inputs, case.context)
    if not torch.equal(torch.random.get_rng_state(), before):
        raise Finding("it draws from the global generator, though one was given or none is needed")
    _same("a second sample", distribution.sample((16,), case.context, generator=case.generator(5)), first)
    if torch.equal(distribution.sample((16,), case.context, generator=case.generator(6)), first):
        raise Finding("another seed gives the same sample")
    torch.manual_seed(4)
    once = distribution.sample((16,), case.context)
    torch.manual_seed(4)
    _same("a sample under the same global seed", distribution.sample((16,), case.context), once)


@_of_distributions("a constant missing from log_prob, or a log-term with the wrong sign")
def integrates_to_one(case: DistributionCase) -> None:
    """The density of an event of one or two numbers integrates to 1."""
    for where, grid, _ in _grids(case):
        total = grid.mass.sum().item()
        if not abs(total - 1) <= INTEGRAL:
            raise Finding(f"the integral of the density{where} is {total:.6g}, allowed 1 ± {INTEGRAL}")


@_of_distributions("`sample` and `log_prob` that run the transform in the same direction, or read other parameters")
def samples_follow_density(case: DistributionCase) -> None:
    """Samples of one or two numbers pass a Kolmogorov-Smirnov test against the integral of the density."""
    for where, grid, samples in _grids(case):
        directions = [[1.0]] if samples.shape[1] == 1 else [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]]
        for direction in directions:
            along = samples.new_tensor(direction) / grid.width
            uniform = _distribution_function((grid.points @ along), grid.mass, samples @ along).sort().values
            count = len(uniform)
            steps = (torch.arange(count).to(uniform) + 0.5) / count
            distance = (uniform - steps).abs().max().item() + 0.5 / count
            allowed = math.sqrt(-math.log(ALARM / 2) / (2 * count))
            if not distance <= allowed:
                raise Finding(
                    f"{count} samples{where}, seen along {direction}, are {distance:.3g} from the integral of the "
                    f"density in Kolmogorov's distance, allowed {allowed:.3g}"
                )


def _distribution_function(places: Tensor, mass: Tensor, at: Tensor) -> Tensor:
    """The distribution function of masses at places, piecewise linear, at other places."""
    places, index = places.unique(return_inverse=True)
    mass = torch.zeros_like(places).index_add_(0, index, mass)
    middle = (mass.cumsum(0) - mass / 2) / mass.sum()
    right = torch.searchsorted(places, at).clamp(1, len(places) - 1)
    left = right - 1
    share = ((at - places[left]) / (places[right] - places[left])).clamp(0, 1)
    return middle[left] + share * (middle[right] - middle[left])


@_of_distributions("a log-term with the wrong sign or the other direction's; a scale left out, such as -D log levels")
def bound_is_below(case: DistributionCase) -> None:
    """A bound on the probability of one integer lies below its frequency in samples; so does its exponential's mean.

    That mean is the probability itself, but of noise that fits badly it comes out too low, and the end integers are
    more frequent, because latents outside of the cube go there too.
    """
    support = getattr(getattr(case.distribution, "transform", None), "domain", None)
    if case.exact or support is None or not support.is_discrete or math.prod(case.event_shape) != 1:
        return
    context = None if case.context is None else case.context[0]
    values = torch.arange(int(support.lower_bound), int(support.upper_bound) + 1, device=case.inputs.device)
    with torch.no_grad():
        samples = case.sample((SAMPLES,), context).flatten()
        x = values.reshape(-1, *case.event_shape)
        x = x.expand(SAMPLES // 4, *x.shape)
        terms = case.log_prob(x, None if context is None else context.expand(*x.shape[:2], *context.shape))
    sigmas = -torch.special.ndtri(torch.tensor(ALARM / len(values))).item()

    def at_least(draws: Tensor) -> float:
        return draws.mean().item() - sigmas * draws.std().item() / math.sqrt(len(draws))

    for value, bound in zip(values.tolist(), terms.unbind(1), strict=True):
        frequency = (samples == value).double().mean().item()
        allowed = frequency + sigmas * math.sqrt(max(frequency, 1 / SAMPLES) / SAMPLES)
        for what, least in (("the bound on", math.exp(at_least(bound))), ("the mean for", at_least(bound.exp()))):
            if not least <= allowed:
                raise Finding(f"{what} P({value}) is at least {least:.5g}, its frequency in samples {frequency:.5g}")


@_of_distributions("`sample_and_log_prob` that reads its log-term off the wrong direction")
def sampled_log_prob(case: DistributionCase) -> None:
    """`sample_and_log_prob` gives the sample that `sample` gives, and its `log_prob`; a mere bound is refused."""
    shape = (5,)
    if not case.exact:
        try:
            case.distribution.sample_and_log_prob(shape, case.context)
        except NotExact:
            return
        raise Finding("it has only a bound on its density, so sample_and_log_prob should raise NotExact")
    with torch.no_grad():
        x, log_prob = case.distribution.sample_and_log_prob(shape, case.context, generator=case.generator())
        _agree("sample against that of sample_and_log_prob", case.sample(shape, case.context), x, ROUNDING)
        context = None if case.context is None else case.context.expand(*shape, *case.context.shape)
        _agree("log_prob of a sample against that of sample_and_log_prob", case.log_prob(x, context), log_prob, LAW)


@_of_distributions("the sample shape and the context's batch in another order, or an event dim taken for a batch dim")
def density_shapes(case: DistributionCase) -> None:
    """log_prob is (*batch); samples are (*sample shape, *context batch, *event); any batch dims, none and empty too."""
    event = tuple(case.event_shape)
    with torch.no_grad():
        for batch in [(), (3,), (2, 3), (0,)]:
            x, context = case.batch(*batch)
            log_prob = case.log_prob(x, context)
            if log_prob.shape != batch:
                raise Finding(f"log_prob for a batch {batch} has shape {tuple(log_prob.shape)}")
            _agree(f"calling it, for a batch {batch},", _called(case, x, context), log_prob, 0.0)
            for sample_shape in [(), (4,), (2, 1), (0,)]:
                if case.context is None and batch:
                    continue
                x = case.sample(sample_shape, context)
                if x.shape != (*sample_shape, *batch, *event):
                    raise Finding(
                        f"samples of shape {sample_shape} for a context batch {batch} have shape {tuple(x.shape)}, "
                        f"wanted {(*sample_shape, *batch, *event)}"
                    )
        if case.distribution.sample(3, case.batch()[1]).shape != (3, *event):
            raise Finding("a sample shape of 3 is not that of (3,)")
        whole = case.log_prob(case.inputs, case.context)
        for i in range(len(whole) if case.exact else 0):
            context = None if case.context is None else case.context[i]
            _agree(f"log_prob of example {i} alone", case.log_prob(case.inputs[i], context), whole[i], ROUNDING)


def _called(case: DistributionCase, x: Tensor, context: Tensor | None) -> Tensor:
    drawn = {} if case.exact else {"generator": case.generator()}
    return case.distribution(x, context, **drawn)


@_of_distributions("no `self.check_event(x)` at the door, so that wrong shapes broadcast", name="shape_errors")
def density_shape_errors(case: DistributionCase) -> None:
    """An x that does not end in the event raises a `ShapeError`; so does a context too many, or one missing."""
    event = tuple(case.event_shape)
    context = None if case.context is None else case.context[0]
    wrong = [((*event[:-1], event[-1] + 1), context)] if event else []
    wrong += [(event[1:], context)] if event else []
    wrong += [(event, None)] if context is not None else []
    for shape, given in wrong:
        x = torch.full(shape, case.inputs.flatten()[0].item()).to(case.inputs)
        try:
            log_prob = case.log_prob(x, given)
        except ShapeError:
            continue
        except Exception as error:
            raise Finding(f"x of shape {shape}: wanted a ShapeError, got {type(error).__name__}: {error}") from None
        raise Finding(f"x of shape {shape}: wanted a ShapeError, log_prob has shape {tuple(log_prob.shape)}")


@_of_distributions("a detach, a `.data` or a clamp on the way; a parameter that nothing reads", name="gradients")
def density_gradients(case: DistributionCase) -> None:
    """Gradcheck of log_prob by x, context and parameters; every parameter gets a gradient, from `rsample` too."""
    x, context = case.batch(3)

    def call(*values: Tensor | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return values, ({} if case.exact else {"generator": case.generator()})

    _gradcheck(case.distribution, [x, context], call, "log_prob")
    trained = copy.deepcopy(case.distribution).train()
    _check_gradients(trained, [case.log_prob(x, context, distribution=trained)], "log_prob")
    if case.distribution.has_rsample and not case.discrete:
        trained = copy.deepcopy(case.distribution).train()
        _check_gradients(trained, [trained.rsample((3,), context, generator=case.generator())], "rsample")


@_of_distributions("a branch on values, a `.item()`, a boolean mask: what breaks the graph", name="compiles")
def density_compiles(case: DistributionCase, backend: str = "aot_eager") -> None:
    """`torch.compile(fullgraph=True)` of log_prob gives what eager gives."""
    _compiled_agrees(case.distribution, case.batch(4), backend, "log_prob", grad=True)


@_of_distributions("a branch on values or an in-place write", name="vectorizes")
def density_vectorizes(case: DistributionCase) -> None:
    """`torch.func.vmap` of log_prob over examples gives what the batch gives."""
    in_dims = (0, None if case.context is None else 0)
    randomness = "error" if case.exact else "different"
    with torch.no_grad():
        got = vmap(lambda x, c: case.distribution(x, c), in_dims, randomness=randomness)(case.inputs, case.context)
        wanted = case.log_prob(case.inputs, case.context)
    if case.exact:
        _agree("log_prob under vmap", got, wanted, LAW)
    elif got.shape != wanted.shape:
        raise Finding(f"log_prob under vmap has shape {tuple(got.shape)}, wanted {tuple(wanted.shape)}")


@_of_distributions("a constant of a dtype of its own in log_prob or in the noise of a sample", name="dtypes")
def density_dtypes(case: DistributionCase) -> None:
    """Samples have the dtype of the module, and log_prob has promote_types(x.dtype, float32)."""
    for dtype in (torch.float64, torch.float32):
        distribution = copy.deepcopy(case.distribution).to(dtype)
        x, context = (_cast(value, dtype) for value in (case.inputs, case.context))
        with torch.no_grad():
            log_prob = case.log_prob(x, context, distribution=distribution)
            samples = case.sample((2,), context, distribution=distribution)
        if log_prob.dtype != log_term_dtype(dtype):
            raise Finding(f"log_prob in {dtype} is {log_prob.dtype}, wanted {log_term_dtype(dtype)}")
        if samples.dtype != x.dtype:
            raise Finding(f"samples in {dtype} are {samples.dtype}, wanted {x.dtype}")


@_of_distributions("a tensor that is neither a parameter nor a buffer; a lambda kept as an attribute", name="copies")
def density_copies(case: DistributionCase) -> None:
    """State dict, saved file, deepcopy and pickle give the same distribution, bit for bit; the repr names the class."""
    with torch.no_grad():
        wanted = case.log_prob(case.inputs, case.context)
        for how, copied in _copies(case.distribution).items():
            got = case.log_prob(case.inputs, case.context, distribution=copied)
            _same(f"log_prob after {how}", got, wanted)
    _check_repr(case.distribution)


@_of_distributions("state that a call changes, an in-place operation on x, a branch on `self.training`", name="purity")
def density_purity(case: DistributionCase) -> None:
    """A call changes neither the distribution nor its arguments; train and eval mode agree, but for dropout."""
    wanted = case.log_prob(case.inputs, case.context)
    for training in (False, True):
        mode = "train" if training else "eval"
        distribution = copy.deepcopy(case.distribution).train(training)
        x = case.inputs.clone()
        with torch.no_grad():
            got = case.log_prob(x, case.context, distribution=distribution)
            case.sample((2,), case.context, distribution=distribution)
        _same(f"x after log_prob in {mode} mode", x, case.inputs)
        for name, value in replace(case, distribution=distribution).state().items():
            _same(f"{name} after a call in {mode} mode", value, case.state()[name])
        if not (training and has_dropout(distribution)):
            _same(f"log_prob in {mode} mode", got, wanted.detach())
