"""Distributions and transforms of `torch.distributions` as parts of flowkit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution as AnyTorchDistribution
from torch.distributions import Transform as AnyTorchTransform
from torch.distributions import constraints, transforms

from flowkit.arguments import as_shape
from flowkit.distribution import Distribution
from flowkit.errors import NotExact, ShapeError
from flowkit.flow import tensor_of
from flowkit.functional.precision import log_term_dtype
from flowkit.functional.reduce import sum_rightmost
from flowkit.interop.to_torch import DIRECTIONS, BijectorTransform, FlowDistribution
from flowkit.transform import Bijector, Transform

__all__ = ["TorchDistribution", "TorchTransform", "from_torch_distribution", "from_torch_transform"]


def from_torch_distribution(
    source: AnyTorchDistribution | nn.Module,
    *,
    context_shape: Sequence[int] | None = None,
) -> Distribution:
    """A `torch.distributions.Distribution`, or a module that makes one, as a distribution of flowkit.

    flowkit's distributions have no batch dims of their own: the batch of `source` becomes part of the event, its
    elements independent. `Normal(torch.zeros(3), 1.0)` and `Independent(Normal(torch.zeros(3), 1.0), 1)` are the same
    base.

    Parameters stay trainable. A tensor that requires gradients and from which the distribution was made becomes a
    parameter of the result, in its own place and of the same memory; one that is an `nn.Parameter` already is that very
    parameter. All other tensors become constants that move with `.to()`. A tensor that was *computed* from parameters,
    as `scale=raw.exp()` is, would keep its old value after a step of training, and is refused. For those, and for
    conditional bases, write a module whose `forward`, with the context if there is one, returns the distribution; it
    runs at every call.

    `generator=` is honoured: torch's distributions know only the global generator, so it takes the given one's state
    while they draw.

    Args:
        source: a distribution, or a module that makes one when called.
        context_shape: event shape of the context that the module takes; None if it takes none. The distribution it
            makes has the context's batch first in its batch shape.

    Raises:
        ValueError: for a distribution made of tensors that were computed from parameters.
        ShapeError: for a module whose distribution does not begin with the context's batch.
        TypeError: for what is neither a distribution nor a module.

    >>> import torch, flowkit as fk
    >>> from torch import nn
    >>> base = from_torch_distribution(torch.distributions.Laplace(nn.Parameter(torch.zeros(2)), torch.ones(2)))
    >>> base.event_shape, [name for name, _ in base.named_parameters()]
    (torch.Size([2]), ['source.loc'])
    >>> class Conditional(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.net = nn.Linear(3, 2)
    ...
    ...     def forward(self, context):
    ...         return torch.distributions.StudentT(5.0, loc=self.net(context))
    >>> base = from_torch_distribution(Conditional(), context_shape=(3,))
    >>> flow = fk.Flow(fk.Flip(dim=-1), base, context_shape=(3,))
    >>> flow.sample((4,), context=torch.zeros(5, 3)).shape
    torch.Size([4, 5, 2])
    """
    if isinstance(source, FlowDistribution) and source.context is None and not source.batch_shape:
        return source.distribution
    if isinstance(source, AnyTorchDistribution):
        if context_shape is not None:
            raise ValueError("from_torch_distribution: context_shape is for a module; a distribution takes no context")
        while isinstance(source, torch.distributions.Independent):
            source = source.base_dist  # all of the batch is event here anyway
        return TorchDistribution(_Held(source), None)
    if not isinstance(source, nn.Module):
        raise TypeError(
            f"from_torch_distribution: source is a {type(source).__name__}, "
            "wanted a torch.distributions.Distribution or a module that makes one"
        )
    if isinstance(source, Distribution | Transform):
        raise TypeError(
            f"from_torch_distribution: source is a {type(source).__name__}, which is a part of flowkit already"
        )
    return TorchDistribution(source, context_shape)


class TorchDistribution(Distribution):
    """What `from_torch_distribution` gives."""

    def __init__(self, source: nn.Module, context_shape: Sequence[int] | None) -> None:
        super().__init__()
        self.source = source
        self.context_ndim = None if context_shape is None else len(context_shape)
        example = None
        if context_shape is not None:
            like = tensor_of(source)
            # Two rows, where a batch of one would broadcast unseen.
            example = torch.zeros(2, *context_shape, dtype=like.dtype, device=like.device)
        with torch.no_grad():
            made, batch = self._made(example)
        self.event_shape = made.batch_shape[len(batch) :] + made.event_shape
        self.has_rsample = made.has_rsample
        self._family_support = _support_of_family(made)

    def _made(self, context: Tensor | None) -> tuple[AnyTorchDistribution, torch.Size]:
        """The distribution under this context, and the context's batch."""
        batch = self.check_context(context)
        made = self.source() if context is None else self.source(context)
        if not isinstance(made, AnyTorchDistribution):
            raise TypeError(
                f"{type(self).__name__}: {type(self.source).__name__} gave a {type(made).__name__}, "
                "wanted a torch.distributions.Distribution"
            )
        if made.batch_shape[: len(batch)] != batch:
            raise ShapeError(
                f"{type(self).__name__}: {type(self.source).__name__} gave a distribution of batch "
                f"{tuple(made.batch_shape)} for a context of batch {tuple(batch)}, which it should begin with"
            )
        return made, batch

    @property
    def support(self) -> constraints.Constraint:
        if self.context_ndim is not None:
            return self._family_support
        return _of_elements(self._made(None)[0].support)  # type: ignore[arg-type]

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        self.check_event("x", x)
        return self._log_prob(*self._made(context), x)

    def _log_prob(self, made: AnyTorchDistribution, batch: torch.Size, x: Tensor) -> Tensor:
        joint = self.joint_batch(x.shape[: x.ndim - len(self.event_shape)], batch)
        log_prob = made.log_prob(x.expand((*joint, *self.event_shape)))
        log_prob = sum_rightmost(log_prob, len(made.batch_shape) - len(batch))
        return log_prob.to(log_term_dtype(x.dtype))

    def rsample(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if not self.has_rsample:
            raise NotExact(f"{type(self._made(context)[0]).__name__} has no reparametrized sample; use sample")
        with drawing_from(generator):
            return self._made(context)[0].rsample(as_shape(sample_shape))

    def sample(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        with torch.no_grad(), drawing_from(generator):
            return self._made(context)[0].sample(as_shape(sample_shape))

    def sample_and_log_prob(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        made, batch = self._made(context)  # once: a module that makes it may hold a net
        with drawing_from(generator):
            x = (made.rsample if self.has_rsample else made.sample)(as_shape(sample_shape))
        return x, self._log_prob(made, batch, x)

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}"


def from_torch_transform(transform: AnyTorchTransform, *, direction: str = "base_to_data") -> Transform:
    """A `torch.distributions.Transform` as a bijector of flowkit.

    z = t.inv(x) and l = -log_abs_det_jacobian(z, x), or the other way round if `transform` runs from data to base. The
    event dims are those of its domain and codomain; for parameters with dims of their own, as
    `AffineTransform(loc=torch.zeros(3), scale=1.0)`, say `event_dim=1`, or wrap it in torch's `IndependentTransform`.
    Its tensors are treated as those of `from_torch_distribution`; a transform that is a module, as Pyro's are, is kept
    as it is.

    Args:
        transform: bijective; its `log_abs_det_jacobian` gives the log-term.
        direction: which way `transform` runs: "base_to_data", as torch's own habit is, or "data_to_base".

    Shapes:
        x: (*batch, *event of the codomain); z: (*batch, *event of the domain); l: (*batch).

    Raises:
        ValueError: for a transform that is not bijective, another direction, or tensors that were computed from
            parameters.
        TypeError: for what is no transform of torch.

    >>> import torch, flowkit as fk
    >>> from torch.distributions.transforms import StickBreakingTransform
    >>> simplex = fk.Flow(from_torch_transform(StickBreakingTransform()), fk.Normal((2,)))
    >>> simplex.event_shape, torch.allclose(simplex.sample((5,)).sum(-1), torch.ones(5))
    (torch.Size([3]), True)
    """
    if not isinstance(transform, AnyTorchTransform):
        raise TypeError(
            f"from_torch_transform: transform is a {type(transform).__name__}, wanted a torch.distributions.Transform"
        )
    if direction not in DIRECTIONS:
        raise ValueError(f"from_torch_transform: direction is {direction!r}, wanted one of {', '.join(DIRECTIONS)}")
    if not transform.bijective:
        raise ValueError(f"from_torch_transform: {type(transform).__name__} is not bijective, so it has no density")
    if isinstance(transform, BijectorTransform) and transform.context is None:
        return transform.bijector if transform.direction == direction else transform.bijector.inv
    return TorchTransform(transform, direction)


class TorchTransform(Bijector):
    """What `from_torch_transform` gives."""

    def __init__(self, transform: AnyTorchTransform, direction: str) -> None:
        super().__init__()
        self._to_data = direction == "base_to_data"
        data, base = transform.codomain, transform.domain
        self._summed = 0
        while isinstance(transform, transforms.IndependentTransform):
            self._summed += transform.reinterpreted_batch_ndims
            transform = transform.base_transform
        self.source = transform if isinstance(transform, nn.Module) else _Held(transform)
        if not self._to_data:
            data, base = base, data
        self.in_ndim, self.out_ndim = data.event_dim, base.event_dim
        self.domain, self.codomain = _of_elements(data), _of_elements(base)

    def _run(self, name: str, value: Tensor, ndim: int, outward: bool) -> tuple[Tensor, Tensor]:
        self.check_event(name, value, (None,) * ndim)
        source = self.source() if isinstance(self.source, _Held) else self.source
        t: Any = source if outward else source.inv
        try:
            kept = t.inverse_shape(t.forward_shape(value.shape)) == value.shape
        except (ValueError, RuntimeError) as error:
            raise ShapeError(f"{self.path}: {name} has shape {tuple(value.shape)}: {error}") from error
        if not kept:
            raise ShapeError(
                f"{self.path}: {name} has shape {tuple(value.shape)}, which parameters of {type(t).__name__} broadcast"
            )
        result = t(value)
        term = sum_rightmost(t.log_abs_det_jacobian(value, result), self._summed)
        return result, term.to(log_term_dtype(value.dtype))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run("x", x, self.in_ndim, outward=not self._to_data)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run("z", z, self.out_ndim, outward=self._to_data)

    def extra_repr(self) -> str:
        return "base_to_data" if self._to_data else "data_to_base"


# What objects of torch remember of their last call, or of their own inverse.
_FORGOTTEN = {"_inv": None, "_cached_x_y": (None, None), "_last": None, "_drawn": None}


class _Held(nn.Module):
    """An object of `torch.distributions` whose tensors are parameters and buffers. Calling it makes the object anew."""

    def __init__(self, thing: Any) -> None:
        super().__init__()
        self._type = type(thing)
        self._plain: dict[str, Any] = {}
        self._expanded: dict[str, torch.Size] = {}
        self._parts: dict[str, Any] = {}
        inverse = isinstance(thing, transforms._InverseTransform)
        for name, value in vars(thing).items():
            if name in _FORGOTTEN and not (name == "_inv" and inverse):
                self._plain[name] = _FORGOTTEN[name]
            elif isinstance(value, Tensor):
                self._keep(name, value)
            elif isinstance(value, AnyTorchDistribution | AnyTorchTransform | nn.Module):
                self._parts[name] = None
                self.add_module(name, _held(value))
            elif isinstance(value, list | tuple) and any(
                isinstance(part, AnyTorchDistribution | AnyTorchTransform) for part in value
            ):
                self._parts[name] = type(value)
                self.add_module(name, nn.ModuleList(map(_held, value)))
            else:
                self._plain[name] = value

    def _keep(self, name: str, value: Tensor) -> None:
        if not value.requires_grad:
            self.register_buffer(name, value, persistent=False)
            return
        leaf = value if value.is_leaf else value._base
        if leaf is None or not leaf.is_leaf or not _is_expanded(value, leaf):
            made_by = "" if value.grad_fn is None else f" by {value.grad_fn.name()}"
            raise ValueError(
                f"{self._type.__name__}.{name} was computed{made_by} from parameters and would keep its value when "
                "they are trained; give the parameters themselves, or a module whose forward makes the distribution"
            )
        self.register_parameter(name, leaf if isinstance(leaf, nn.Parameter) else nn.Parameter(leaf))
        self._expanded[name] = value.shape

    def forward(self) -> Any:
        thing = object.__new__(self._type)
        attributes = dict(self._plain)
        for name, tensor in [*self._parameters.items(), *self._buffers.items()]:
            assert tensor is not None
            attributes[name] = tensor.expand(self._expanded.get(name, tensor.shape))
        for name, kind in self._parts.items():
            held: Any = self._modules[name]
            attributes[name] = _made(held) if kind is None else kind(map(_made, held))
        for name, value in attributes.items():  # one by one: torch 2.7 compiles no update
            thing.__dict__[name] = value
        return thing

    def extra_repr(self) -> str:
        return self._type.__name__


def _held(thing: Any) -> nn.Module:
    return thing if isinstance(thing, nn.Module) else _Held(thing)


def _made(held: nn.Module) -> Any:
    return held() if isinstance(held, _Held) else held


def _is_expanded(value: Tensor, leaf: Tensor) -> bool:
    """Whether `value` is `leaf` itself, broadcast."""
    try:
        broadcast = leaf.expand(value.shape)
    except RuntimeError:
        return False
    return broadcast.stride() == value.stride() and broadcast.storage_offset() == value.storage_offset()


def _of_elements(constraint: constraints.Constraint) -> constraints.Constraint:
    """The constraint on every element, if that is what a constraint on events comes to."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def _support_of_family(distribution: AnyTorchDistribution) -> constraints.Constraint:
    """The support of all distributions of its kind; the real line where that depends on parameters."""
    while isinstance(distribution, torch.distributions.Independent):
        distribution = distribution.base_dist
    support: Any = type(distribution).support
    return constraints.real if constraints.is_dependent(support) else _of_elements(support)


@contextmanager
def drawing_from(generator: torch.Generator | None) -> Iterator[None]:
    """While the context lasts, the global generator of the given one's device draws in its place, and both move on."""
    if generator is None:
        yield
        return
    device = generator.device
    own: torch.Generator = (
        torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[device.index or 0]
    )
    state = own.get_state()
    own.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(own.get_state())
        own.set_state(state)
