"""NICE (Dinh, Krueger, Bengio, 2015, https://arxiv.org/abs/1410.8516), assembled from the parts.

Beside the paper: section 3.2 is `step`, 3.3 is the part `rescale`, 3.4 is the base, and 5.1 has the sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from flowkit.arguments import count, vector_size, widths_of
from flowkit.bijectors import Coupling, Elementwise, Flip, Permute
from flowkit.distributions import Logistic, Normal
from flowkit.flow import Flow
from flowkit.maps import Additive, Scale
from flowkit.nets import MLP
from flowkit.surjections import UniformDequantizer
from flowkit.transform import Chain, Transform

__all__ = ["nice"]


def odd_and_even(features: int) -> Permute:
    """Section 5.1: odd components first, then even ones, so that they are the halves of the couplings."""
    return Permute([*range(0, features, 2), *range(1, features, 2)])


def step(features: int, hidden: Sequence[int], context: int) -> Chain:
    """Sections 3.2 and 5.1: add a rectified net of one half to the other, and exchange the halves.

    The order is reversed within them too, which no net minds. Of an odd number of features the one in the middle is
    always in the half that changes.
    """
    map = Additive()
    first = features // 2
    net = MLP((first,), (features - first, map.num_params), hidden, context, activation=nn.ReLU)
    return Chain(couple=Coupling(map, net, dim=-1), flip=Flip(dim=-1))


def nice(
    features: int = 784,
    *,
    levels: int | None = 256,
    couplings: int = 4,
    hidden: int | Sequence[int] = (1000,) * 5,
    base: Literal["logistic", "normal"] = "logistic",
    context_shape: int | tuple[int] | None = None,
) -> Flow:
    """NICE over vectors: additive couplings of odd and even components, then a scale for each component.

    The defaults are the paper's model of MNIST (section 5.1): four couplings of rectified nets with five hidden
    layers of 1000 units, and a logistic prior, over flat images of 256 levels, which uniform noise makes continuous.
    The paper's other sizes: TFD four layers of 5000 and a normal prior; SVHN and CIFAR-10 four layers of 2000. It
    whitened the data of those three; this model takes data as they are.

    Args:
        features: size of the vector.
        levels: integers per element; None for data that are continuous already, and a density that is exact.
        couplings: how many; every component is changed from 2 on, and depends on all others from 3 on.
        hidden: widths of the hidden layers of each coupling's net; an int for one.
        base: the prior, "logistic" or "normal".
        context_shape: (size,), or size, of a context vector, which joins the input of every net; None for no context.
            The paper's model has none.

    Shapes:
        x: (*batch, features), integers from 0 to levels - 1, or floating; log_prob: (*batch).

    Raises:
        ValueError: for an impossible size, or an unknown prior.

    Reference:
        Dinh, Krueger, Bengio, "NICE: Non-linear Independent Components Estimation", 2015,
        https://arxiv.org/abs/1410.8516.

    >>> import torch
    >>> flow = nice(6, levels=None, hidden=(16,))
    >>> flow.sample((2,)).shape, flow.exact
    (torch.Size([2, 6]), True)
    """
    features, couplings = count("nice", "features", features, 2), count("nice", "couplings", couplings)
    hidden = widths_of("nice", hidden)
    priors = {"logistic": Logistic, "normal": Normal}
    if not isinstance(base, str) or base not in priors:
        raise ValueError(f"nice: base is {base!r}, wanted 'logistic' or 'normal'")
    context = vector_size("nice", context_shape)
    parts: dict[str, Transform] = {} if levels is None else {"dequantize": UniformDequantizer(levels)}
    parts["split"] = odd_and_even(features)
    parts["couplings"] = Chain(*(step(features, hidden, context) for _ in range(couplings)))
    parts["rescale"] = Elementwise(Scale(), (features,))
    return Flow(Chain(**parts), priors[base]((features,)), context_shape=context_shape)
