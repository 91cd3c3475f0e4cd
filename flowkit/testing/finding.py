"""How a property says what it found, and how near is near enough."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from flowkit.testing.case import DistributionCase, TransformCase

# Tolerances. An error passes if it is at most tolerance * (1 + |wanted|), in float64, unless it says otherwise.
# Where a result is more sensitive than they allow for, ROUNDINGS of what it was made from come on top.
LAW = 1e-8  # rounding of 1e-16, times the condition of a whole flow and of numerical inverses in it
LOG_TERM = 1e-8  # absolute: the same for the log-determinant of an automatic Jacobian
ROUNDING = 1e-9  # the same sums in another order, times that condition
ROUNDINGS = 16  # so many times eps * |x| may every element of x be off, and z and l by what the derivatives make of it
SINGLE = 1e-4  # what is allowed where float32 comes out in place of float64, which `dtypes` reports
GRADIENT = 1e-3  # relative, 1e-5 absolute: what central differences with a step of 1e-6 can tell
INTEGRAL = 2e-3  # quadrature of a density, 2,001 points in one dim and 301 x 301 in two
ALARM = 1e-6  # how often all statistical tests of a sound distribution together fail by chance, over seeds

SAMPLES = 20000  # of each statistical test
DEGREE = 8  # of the polynomials in them; the second tells a scale 10 % off, the others where there are several modes

AnyCase = TypeVar("AnyCase", TransformCase, DistributionCase)


class ConformanceError(AssertionError):
    """A part breaks a property that every part has.

    Attributes:
        part: class of the part.
        property: name of the property, a key of `PROPERTIES` or `DISTRIBUTION_PROPERTIES`.
        finding: what was found: where, and how far off.
        others: names of the properties that fail besides, where all were asked.
    """

    def __init__(self, part: str, property: Property[Any], finding: str, others: Sequence[str] = ()) -> None:
        more = f"\nIt fails besides: {', '.join(others)}." if others else ""
        super().__init__(
            f"{part} fails {property.name!r}: {finding}\n"
            f"The property: {property.promise}\nUsual cause: {property.cause}.{more}"
        )
        self.part, self.property, self.finding, self.others = part, property.name, finding, tuple(others)
        self._property = property

    def beside(self, others: Sequence[str]) -> ConformanceError:
        """The same error, with the names of further properties that fail."""
        error = ConformanceError(self.part, self._property, self.finding, others)
        error.__cause__ = self.__cause__
        return error


class Finding(AssertionError):
    """What a property found, before it is known of whom."""


@dataclass(frozen=True)
class Property(Generic[AnyCase]):
    """Something that every part promises. `property(case)` passes, or raises a `ConformanceError`.

    Every call works on a copy of its own, so that what one property does to a part is not hidden from the next.

    Attributes:
        name: its key in `PROPERTIES` or `DISTRIBUTION_PROPERTIES`.
        cause: what usually makes a part fail.
        check: raises a `Finding`.
        applies: whether a case has anything that the property could be asked of.
    """

    name: str
    cause: str
    check: Callable[..., None]
    applies: Callable[[AnyCase], bool]

    @property
    def promise(self) -> str:
        """What is promised, in a sentence."""
        return (inspect.getdoc(self.check) or "").split("\n\n")[0].replace("\n", " ")

    def __call__(self, case: AnyCase, **options: Any) -> None:
        if not self.applies(case):
            return
        try:
            with _own_randomness(case):
                self.check(case.copy(), **options)
        except Finding as finding:
            raise ConformanceError(case.part, self, str(finding)) from None
        except Exception as error:
            raise ConformanceError(case.part, self, f"{type(error).__name__}: {error}") from error


PROPERTIES: dict[str, Property[TransformCase]] = {}
DISTRIBUTION_PROPERTIES: dict[str, Property[DistributionCase]] = {}


def _enter(
    table: dict[str, Property[AnyCase]], cause: str, name: str | None, applies: Callable[[AnyCase], bool]
) -> Callable[[Callable[..., None]], Property[AnyCase]]:
    def enter(check: Callable[..., None]) -> Property[AnyCase]:
        made = Property(name or check.__name__, cause, check, applies)
        table[made.name] = made
        return made

    return enter


def of_transforms(
    cause: str, *, name: str | None = None, applies: Callable[[TransformCase], bool] = lambda case: True
) -> Callable[[Callable[..., None]], Property[TransformCase]]:
    """Make a check a property of transforms; what it finds, or whatever else it raises, is a `ConformanceError`."""
    return _enter(PROPERTIES, cause, name, applies)


def of_distributions(
    cause: str, *, name: str | None = None, applies: Callable[[DistributionCase], bool] = lambda case: True
) -> Callable[[Callable[..., None]], Property[DistributionCase]]:
    """Make a check a property of distributions."""
    return _enter(DISTRIBUTION_PROPERTIES, cause, name, applies)


def check_all(case: AnyCase, properties: Mapping[str, Property[AnyCase]], skip: Sequence[str]) -> None:
    """Ask for every property that is not skipped; raise for the first that fails, and name the others.

    Raises:
        ConformanceError: if one fails.
        ValueError: for a name in `skip` that is no property.
    """
    for name in skip:
        if name not in properties:
            raise ValueError(f"skip: {name!r} is no property; there are {', '.join(properties)}")
    errors = []
    for name, check in properties.items():
        if name not in skip:
            try:
                check(case)
            except ConformanceError as error:
                errors.append(error)
    if errors:
        raise errors[0].beside([error.property for error in errors[1:]]) from errors[0].__cause__


@contextmanager
def _own_randomness(case: TransformCase | DistributionCase) -> Iterator[None]:
    """The global generator starts at the case's seed, and goes back to where it was."""
    device = case.inputs.device
    forked = {"devices": []} if device.type == "cpu" else {"devices": [device], "device_type": device.type}
    with torch.random.fork_rng(**forked), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # of vmap, where it falls back to a loop
        torch.manual_seed(case.seed)
        yield


