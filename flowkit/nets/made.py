"""MADE: a multilayer perceptron whose masks let every feature's outputs read only the features before it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit.arguments import broadcasts, check_kind, count, nonlinearity, whole, widths_of
from flowkit.errors import ShapeError
from flowkit.nets.layers import start_at

__all__ = ["MADE"]

Groups = tuple[tuple[int, ...], ...]

_FEW = 4  # outputs that a map reads one by one


class MADE(nn.Module):
    """A masked multilayer perceptron: what it gives for feature i reads only the features that i depends on.

    Which those are is an order, or an adjacency for dependencies that are no chain. Every hidden unit reads one of the
    sets of features that some feature depends on, in equal numbers as in MADE, but not at random; it is joined to the
    units of the layer below whose sets lie within its own. A context enters the first layer without a mask. The last
    layer starts at 0, or at `start`, so that maps start simple.

    As the conditioner of `flowkit.Autoregressive` it also runs in turn: with `find`, it goes once through its units in
    the order in which what they read becomes known, so that finding all features costs the arithmetic of one pass.

    Args:
        features: how many there are.
        out: outputs for each of them, `map.num_params` as a conditioner.
        hidden: widths of the hidden layers, an int for one; with `residual`, of the residual blocks, all the same. With
            an order, a layer of fewer than features - 1 units cuts dependencies: there are sets that no unit reads, and
            a feature then depends on part of those before it.
        context: width of a context vector, which every output may read; 0 for none.
        activation: class of the nonlinearity.
        order: the features from first to last, `range(features)` if not given; `range(features)[::-1]` reverses them.
        adjacency: (features, features), a tensor or lists, true at (i, j) where the outputs of i read feature j,
            in place of `order`.
        residual: whether the hidden layers are residual blocks, h + W act(W act(h)), behind one that enters them.
        start: what the net gives before it is trained, whatever the input; it broadcasts to (features, out), 0 if not
            given. A mixture wants `map.start`: from 0, its components would stay alike.

    Shapes:
        value: (*batch, features); context: (*batch, context), which broadcasts; output: (*batch, features, out).

    Attributes:
        groups: the features that become known together, first to last: one each for an order. Their number is the
            depth of the dependencies.

    Raises:
        ShapeError: if the input or the context does not fit, or `start` does not broadcast to (features, out).
        ValueError: if the order is no permutation, or the adjacency has another shape or a circle in it.
        TypeError: if the adjacency is no array, or `activation` makes no module.

    Reference:
        Germain, Gregor, Murray, Larochelle, "MADE: Masked Autoencoder for Distribution Estimation", 2015,
        https://arxiv.org/abs/1502.03509; with residual blocks Nash, Durkan, "Autoregressive Energy Machines", 2019,
        https://arxiv.org/abs/1904.05626.

    >>> import torch
    >>> net = MADE(3, 2, hidden=(16,), order=(2, 0, 1))
    >>> net(torch.zeros(7, 3)).shape, net.groups
    (torch.Size([7, 3, 2]), ((2,), (0,), (1,)))
    >>> MADE(4, 2, adjacency=torch.eye(4).roll(2, 0).tril()).groups
    ((0, 1), (2, 3))
    """

    incremental = True

    groups: Groups
    _found: Tensor
    _places: Tensor
    _rows: Tensor

    def __init__(
        self,
        features: int,
        out: int,
        hidden: int | Sequence[int] = (64, 64),
        context: int = 0,
        activation: Callable[[], nn.Module] = nn.SiLU,
        *,
        order: Sequence[int] | Tensor | None = None,
        adjacency: Tensor | Sequence[Sequence[bool]] | None = None,
        residual: bool = False,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        features, out = count("MADE", "features", features), count("MADE", "out", out)
        hidden, context = widths_of("MADE", hidden), count("MADE", "context", context, 0)
        if residual and len(set(hidden)) != 1:
            raise ValueError(f"MADE: hidden is {tuple(hidden)}, wanted one width for all residual blocks")
        if adjacency is None:
            reads = _reads_before(features, range(features) if order is None else order)
        elif order is None:
            reads = _reads_along(features, adjacency)
        else:
            raise ValueError("MADE: give order or adjacency, not both")
        self.features, self.out, self.context, self.residual = features, out, context, residual
        widths = [*hidden[:1], *(width for width in hidden for _ in range(2))] if residual else list(hidden)
        self.groups, self._counts, masks = _structure(reads, widths, bool(context))
        masks[-1] = masks[-1].repeat_interleave(out, 0)
        self.layers = nn.ModuleList(MaskedLinear(mask) for mask in masks)
        self.from_context = nn.Linear(context, len(masks[0]), bias=False) if context else None
        self.activation = nonlinearity("MADE", activation)
        starts_at_zero = [self._stack[-1].weight]
        if self.from_context is not None and not widths:
            starts_at_zero.append(self.from_context.weight)
        for parameter in starts_at_zero:
            nn.init.zeros_(parameter)
        start_at("MADE", self._stack[-1].bias, start, (features, out))

        found = [i for group in self.groups for i in group]
        rows = [i * out + k for i in found for k in range(out)]
        places = sorted(range(features), key=found.__getitem__)
        for name, index in (("_found", found), ("_places", places), ("_rows", rows)):
            self.register_buffer(name, torch.tensor(index), persistent=False)

    @classmethod
    def from_layers(
        cls,
        layers: Sequence[tuple[Tensor, Tensor, Tensor]],
        features: int,
        activation: Callable[[], nn.Module],
        *,
        residual: bool = False,
    ) -> MADE:
        """The network with these masked layers, as another library trained it: what it gives is the same.

        What its outputs depend on is read off the masks, and its hidden units are put in the order in which what they
        read becomes known, so that it runs in turn like any other.

        Args:
            layers: weight, bias and mask of every linear layer, first to last. The columns of the first are the
                features, then the context; the rows of the last are the outputs of the first feature, then the next.
            features: how many there are.
            activation: makes the nonlinearity.
            residual: whether the layers between the first and the last are, by twos, residual blocks.

        Raises:
            ValueError: if features depend on each other in a circle, or the units that a residual block adds to one
                another become known at different steps.
        """
        masks = [mask.bool().cpu() for _, _, mask in layers]
        context, out = masks[0].shape[1] - features, masks[-1].shape[0] // features
        sets = [torch.eye(features, dtype=torch.bool, device="cpu")]  # what every unit of a layer reads
        for k, mask in enumerate(masks):
            read = mask[:, :features] if k == 0 else mask
            sets.append(read.float() @ sets[-1].float() > 0)
            if residual and k % 2 == 0 and 0 < k < len(masks) - 1:
                sets[-1] |= sets[-3]
        reads = sets.pop().unflatten(0, (features, out)).any(1)
        widths = [len(each) for each in sets[1:]]
        hidden = widths[2::2] if residual else widths
        net = cls(features, out, hidden, context, activation, adjacency=reads, residual=residual)

        level = _levels(reads)
        # A unit that reads the last features leads nowhere: any step will do.
        steps = [torch.where(each, level + 1, 0).amax(1).clamp(max=len(net.groups) - 1) for each in sets[1:]]
        if residual and any(not torch.equal(step, steps[0]) for step in steps[::2]):
            raise ValueError("MADE: residual blocks add units that become known at different steps")
        net._counts = [torch.bincount(step, minlength=len(net.groups)).tolist() for step in steps]
        orders = [torch.arange(features), *(step.argsort(stable=True) for step in steps), torch.arange(features * out)]
        with torch.no_grad():
            for k, ((weight, bias, _), mask) in enumerate(zip(layers, masks, strict=True)):
                columns, rows = orders[k], orders[k + 1]
                if k == 0 and net.from_context is not None:
                    entering = (weight * mask.to(weight))[:, features:]
                    net.from_context = net.from_context.to(weight)
                    net.from_context.weight.copy_(entering[rows])
                layer = MaskedLinear(mask[rows][:, columns]).to(weight)
                layer.weight.copy_(weight[rows][:, columns])
                layer.bias.copy_(bias[rows])
                net.layers[k] = layer
        return net.to(layers[0][0].device)

    def forward(
        self,
        value: Tensor,
        context: Tensor | None = None,
        *,
        find: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The outputs of all features; or, with `find`, the features themselves, found in turn.

        Args:
            value: (*batch, features); with `find` only its shape, dtype and device are read.
            context: (*batch, context), which broadcasts.
            find: called for one group after another with its outputs (*batch, size of the group, out); it gives the
                values of these features, (*batch, size of the group), and what comes after may depend on them.

        Returns:
            (*batch, features, out); with `find` the values that it gave, (*batch, features).
        """
        if value.shape[-1:] != (self.features,):
            raise ShapeError(f"MADE: input has shape {tuple(value.shape)}, wanted (*batch, {self.features})")
        layers = self._stack
        bias = self._first_bias(layers[0], value, context)
        return self._at_once(layers, value, bias) if find is None else self._in_turn(layers, value, bias, find)

    @property
    def _stack(self) -> list[MaskedLinear]:
        # Iterating a ModuleList takes three times as long, which shows on small batches.
        return list(self.layers._modules.values())  # type: ignore[arg-type]

    def _first_bias(self, first: MaskedLinear, value: Tensor, context: Tensor | None) -> Tensor:
        """The bias of the first layer, and what the context adds to it."""
        if self.from_context is None:
            return first.bias
        batch = value.shape[:-1]
        if context is None or context.shape[-1:] != (self.context,) or not broadcasts(context.shape[:-1], batch):
            came = "is missing" if context is None else f"has shape {tuple(context.shape)}"
            raise ShapeError(f"MADE: context {came}, wanted (*batch, {self.context}), for a batch {tuple(batch)}")
        return first.bias + self.from_context(context.expand(*batch, self.context))

    def _at_once(self, layers: list[MaskedLinear], value: Tensor, bias: Tensor) -> Tensor:
        first, *others = layers
        h = skip = first(value, bias)
        for k, layer in enumerate(others, 1):
            # In a residual net the sum goes on beside what a block makes of it.
            h = self._activated(h, k, in_place=not self.residual or k % 2 == 0)
            if k == len(others) and self.out <= _FEW and torch.compiler.is_compiling():
                return self._by_output(layer, h)
            h = layer(h)
            if self.residual and k % 2 == 0:
                h = skip = skip + h
        return h.unflatten(-1, (self.features, self.out))

    def _by_output(self, layer: MaskedLinear, h: Tensor) -> Tensor:
        """The last layer's response, in memory the first outputs of all features, then the second ones.

        Of interleaved outputs the compiler makes scalar loops. Without it this gains nothing for many features, and
        costs time for few.
        """
        weight, bias = (
            t.unflatten(0, (self.features, self.out)).transpose(0, 1).flatten(0, 1)
            for t in (layer.masked_weight(), layer.bias)
        )
        return F.linear(h, weight, bias).unflatten(-1, (self.out, self.features)).transpose(-1, -2)

    def _in_turn(
        self, layers: list[MaskedLinear], value: Tensor, bias: Tensor, find: Callable[[Tensor], Tensor]
    ) -> Tensor:
        # The rows of every layer by the step at which what they read is known: then what they read comes first, and
        # their masked weights are blocks. Hidden units stand in that order, features and outputs are put in it here.
        weights: list[Tensor] = [layer.masked_weight() for layer in layers]
        biases: list[Tensor] = [bias, *(layer.bias for layer in layers[1:])]
        weights[0] = weights[0].index_select(1, self._found)
        weights[-1], biases[-1] = weights[-1].index_select(0, self._rows), biases[-1].index_select(-1, self._rows)
        counts = [*self._counts, [len(group) * self.out for group in self.groups]]
        row_weights = [weight.split(count, 0) for weight, count in zip(weights, counts, strict=True)]
        row_biases = [bias.split(count, -1) for bias, count in zip(biases, counts, strict=True)]

        known: list[Tensor | None] = [None] * len(weights)  # what every layer reads, as far as it is known
        h = skip = values = value
        for step, group in enumerate(self.groups):
            for k in range(len(weights)):
                if counts[k][step]:
                    h = _respond(known[k], row_weights[k][step], row_biases[k][step], value.shape[:-1])
                    if self.residual and k % 2 == 0:
                        h = skip = h if k == 0 else skip + h
                    if k + 1 < len(weights):
                        known[k + 1] = _joined(known[k + 1], self._activated(h, k + 1))
            known[0] = values = _joined(known[0], find(h.unflatten(-1, (len(group), self.out))))
        return values.index_select(-1, self._places)

    def _activated(self, h: Tensor, k: int, *, in_place: bool = False) -> Tensor:
        """What layer k reads: residual blocks leave their sum as it is. `in_place` where nothing else reads h."""
        if self.residual and k == len(self.layers) - 1:
            return h
        return h.relu_() if in_place and type(self.activation) is nn.ReLU else self.activation(h)

    def extra_repr(self) -> str:
        return f"features={self.features}, out={self.out}, groups={len(self.groups)}"


