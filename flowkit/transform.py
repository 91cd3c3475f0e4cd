"""The protocol every layer follows, its inverse view and its composition. Start reading here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowkit.arguments import check_generator, check_kind, check_tensor
from flowkit.errors import DomainError, ShapeError
from flowkit.functional.checkpointing import checkpointed
from flowkit.functional.reduce import sum_rightmost

__all__ = ["Bijector", "Chain", "Inverse", "Map", "Transform", "within"]


class Transform(nn.Module, ABC):
    """A layer: a function of tensors both ways that returns, second, its share of the log-likelihood.

    `z, l = t(x, context)` runs from data to latent, and `log p(x) = log p(z) + l`: exactly if the forward
    direction is deterministic, as a lower bound in expectation if it draws noise. `x, l = t.inverse(z, context)`
    runs back, and `l` belongs to the direction that was run.

    Two laws hold for every layer. If the inverse is deterministic, `inverse(forward(x))` gives `(x, -l)`;
    if the forward is deterministic, `forward(inverse(z))` gives `(z, -l)`.

    Shapes:
        x: (*batch, *event of `in_ndim` dims), any number of batch dims, none included.
        z: (*batch, *event of `out_ndim` dims).
        l: (*batch), float32 or better.
        context: one optional tensor, handed through untouched to whoever reads it.

    Raises:
        ShapeError: if x, z or the context does not fit; the layer is named by its path in the flow.
        DomainError: for integers, where the domain is continuous.
        TypeError: for what is no tensor.

    A subclass sets `in_ndim` and `out_ndim` and writes the two directions. One that draws noise says so with
    `stochastic_forward` or `stochastic_inverse`, and takes `generator` in that direction.

    Attributes:
        in_ndim: rightmost dims of x that are the event; 0 for an elementwise map.
        out_ndim: the same for z.
        domain: the values x may have; None if any values are fine and pass unchanged (a rearrangement).
        codomain: the values z has; None as for `domain`.
        checkpointed: whether a chain runs this layer a second time in the backward pass, in place of keeping what it
            computed; set by `flowkit.activation_checkpointing`.
        net_takes_context: whether the net of this part is called with the context too; a part that has one finds it
            out at construction.
        net_reads: what the net of this part is given, for error messages.
    """

    in_ndim: int
    out_ndim: int
    stochastic_forward: bool = False
    stochastic_inverse: bool = False
    checkpointed: bool = False
    net_takes_context: bool = True
    net_reads: str = ""
    domain: constraints.Constraint | None = constraints.real
    codomain: constraints.Constraint | None = constraints.real

    # nn.Module erases the signature of `forward`; a layer called is a layer run forward.
    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return super().__call__(*args, **kwargs)

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From data to latent: (z, l)."""

    @abstractmethod
    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From latent to data: (x, l), with the `l` of this direction."""

    @property
    def inv(self) -> Transform:
        """The same layer turned round; parameters are shared."""
        return Inverse(self)

    @property
    def path(self) -> str:
        """Where this layer stands in its flow, for error messages; its class while it stands in none."""
        return self.__dict__.get("_path", type(self).__name__)

    def check_event(self, name: str, value: Tensor, event: tuple[int | None, ...]) -> None:
        """Refuse a `value` whose rightmost dims are not `event`; None stands for any size.

        Raises:
            ShapeError: naming this part, what came and what was wanted.
            DomainError: for integers, if the domain is continuous.
            TypeError: for what is no tensor.
        """
        check_tensor(self.path, name, value)
        if not value.is_floating_point() and self.domain is not None and not self.domain.is_discrete:
            raise DomainError(f"{self.path}: {name} is {value.dtype}, wanted a floating dtype")
        came = tuple(value.shape[max(value.ndim - len(event), 0) :])
        if len(came) != len(event) or any(w is not None and w != c for w, c in zip(event, came, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in event)
            raise ShapeError(
                f"{self.path}: {name} has shape {tuple(value.shape)}, wanted (*batch, {wanted})"
                if event
                else f"{self.path}: {name} has shape {tuple(value.shape)}"
            )

    def enter_net(self, net: Callable[..., Tensor], *args: Tensor | None) -> Tensor:
        """`net(*args)`; what it says of shapes and dtypes that do not fit comes with the path of this part.

        Raises:
            ShapeError: what the net raised, with the path before it.
            DomainError: if the net failed on another dtype than that of its parameters.
        """
        try:
            return checkpointed(self.checkpointed and torch.compiler.is_compiling(), net, *args)
        except ShapeError as error:
            raise ShapeError(f"{self.path}: {error}" + (f"; {self.net_reads}" if self.net_reads else "")) from error
        except RuntimeError as error:
            self._blame_dtype(args, error)
            raise

    def _blame_dtype(self, args: tuple[Tensor | None, ...], error: RuntimeError) -> None:
        """Raise what explains the error of a net better: that a dtype is none of the parameters'."""
        own = {parameter.dtype for parameter in self.parameters() if parameter.is_floating_point()}
        for value in args:
            if value is None or not own or value.dtype in own:
                continue
            if not value.is_floating_point() and "dtype" not in str(error):
                continue  # labels, say, which the net may well take
            if torch.amp.is_autocast_available(value.device.type) and torch.is_autocast_enabled(value.device.type):
                continue  # the net casts what it is given
            wanted = ", ".join(sorted(map(str, own)))
            raise DomainError(
                f"{self.path}: the net was given {value.dtype}, but its parameters are {wanted}: wanted the input in "
                f"{wanted}, or the part in {value.dtype}"
            ) from error

    def net_arguments(self, value: Tensor, context: Tensor | None) -> tuple[Tensor | None, ...]:
        """What the net of this part is called with: `context` too, unless the net takes none.

        Raises:
            ShapeError: if there is a context, and the net takes none.
            TypeError: if there is one that is no tensor.
        """
        if context is not None:
            check_tensor(self.path, "context", context)
        if self.net_takes_context:
            return value, context
        if context is not None:
            raise ShapeError(
                f"{self.path}: context has shape {tuple(context.shape)}, but the net takes none; wanted one that is "
                "called as net(value, context)"
            )
        return (value,)

    def check_params(self, net: str, params: object) -> None:
        """Refuse what a net gave for the parameters of a map, unless it is a floating tensor.

        Raises:
            TypeError: for anything else, naming this part.
        """
        if not isinstance(params, Tensor) or not params.is_floating_point():
            came = params.dtype if isinstance(params, Tensor) else f"a {type(params).__name__}"
            raise TypeError(f"{self.path}: the {net} gave {came}, wanted a tensor of a floating dtype")

    def needed_context(self, context: Tensor | None) -> Tensor:
        """`context`, or the error that it is missing.

        Raises:
            ShapeError: if `context` is None.
            TypeError: if it is no tensor.
        """
        if context is None:
            raise ShapeError(f"{self.path}: context is missing; {type(self).__name__} reads its parameters from it")
        check_tensor(self.path, "context", context)
        return context


