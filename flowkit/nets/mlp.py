"""The multilayer perceptron."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flowkit.arguments import as_shape, batched, broadcasts, count, nonlinearity, widths_of
from flowkit.errors import ShapeError
from flowkit.nets.layers import start_at

__all__ = ["MLP"]


class MLP(nn.Module):
    """A multilayer perceptron from one event shape to another; what it gives starts at 0, or where told.

    Args:
        shape: event shape of the input, flattened; an int stands for one dim, here and in `out`.
        out: event shape of the output, e.g. (*other_half, num_params).
        hidden: widths of the hidden layers; an int stands for one.
        context: width of a context vector, joined to the input; 0 for none.
        activation: class of the nonlinearity.
        residual: whether the hidden layers are residual blocks, h + W act(W act(h)), all of one width, behind a layer
            that enters them.
        start: what the net gives before it is trained, whatever the input; it broadcasts to `out`, 0 if not given. A
            mixture wants `map.start`: from 0, its components would stay alike.

    Shapes:
        value: (*batch, *shape); context: (*batch, context), which broadcasts; output: (*batch, *out).

    Raises:
        ShapeError: if the input or the context does not fit, or `start` does not broadcast to `out`.
        ValueError: if residual blocks have several widths, or for a size that is none.
        TypeError: if `activation` makes no module.

    >>> import torch
    >>> MLP((3,), (2, 5), hidden=(16,))(torch.zeros(7, 3)).shape
    torch.Size([7, 2, 5])
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        out: int | Sequence[int],
        hidden: int | Sequence[int] = (64, 64),
        context: int = 0,
        activation: Callable[[], nn.Module] = nn.SiLU,
        residual: bool = False,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        hidden, context = widths_of("MLP", hidden), count("MLP", "context", context, 0)
        nonlinearity("MLP", activation)
        if residual and len(set(hidden)) != 1:
            raise ValueError(f"MLP: hidden is {tuple(hidden)}, wanted one width for all residual blocks")
        self.shape, self.out = tuple(as_shape(shape, "MLP: shape")), tuple(as_shape(out, "MLP: out"))
        self.context = context
        widths = [math.prod(self.shape) + context, *hidden]
        layers: list[nn.Module] = []
        if residual:
            layers += [nn.Linear(widths[0], widths[1]), *(ResidualBlock(width, activation) for width in hidden)]
        else:
            for before, after in itertools.pairwise(widths):
                layers += [nn.Linear(before, after), activation()]
        last = nn.Linear(widths[-1], math.prod(self.out))
        nn.init.zeros_(last.weight)
        start_at("MLP", last.bias, start, self.out)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, value: Tensor, context: Tensor | None = None) -> Tensor:
        """The output for `value`, (*batch, *out)."""
        batch = value.shape[: value.ndim - len(self.shape)]
        if value.shape[len(batch) :] != self.shape:
            raise ShapeError(f"MLP: input has shape {tuple(value.shape)}, wanted {batched(self.shape)}")
        flat = value.reshape(*batch, math.prod(self.shape))
        if self.context:
            fits = context is not None and context.shape[-1:] == (self.context,)
            if context is None or not fits or not broadcasts(context.shape[:-1], batch):
                came = "is missing" if context is None else f"has shape {tuple(context.shape)}"
                raise ShapeError(f"MLP: context {came}, wanted (*batch, {self.context}), for a batch {tuple(batch)}")
            flat = torch.cat([flat, context.expand(*batch, self.context)], dim=-1)
        return self.layers(flat).reshape(*batch, *self.out)


class ResidualBlock(nn.Module):
    """h + W2 act(W1 act(h)), the pre-activation block of He, Zhang, Ren, Sun, "Identity Mappings", 2016."""

    def __init__(self, width: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(activation(), nn.Linear(width, width), activation(), nn.Linear(width, width))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)
