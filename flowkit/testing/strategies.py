"""What hypothesis draws for flows: batch shapes, values of a set, inputs of a transform, whole chains.

Import it by name, `from flowkit.testing import strategies`: it needs hypothesis, which the extra `testing` brings.

>>> import torch, flowkit as fk
>>> from hypothesis import given, settings
>>> from flowkit.testing import strategies
>>> part = fk.LeakyReLU(slope=0.1)
>>> @settings(max_examples=20, deadline=None, database=None)
... @given(x=strategies.inputs_of(part, (3,), reach=1e6))
... def test_way_back(x):
...     z, _ = part(x)
...     torch.testing.assert_close(part.inverse(z)[0], x)
>>> test_way_back()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from flowkit.bijectors import (
    ActNorm,
    AffineCoupling,
    Coupling,
    Elementwise,
    Flip,
    HouseholderLinear,
    LeakyReLU,
    LULinear,
    Permute,
    ScaleShift,
)
from flowkit.maps import Affine, MixLogistic, RationalQuadratic
from flowkit.nets import MLP
from flowkit.testing.case import bounds_of, perturb_
from flowkit.transform import Chain, Transform

try:
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays
except ImportError as error:
    raise ImportError("flowkit.testing.strategies needs hypothesis: pip install 'flowkit[testing]'") from error

__all__ = ["batch_shapes", "bijectors", "chains", "inputs_of", "latents_of", "seeds", "values"]


def seeds() -> st.SearchStrategy[int]:
    """Seeds of a generator, which shrink to 0."""
    return st.integers(0, 2**31 - 1)


def batch_shapes(max_dims: int = 3, max_size: int = 3) -> st.SearchStrategy[tuple[int, ...]]:
    """Batch shapes of at most so many dims, each of 0 to `max_size`: none and empty ones included.

    >>> from hypothesis import find
    >>> find(batch_shapes(), lambda shape: len(shape) == 2)
    (0, 0)
    """
    return st.lists(st.integers(0, max_size), max_size=max_dims).map(tuple)


def values(
    constraint: constraints.Constraint | None,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float64,
    reach: float = 10.0,
    margin: float = 0.0,
) -> st.SearchStrategy[Tensor]:
    """Tensors with values of a set, its ends among them.

    The real line is drawn from -reach to reach, zeros of both signs and numbers of every size included. A half-line is
    drawn from its end to exp(reach) away from it, evenly on the scale of logarithms and down to exp(-reach). An end
    that belongs to the set is drawn, and of one that does not, the nearest number of `dtype`.

    Args:
        constraint: one of `torch.distributions.constraints` that bounds describe: the real line, half-lines, intervals,
            integers. None, the domain of a rearrangement, is the real line.
        shape: of the tensors.
        dtype: of the tensors, float32 or float64; integers are int64.
        reach: how far to go where there is no end.
        margin: how far to stay from the ends, as a share of an interval's width, or an absolute distance on a
            half-line. A transform that is infinite at an end needs some: near the end its slope is out of proportion.

    Raises:
        ValueError: for a set that no bounds describe.

    >>> from hypothesis import find
    >>> from torch.distributions import constraints
    >>> find(values(constraints.unit_interval, (2,)), lambda x: bool((x == 1).any()))
    tensor([0., 1.], dtype=torch.float64)
    >>> find(values(constraints.positive, ()), lambda x: True) > 0
    tensor(True)
    """
    base, low, high = bounds_of(constraint)
    if base is not None and not isinstance(base, type(constraints.real)) and low is None and high is None:
        if not isinstance(base, type(constraints.boolean)):
            raise ValueError(f"values: no way to draw values from {constraint}, which has no bounds")
        low, high = 0, 1
    shape = tuple(shape)
    if base is not None and base.is_discrete:
        most = torch.as_tensor(2**53 if high is None else high)  # of each element of an event, perhaps
        integers = st.integers(-(2**53) if low is None else int(low), int(most.max()))
        drawn = arrays(np.int64, shape, elements=integers, fill=st.nothing()).map(torch.from_numpy)
        return drawn.map(lambda integers: torch.minimum(integers, most))
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"values: dtype is {dtype}, wanted torch.float32 or torch.float64")
    bits: Literal[32, 64] = 32 if dtype == torch.float32 else 64
    numbers = np.float32 if bits == 32 else np.float64
    if low is None and high is None:
        elements = st.floats(-_at(reach, dtype), _at(reach, dtype), width=bits)
    elif low is not None and high is not None:
        far = margin * float(high - low)
        elements = st.floats(_end(base, low, 1, far, dtype), _end(base, high, -1, far, dtype), width=bits)
    else:
        end, sign = (low, 1) if low is not None else (high, -1)
        nearest = _end(base, end, sign, margin, dtype)

        def away(exponent: float) -> float:
            value = _at(end + sign * (margin + math.exp(exponent)), dtype)
            return max(value, nearest) if sign > 0 else min(value, nearest)

        elements = st.just(nearest) | st.floats(-reach, reach).map(away)
    return arrays(numbers, shape, elements=elements, fill=st.nothing()).map(torch.from_numpy)


def _at(number: float, dtype: torch.dtype) -> float:
    """The nearest number of a dtype."""
    return torch.tensor(number, dtype=dtype).item()


def _end(constraint: Any, end: float, sign: int, margin: float, dtype: torch.dtype) -> float:
    """The number of a dtype that is `margin` inwards from an end, or the nearest to it that belongs to the set."""
    value, inwards = torch.tensor(end + sign * margin, dtype=dtype), torch.tensor(sign * math.inf, dtype=dtype)
    while not bool(constraint.check(value)):
        value = torch.nextafter(value, inwards)
    return value.item()


def inputs_of(
    transform: Transform, event_shape: Sequence[int], *, batch: Sequence[int] = (2,), **options: float
) -> st.SearchStrategy[Tensor]:
    """Values of a transform's domain, (*batch, *event_shape), of the dtype of its parameters; `options` as of `values`.

    >>> import flowkit as fk
    >>> from hypothesis import find
    >>> find(inputs_of(fk.UniformDequantizer(levels=4), (3,)), lambda x: bool((x == 3).any()))
    tensor([[0, 0, 0],
            [0, 0, 3]])
    """
    return values(transform.domain, (*batch, *event_shape), dtype=_dtype(transform), **options)


def latents_of(
    transform: Transform, latent_shape: Sequence[int], *, batch: Sequence[int] = (2,), **options: float
) -> st.SearchStrategy[Tensor]:
    """Values of a transform's codomain, (*batch, *latent_shape): what its inverse takes; `options` as of `values`."""
    return values(transform.codomain, (*batch, *latent_shape), dtype=_dtype(transform), **options)


