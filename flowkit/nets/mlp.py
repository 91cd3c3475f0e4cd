"""The multilayer perceptron."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkit.errors import ShapeError

__all__ = ["MLP"]


class MLP(nn.Module):
    """A multilayer perceptron from one event shape to another; the last layer starts at 0, so that maps start simple.

    Args:
        shape: event shape of the input, flattened.
        out: event shape of the output, e.g. (*other_half, num_params).
        hidden: widths of the hidden layers.
        context: width of a context vector, joined to the input; 0 for none.
        activation: class of the nonlinearity.

    Shapes:
        value: (*batch, *shape); context: (*batch, context), which broadcasts; output: (*batch, *out).

    Raises:
        ShapeError: if the input or the context does not fit.

    >>> import torch
    >>> MLP((3,), (2, 5), hidden=(16,))(torch.zeros(7, 3)).shape
    torch.Size([7, 2, 5])
    """

    def __init__(
        self,
        shape: Sequence[int],
        out: Sequence[int],
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        activation: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        self.shape, self.out, self.context = tuple(shape), tuple(out), context
        widths = [math.prod(self.shape) + context, *hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), activation()]
        last = nn.Linear(widths[-1], math.prod(self.out))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, value: Tensor, context: Tensor | None = None) -> Tensor:
        batch = value.shape[: value.ndim - len(self.shape)]
        if value.shape[len(batch) :] != self.shape:
            raise ShapeError(f"MLP: input has shape {tuple(value.shape)}, wanted (*batch, {self.shape})")
        flat = value.reshape(*batch, math.prod(self.shape))
        if self.context:
            if context is None or context.shape[-1:] != (self.context,):
                came = "is missing" if context is None else f"has shape {tuple(context.shape)}"
                raise ShapeError(f"MLP: context {came}, wanted (*batch, {self.context})")
            flat = torch.cat([flat, context.expand(*batch, self.context)], dim=-1)
        return self.layers(flat).reshape(*batch, *self.out)
