"""How a property says what it found, and how near is near enough."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from flowkit.testing.case import DistributionCase, TransformCase

# Tolerances. An error passes if it is at most tolerance * (1 + |wanted|), in float64, unless it says otherwise.
LAW = 1e-8  # rounding of 1e-16, times the condition of a whole flow and of numerical inverses in it
LOG_TERM = 1e-8  # absolute: the same for the log-determinant of an automatic Jacobian
ROUNDING = 1e-9  # the same sums in another order, times that condition
GRADIENT = 1e-3  # relative, 1e-5 absolute: what central differences with a step of 1e-6 can tell
INTEGRAL = 2e-3  # quadrature of a density, 2,001 points in one dim and 301 x 301 in two
ALARM = 1e-6  # how often a calibrated statistical test fails by chance, were its seed not fixed

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


of_transforms = functools.partial(_property, PROPERTIES)
of_distributions = functools.partial(_property, DISTRIBUTION_PROPERTIES)


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
        shown = f" Input: {abbreviated(example)}."
    allowed = f"{tolerance:.0e}{' * (1 + |wanted|)' if relative else ''}"
    raise Finding(
        f"{what}{at} is {got[place].item():.10g}, wanted {wanted[place].item():.10g}: off by "
        f"{(got[place] - wanted[place]).abs().item():.3g}, allowed {allowed}.{shown}"
    )


def same(what: str, got: Tensor, wanted: Tensor) -> None:
    """Refuse a `got` that is not bit for bit `wanted`."""
    if got.dtype != wanted.dtype:
        raise Finding(f"{what} is {got.dtype}, wanted {wanted.dtype}")
    agree(what, got, wanted, 0.0)


def abbreviated(value: Tensor) -> str:
    """The first numbers and the shape."""
    numbers = ", ".join(f"{number:.6g}" for number in value.detach().flatten()[:6].tolist())
    return f"[{numbers}{', ...' if value.numel() > 6 else ''}] of shape {tuple(value.shape)}"


def finite(what: str, value: Tensor, inputs: Tensor) -> None:
    """Refuse values that are not finite."""
    if not bool(value.isfinite().all()):
        raise Finding(f"{what} is not finite everywhere. Inputs: {abbreviated(inputs)}")