def _dtype(transform: Transform) -> torch.dtype:
    floating = (t.dtype for t in [*transform.parameters(), *transform.buffers()] if t.is_floating_point())
    return next(floating, torch.float64)


def bijectors(size: int, *, perturb: float = 0.3) -> st.SearchStrategy[Transform]:
    """Bijectors of vectors of `size` real numbers to such vectors: couplings, linear maps, splines, moves of elements.

    They are in float64 and eval mode, and their parameters are moved by noise of deviation `perturb`.

    Raises:
        ValueError: for a `size` below 2, which no coupling can halve.
    """
    if size < 2:
        raise ValueError(f"bijectors: size is {size}, wanted 2 or more")
    first, rest = size // 2, size - size // 2
    kinds: dict[str, Callable[[], Transform]] = {
        "ScaleShift": lambda: ScaleShift(-2.0, 1.0),
        "LeakyReLU": lambda: LeakyReLU(slope=0.3),
        "Flip": lambda: Flip(dim=-1),
        "Permute": lambda: Permute(torch.randperm(size).tolist()),
        "ActNorm": lambda: ActNorm((size,)),
        "LULinear": lambda: LULinear(size),
        "HouseholderLinear": lambda: HouseholderLinear(size),
        "Elementwise-Affine": lambda: Elementwise(Affine(), (size,)),
        "Elementwise-MixLogistic": lambda: Elementwise(MixLogistic(2), (size,)),
        "AffineCoupling": lambda: AffineCoupling(_net(first, rest, 2), dim=-1, log_scale_bound=1.0),
        "Coupling-RationalQuadratic": lambda: Coupling(RationalQuadratic(4), _net(first, rest, 11), dim=-1),
    }

    def make(kind: str, seed: int) -> Transform:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = kinds[kind]().double().eval()
        return perturb_(made, perturb, torch.Generator().manual_seed(seed))

    return st.builds(make, st.sampled_from(list(kinds)), seeds())


def _net(first: int, rest: int, params: int) -> MLP:
    return MLP((first,), (rest, params), hidden=(8,))


def chains(
    parts: st.SearchStrategy[Transform] | int, *, min_length: int = 1, max_length: int = 4
) -> st.SearchStrategy[Chain]:
    """Chains of drawn parts; an integer stands for `bijectors(size)`.

    >>> from hypothesis import given, settings
    >>> @settings(max_examples=5, deadline=None, database=None)
    ... @given(chain=chains(3))
    ... def test_way_back(chain):
    ...     x = torch.zeros(7, 3, dtype=torch.float64)
    ...     torch.testing.assert_close(chain.inverse(chain(x)[0])[0], x)
    >>> test_way_back()
    """
    drawn = bijectors(parts) if isinstance(parts, int) else parts
    return st.lists(drawn, min_size=min_length, max_size=max_length).map(lambda made: Chain(*made))