class Bijector(Transform):
    """A layer that draws no noise either way: both laws hold, and `l` is log|det dz/dx|."""


class Map(Bijector):
    """An elementwise bijector whose parameters arrive as its context.

    It has no state, so any scheme can feed it: a coupling, an autoregressive net, free parameters, a context net.
    A subclass sets `num_params` and writes the two directions, reading them with `parameters_for(x, context)`.

    Shapes:
        x, z, l: (*batch); context: (*batch, num_params).

    Attributes:
        num_params: how many parameters one element takes.
    """

    in_ndim = 0
    out_ndim = 0
    num_params: int

    @property
    def start(self) -> Tensor:
        """Parameters for training to start from, (num_params,): 0 unless the map cannot leave 0 by its gradient."""
        return torch.zeros(self.num_params)

    def parameters_for(self, value: Tensor, context: Tensor | None) -> Tensor:
        """The parameters of every element of `value`.

        Raises:
            ShapeError: if they are missing or not (*value.shape, num_params).
            DomainError: if `value` is not floating, and the domain is continuous.
            TypeError: if either is no tensor.
        """
        self.check_event("the value", value, ())
        params, wanted = self.needed_context(context), (*value.shape, self.num_params)
        if params.shape != wanted:
            raise ShapeError(
                f"{self.path}: context has shape {tuple(params.shape)}, wanted {wanted}: "
                f"{self} has {self.num_params} parameters"
            )
        return params

    def refuse_half(self, name: str, value: Tensor) -> None:
        """Refuse a `value` in which the formula of this map has no digits to spare.

        Raises:
            DomainError: unless it is float32 or float64, naming this part.
            TypeError: for what is no tensor.
        """
        check_tensor(self.path, name, value)
        if value.dtype not in (torch.float32, torch.float64):
            raise DomainError(f"{self.path}: {name} is {value.dtype}, wanted torch.float32 or torch.float64")

    def named_params(self, params: Tensor) -> dict[str, Tensor]:
        """The parameters by their names, as the formula of the map has them; for reports, not for the way there.

        Each has the shape of the elements, or that and one dim more. A map that does not say has one name for all.
        """
        return {"params": params}


