"""What hypothesis draws for flows: seeds, batch shapes, values of a domain."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.distributions import constraints

__all__ = ["batch_shapes", "seeds", "values"]

seeds = st.integers(0, 2**31 - 1)
batch_shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)


def values(
    constraint: constraints.Constraint | None, shape: tuple[int, ...], reach: float = 10
) -> st.SearchStrategy[Tensor]:
    """Tensors of values of a set: int64 for integers, else float64; of the real line from -reach to reach.

    Of a half-line, the exponentials of those.
    """
    low, high = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    if constraint is not None and constraint.is_discrete:
        most = torch.as_tensor(high)  # of each element of an event, perhaps
        drawn = arrays(np.int64, shape, elements=st.integers(low, int(most.max())), fill=st.nothing())
        drawn = drawn.map(lambda integers: np.minimum(integers, most.numpy()))
    elif low is not None and high is not None:
        # Not nearer to the ends than a slope of 1000 allows.
        width = high - low
        elements = st.floats(low + 0.001 * width, high - 0.001 * width)
        drawn = arrays(np.float64, shape, elements=elements, fill=st.nothing())
    else:
        drawn = arrays(np.float64, shape, elements=st.floats(-reach, reach), fill=st.nothing())
        if low is not None:
            drawn = drawn.map(lambda reals: low + np.exp(reals))
        elif high is not None:
            drawn = drawn.map(lambda reals: high - np.exp(reals))
    return drawn.map(torch.from_numpy)
