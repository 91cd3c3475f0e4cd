"""The layers of a flow, in the order in which data pass them: what a report has one line for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from flowkit.distribution import Distribution
from flowkit.transform import Chain, Inverse, Map, Transform

__all__ = ["Layer", "layers"]


@dataclass(frozen=True, eq=False)
class Layer:
    """One line of a report.

    Attributes:
        path: its name in the module it was found in, as `get_submodule` takes it.
        module: what is called when data pass it; a view of it (`Inverse`), if that is how it was built in.
        inner: the part itself, without views.
        depth: how many layers it stands in.
        turned: whether data pass it from its z to its x, because something around it was turned round.
        parent: the layer it stands in.
    """

    path: str
    module: nn.Module
    inner: nn.Module
    depth: int
    turned: bool
    parent: Layer | None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def kind(self) -> str:
        """Class of the part, of its map, and whether it is turned round."""
        maps = [type(child).__name__ for child in self.inner.children() if isinstance(child, Map)]
        plain = isinstance(self.inner, Map) or not isinstance(self.inner, Transform) or not maps
        turned = ".inv" if self.module is not self.inner and not isinstance(self.inner, Chain) else ""
        return type(self.inner).__name__ + ("" if plain else f"[{', '.join(maps)}]") + turned

    @property
    def ancestors(self) -> Iterator[Layer]:
        """The layers it stands in, from the nearest outwards."""
        layer = self.parent
        while layer is not None:
            yield layer
            layer = layer.parent


def layers(root: nn.Module) -> list[Layer]:
    """The layers of a flow or of a transform.

    Parts of a chain are layers, as are the chain, the transform of a distribution, its base and its nets. What stands
    inside another layer, as the noise of a dequantizer does, is one if it has parameters and is neither its net nor
    its map. A module that is built in twice is listed where it stands first.
    """
    found: list[Layer] = []
    seen: set[nn.Module] = set()
    if isinstance(root, Distribution):
        seen.add(root)
        _add_parts(found, seen, root, None, "", 0, turned=False)
    else:
        _add(found, seen, root, None, "", 0, turned=False)
    return found


def _add(
    found: list[Layer],
    seen: set[nn.Module],
    module: nn.Module,
    parent: Layer | None,
    path: str,
    depth: int,
    *,
    turned: bool,
) -> None:
    inner, inside, around = module, path, turned
    while isinstance(inner, Inverse):
        inner, inside, turned = inner.transform, f"{inside}.transform".lstrip("."), not turned
    if module in seen:
        return
    # A view is called itself, and turns nothing over but what stands in it.
    layer = Layer(path, module, inner, depth, around, parent)
    if inner in seen:  # a view of a part that has a line: no more than this line
        found.append(layer)
        seen.add(module)
        return
    seen |= {module, inner}
    found.append(layer)
    _add_parts(found, seen, inner, layer, inside, depth + 1, turned=turned)


def _add_parts(
    found: list[Layer],
    seen: set[nn.Module],
    whole: nn.Module,
    layer: Layer | None,
    path: str,
    depth: int,
    *,
    turned: bool,
) -> None:
    """The layers that stand in `whole`, a part without views."""
    named = [(f"{path}.{name}".lstrip("."), child) for name, child in whole.named_children()]
    if isinstance(whole, Chain):
        for name, child in reversed(named) if turned else named:
            _add(found, seen, child, layer, name, depth, turned=turned)
    elif isinstance(whole, Distribution):
        # A net for the context runs before the transform, the base after it.
        kinds = [not isinstance(child, Transform | Distribution) for _, child in named]
        nets = [pair for pair, net in zip(named, kinds, strict=True) if net]
        others = [pair for pair, net in zip(named, kinds, strict=True) if not net]
        for name, child in [*nets, *others]:
            if layer is None or isinstance(child, Transform) or _has_parameters(child):
                _add(found, seen, child, layer, name, depth, turned=False)
    elif isinstance(whole, Transform):
        for name, child in named:
            if isinstance(child, Transform | Distribution) and not isinstance(child, Map) and _has_parameters(child):
                _add(found, seen, child, layer, name, depth, turned=turned and isinstance(child, Transform))


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