class MaskedLinear(nn.Linear):
    """A linear layer whose weight counts only where the mask, of the weight's shape, is true."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        # Of the weight's dtype: a product with booleans takes four times as long.
        self.register_buffer("mask", mask.to(self.weight), persistent=False)

    def masked_weight(self) -> Tensor:
        return self.weight * self.mask

    def forward(self, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """With another bias in place of its own, (*batch, rows), if one is given."""
        weight = self.masked_weight()
        if bias is None or bias.ndim == 1:
            return F.linear(value, weight, self.bias if bias is None else bias)
        return F.linear(value, weight) + bias


def _respond(known: Tensor | None, weight: Tensor, bias: Tensor, batch: torch.Size) -> Tensor:
    """Rows of a linear layer, of whose columns the first are known and the others masked."""
    if known is None:
        return bias.expand(*batch, bias.shape[-1])
    weight = weight[:, : known.shape[-1]]
    return F.linear(known, weight, bias) if bias.ndim == 1 else F.linear(known, weight) + bias


def _joined(known: Tensor | None, new: Tensor) -> Tensor:
    return new if known is None else torch.cat([known, new], -1)


# ---------------------------------------------------------------------------------------------------------------------
# Which reads which: once, at construction


def _reads_before(features: int, order: Sequence[int] | Tensor) -> Tensor:
    """(features, features): true at (i, j) where j comes before i."""
    check_kind("MADE", "order", order, Iterable, "the features from first to last")
    listed = order.tolist() if isinstance(order, Tensor) else list(order)
    if len(listed) != features or {whole(i) for i in listed} != set(range(features)):
        raise ValueError(f"MADE: order is {listed}, wanted each of 0 to {features - 1} once")
    place = torch.tensor(sorted(range(features), key=listed.__getitem__), device="cpu")
    return place[:, None] > place


def _reads_along(features: int, adjacency: Tensor | Sequence[Sequence[bool]]) -> Tensor:
    try:
        adjacency = torch.as_tensor(adjacency)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"MADE: adjacency is {adjacency!r}, wanted a tensor {(features, features)}") from None
    if adjacency.shape != (features, features):
        raise ValueError(f"MADE: adjacency has shape {tuple(adjacency.shape)}, wanted {(features, features)}")
    return adjacency.detach().bool().cpu()


def _structure(reads: Tensor, widths: Sequence[int], context: bool) -> tuple[Groups, list[list[int]], list[Tensor]]:
    """The groups of features, how many units of each hidden layer become known at each step, and all masks."""
    level = _levels(reads)
    groups = tuple(tuple((level == each).nonzero().flatten().tolist()) for each in level.unique())
    sets = torch.unique(reads, dim=0)
    if not context and len(sets) > 1:
        sets = sets[sets.any(1)]  # units that read nothing would be constants
    # A set is known when the last of its features is: the step counts the groups that were found before.
    step = torch.where(sets, level + 1, 0).amax(1)
    kinds = [_spread(width, len(sets)) for width in widths]
    sets, step = sets[step.argsort(stable=True)], step.sort().values
    counts = [torch.bincount(step[kind], minlength=len(groups)).tolist() for kind in kinds]
    reading = [torch.eye(len(reads), dtype=torch.bool, device="cpu"), *(sets[kind] for kind in kinds), reads]
    masks = [_within(below, above) for below, above in itertools.pairwise(reading)]
    return groups, counts, masks


def _levels(reads: Tensor) -> Tensor:
    """For each feature, how many others must be found one after another before it.

    Raises:
        ValueError: if features depend on each other in a circle.
    """
    level = torch.zeros(len(reads), dtype=torch.long, device="cpu")
    missing = torch.ones(len(reads), dtype=torch.bool, device="cpu")
    edges = reads.float()
    for step in range(len(reads)):
        ready = missing & (edges @ missing.float() == 0)
        level[ready] = step
        missing &= ~ready
        if not ready.any():
            break
    if missing.any():
        circle = missing.nonzero().flatten().tolist()
        raise ValueError(f"MADE: adjacency has a circle among the features {circle}, so that none of them is first")
    return level


def _spread(width: int, kinds: int) -> Tensor:
    """What kind each of `width` units is: all kinds as often, sorted; of too few units, evenly from first to last."""
    if width < kinds:
        # Counted from the last, which a single unit is.
        return kinds - 1 - torch.linspace(0, kinds - 1, width, device="cpu").round().long().flip(0)
    return (torch.arange(width, device="cpu") % kinds).sort().values


def _within(below: Tensor, above: Tensor) -> Tensor:
    """(above, below): true where the set of the one below lies within the one above. Rows are sets."""
    return (~above).float() @ below.float().T == 0