class Inverse(Transform):
    """A layer turned round: its forward is the other's inverse.

    The same parameters, nothing copied. `t.inv` makes one, and `t.inv.inv` is `t` again.

    Shapes:
        x: what `transform` gives as z, and z what it takes as x; l: (*batch).

    Raises:
        TypeError: if `transform` is none.
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        check_kind("Inverse", "transform", transform, Transform, "a Transform")
        self.transform = transform
        self.in_ndim, self.out_ndim = transform.out_ndim, transform.in_ndim
        self.stochastic_forward = transform.stochastic_inverse
        self.stochastic_inverse = transform.stochastic_forward
        self.domain, self.codomain = transform.codomain, transform.domain

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        return run_inverse(self.transform, x, context, generator)

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        return run_forward(self.transform, z, context, generator)

    @property
    def inv(self) -> Transform:
        return self.transform


class Chain(Transform):
    """Layers one after another, from data to latent: `Chain(a, b)` runs `a` first and `b` second.

    The log-terms add up. `Chain(*parts)` numbers its parts and `Chain(name=part, ...)` names them; the names are
    the keys of the state dict, with nothing in between. Layers of unlike event dims compose: the chain's event is
    as large as its largest needs, and the log-terms of the smaller ones are summed over the rest.

    Shapes:
        x: (*batch, *event of `in_ndim` dims); z: (*batch, *event of `out_ndim` dims); l: (*batch).

    Raises:
        ValueError: for no parts, for positional and named parts together, or for a name that is taken.
        DomainError: if one part's values do not fit the next one's domain.
        TypeError: for a part that is no `Transform`.

    >>> import torch, flowkit as fk
    >>> chain = Chain(logit=fk.Logit(margin=0.05), norm=fk.ActNorm((3,)))
    >>> x = torch.tensor([[0.2, 0.5, 0.7]])
    >>> z, log_det = chain(x)
    >>> back, minus = chain.inverse(z)
    >>> torch.allclose(back, x), torch.allclose(minus, -log_det), log_det.shape
    (True, True, torch.Size([1]))
    """

    def __init__(self, *parts: Transform, **named: Transform) -> None:
        super().__init__()
        if parts and named:
            raise ValueError("Chain: give positional parts or named ones, not both")
        every = dict(named) or {str(i): part for i, part in enumerate(parts)}
        if not every:
            raise ValueError("Chain: no parts; a chain has at least one")
        for name, part in every.items():
            if not isinstance(part, Transform):
                raise TypeError(f"Chain: part {name} is a {type(part).__name__}, wanted Transforms: Chain(one, two)")
            if not name or "." in name:
                raise ValueError(f"Chain: {name!r} cannot name a part, wanted a name without dots")
            taken = hasattr(self, name) or hasattr(type(self), name)  # a property may fail before there are parts
            if taken or name in ("in_ndim", "out_ndim", "_extra", "_path"):
                raise ValueError(f"Chain: {name!r} cannot name a part, it is an attribute of every chain")
            super().add_module(name, part)
        self._extra = self._event_dims(every)
        self.stochastic_forward = any(part.stochastic_forward for part in every.values())
        self.stochastic_inverse = any(part.stochastic_inverse for part in every.values())
        self.domain, self.codomain = _supports(every)

    def _event_dims(self, parts: dict[str, Transform]) -> tuple[int, ...]:
        """Set `in_ndim` and `out_ndim`; for each part, how many event dims of the chain are batch dims to it.

        That number is the same both ways, so it is computed once.
        """
        grown = 0
        before = []
        for part in parts.values():
            before.append(grown)
            grown += part.out_ndim - part.in_ndim
        self.in_ndim = max(part.in_ndim - b for part, b in zip(parts.values(), before, strict=True))
        self.out_ndim = self.in_ndim + grown
        return tuple(self.in_ndim + b - part.in_ndim for part, b in zip(parts.values(), before, strict=True))

    @property
    def _parts(self) -> list[Transform]:
        return list(self._modules.values())  # type: ignore[arg-type]

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        self.check_event("x", x, (None,) * self.in_ndim)
        terms = []
        for part, extra in zip(self._parts, self._extra, strict=True):
            x, term = run_forward(part, x, context, generator)
            terms.append(sum_rightmost(term, extra))
        return x, sum(terms[1:], terms[0])

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        self.check_event("z", z, (None,) * self.out_ndim)
        terms = []
        # A list: the compiler loses its place in an iterator over a loop node, such as an inverse in a part.
        for part, extra in list(zip(self._parts, self._extra, strict=True))[::-1]:
            z, term = run_inverse(part, z, context, generator)
            terms.append(sum_rightmost(term, extra))
        return z, sum(terms[1:], terms[0])

    def replace(self, **parts: Transform) -> Chain:
        """A new chain with the named parts exchanged, which shares all the others with this one.

        Raises:
            KeyError: for a name that the chain does not have.
        """
        unknown = [name for name in parts if name not in self._modules]
        if unknown:
            raise KeyError(f"{self.path}: no part named {unknown[0]!r}; there are {', '.join(self._modules)}")
        merged: dict[str, Any] = {**self._modules, **parts}
        positional = list(merged) == [str(i) for i in range(len(merged))]
        return Chain(*merged.values()) if positional else Chain(**merged)

    def __setattr__(self, name: str, value: Any) -> None:
        # The sums between the links are fixed at construction and would go stale.
        if name in self.__dict__.get("_modules", ()):
            raise AttributeError(f"{self.path}: parts are not assigned; chain.replace({name}=...) gives a new chain")
        super().__setattr__(name, value)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Refused: parts are those of the construction.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(f"{self.path}: parts are not added; Chain(...) with {name} among them makes a new chain")

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__.get("_modules", ()):
            raise AttributeError(f"{self.path}: parts are not deleted; Chain(...) of the others makes a new chain")
        super().__delattr__(name)

    def __getitem__(self, key: int | str) -> Transform:
        if isinstance(key, int):
            return self._parts[key]
        if key not in self._modules:
            raise KeyError(f"{self.path}: no part named {key!r}; there are {', '.join(self._modules)}")
        return self._modules[key]  # type: ignore[return-value]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Transform]:
        return iter(self._parts)


def within(view: Transform, *parts: Transform) -> Chain:
    """Run `parts` on another view of the data: `Chain(view, *parts, view.inv)`.

    >>> import torch, flowkit as fk
    >>> flipped = within(fk.PairColumns(), fk.Flip(dim=-4))
    >>> flipped(torch.arange(4.0).reshape(1, 1, 4))[0]
    tensor([[[1., 0., 3., 2.]]])
    """
    return Chain(view, *parts, Back(view))


class Back(Inverse):
    """A view turned round that stands elsewhere in the same chain, which owns it.

    The state of the view is there once: `torch.func.functional_call` does not put back what a module had that it meets
    by two names.
    """

    def __init__(self, view: Transform) -> None:
        super().__init__(view)
        del self._modules["transform"]
        self.__dict__["transform"] = view

    def extra_repr(self) -> str:
        return type(self.transform).__name__


def run_forward(
    transform: Transform, x: Tensor, context: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """`transform(x, context)`, with the generator if it draws noise in this direction."""
    check_generator(generator)
    if transform.stochastic_forward:
        return transform(x, context, generator=generator)
    return checkpointed(_whole(transform), transform, x, context)


def run_inverse(
    transform: Transform, z: Tensor, context: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """`transform.inverse(z, context)`, with the generator if it draws noise in this direction."""
    check_generator(generator)
    if transform.stochastic_inverse:
        return transform.inverse(z, context, generator=generator)  # type: ignore[call-arg]
    return checkpointed(_whole(transform), transform.inverse, z, context)


def _whole(transform: Transform) -> bool:
    """Whether a layer is checkpointed as a whole. The compiler's checkpoint cannot hold the branches that maps have in
    compiled form; there a layer checkpoints its net alone, see `enter_net`."""
    return transform.checkpointed and not torch.compiler.is_compiling()


def _supports(
    parts: dict[str, Transform],
) -> tuple[constraints.Constraint | None, constraints.Constraint | None]:
    """Domain and codomain of a chain; parts that do not fit, in either direction, are refused by name.

    Backwards too, what a part gives must lie where the part before it takes values. Of that a domain tells if it is an
    interval, which the part fills. In all reals or a half-line it may keep to a smaller set, as a power does to the
    unit interval. A dequantizer takes any real back.
    """
    domain: constraints.Constraint | None = None
    reached: constraints.Constraint | None = None
    source, takes_all = "", False
    for name, part in parts.items():
        if part.domain is not None:
            domain = part.domain if domain is None and reached is None else domain
            if reached is not None and not fits(reached, part.domain):
                raise DomainError(
                    f"Chain: {name} ({type(part).__name__}) takes values in {part.domain}, "
                    f"but {source} gives values in {reached}"
                )
            fills = hasattr(part.domain, "lower_bound") and hasattr(part.domain, "upper_bound")
            if reached is not None and fills and not takes_all and not fits(part.domain, reached):
                raise DomainError(
                    f"Chain: on the way back, {name} ({type(part).__name__}) gives values in {part.domain}, "
                    f"but {source} takes values in {reached}"
                )
        if part.codomain is not None:
            reached, source = part.codomain, f"{name} ({type(part).__name__})"
            takes_all = part.stochastic_forward
    return domain, reached


def fits(values: constraints.Constraint, domain: constraints.Constraint) -> bool:
    """Whether `values` lie in `domain`, as far as their bounds say."""
    if str(domain) in (str(constraints.real), str(values)):
        return True
    bounds = [(getattr(c, "lower_bound", None), getattr(c, "upper_bound", None)) for c in (values, domain)]
    (lower, upper), (low, high) = bounds
    if low is None and high is None:
        return False  # a set that bounds do not describe
    return (low is None or (lower is not None and _everywhere(lower >= low))) and (
        high is None or (upper is not None and _everywhere(upper <= high))
    )


def _everywhere(holds: bool | Tensor) -> bool:
    """Of bounds that are tensors, one for each element of an event, for all of them."""
    return bool(holds.all()) if isinstance(holds, Tensor) else holds