def agree(
    what: str,
    got: Tensor,
    wanted: Tensor,
    tolerance: float | Tensor,
    inputs: Tensor | None = None,
    relative: bool = True,
    slack: Callable[[], Tensor] | None = None,
) -> None:
    """Refuse a `got` off by more than tolerance * (1 + |wanted|), naming the worst place and the input there.

    What `slack` gives, at every place, is allowed besides; it is asked only of a `got` that would be refused.
    """
    if got.shape != wanted.shape:
        raise Finding(f"{what} has shape {tuple(got.shape)}, wanted {tuple(wanted.shape)}")
    if not got.numel():
        return
    got, wanted = got.detach().double(), wanted.detach().double()
    scale = 1 + wanted.abs() if relative else torch.ones_like(wanted)
    error = torch.where(got == wanted, 0.0, (got - wanted).abs() / scale).nan_to_num(math.inf, math.inf)
    if bool((error <= tolerance).all()):
        return
    if slack is not None:
        tolerance = tolerance + slack() / scale
    excess = error / tolerance if isinstance(tolerance, Tensor) else error
    if bool((error <= tolerance).all()):
        return
    place = tuple(int(i) for i in torch.unravel_index(excess.argmax(), error.shape))
    at = f" at {list(place)}" if place else ""
    shown = ""
    if inputs is not None:
        example = inputs[place[0]] if place and inputs.ndim and place[0] < len(inputs) else inputs
        shown = f" Input: {abbreviated(example)}."
    least = tolerance[place].item() if isinstance(tolerance, Tensor) else tolerance
    allowed = f"{least:.0e}{' * (1 + |wanted|)' if relative else ''}"
    hint = ""
    if not isinstance(tolerance, Tensor) and 0 < tolerance < error[place].item() < 1e-5:
        hint = " So small an error is often that of a part computed in float32."
    raise Finding(
        f"{what}{at} is {got[place].item():.10g}, wanted {wanted[place].item():.10g}: off by "
        f"{(got[place] - wanted[place]).abs().item():.3g}, allowed {allowed}.{hint}{shown}"
    )


def same(what: str, got: Tensor, wanted: Tensor) -> None:
    """Refuse a `got` that is not bit for bit `wanted`; NaN is the same as NaN."""
    if got.dtype != wanted.dtype:
        raise Finding(f"{what} is {got.dtype}, wanted {wanted.dtype}")
    if got.shape == wanted.shape:
        both = got.isnan() & wanted.isnan()
        got, wanted = got.masked_fill(both, 0), wanted.masked_fill(both, 0)
    agree(what, got, wanted, 0.0)


def abbreviated(value: Tensor) -> str:
    """The first numbers and the shape."""
    numbers = ", ".join(f"{number:.6g}" for number in value.detach().flatten()[:6].tolist())
    return f"[{numbers}{', ...' if value.numel() > 6 else ''}] of shape {tuple(value.shape)}"


def finite(what: str, value: Tensor, inputs: Tensor) -> None:
    """Refuse values that are not finite."""
    if not bool(value.isfinite().all()):
        raise Finding(f"{what} is not finite everywhere. Inputs: {abbreviated(inputs)}")
