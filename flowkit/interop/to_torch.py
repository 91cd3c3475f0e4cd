"""flowkit's distributions and bijectors as objects of `torch.distributions`."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform as TorchTransform
from torch.distributions import constraints

from flowkit.arguments import broadcasts
from flowkit.distribution import Distribution
from flowkit.errors import NotExact, ShapeError
from flowkit.flow import shapes_only
from flowkit.transform import Transform

__all__ = ["BijectorTransform", "FlowDistribution", "as_torch_distribution", "as_torch_transform"]

DIRECTIONS = ("base_to_data", "data_to_base")


def as_torch_distribution(
    distribution: Distribution,
    context: Tensor | None = None,
    *,
    cache_size: int = 0,
    validate_args: bool | None = None,
) -> torch.distributions.Distribution:
    """A flow, or any distribution of flowkit, as a `torch.distributions.Distribution`.

    Nothing is copied: gradients reach the parameters of `distribution` and the context. Entropy, mean and
    `kl_divergence` have no closed form and raise `NotImplementedError`, as in torch.

    Args:
        distribution: exact, and with `context_shape` if it is a conditional flow.
        context: (*batch, *its event); its batch becomes `batch_shape`. None for an unconditional distribution, which
            has the batch shape ().
        cache_size: 1 to keep the log-density of the last `rsample`, so that `log_prob` of that very tensor runs
            nothing again. It is not used once a parameter has changed. What it gives is a function of the noise and
            not of the sample: it has the gradients by parameters that variational inference takes, but none by x.
        validate_args: whether `log_prob` checks shape and support; None for the default of torch.

    Shapes:
        samples: sample_shape + batch_shape + event_shape; log_prob: the batch of x, broadcast with batch_shape.

    Raises:
        NotExact: if there is only a bound on the density, which must not pass for one.
        ShapeError: if the context is missing, is one too many, or has too few dims.

    >>> import torch, flowkit as fk
    >>> flow = fk.Flow(fk.ActNorm((2,)), fk.Normal((2,)))
    >>> d = as_torch_distribution(flow)
    >>> d.batch_shape, d.event_shape, d.rsample((3,)).shape, d.log_prob(torch.zeros(3, 2)).shape
    (torch.Size([]), torch.Size([2]), torch.Size([3, 2]), torch.Size([3]))
    >>> mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(4)), d.expand((4,)))
    >>> mixture.event_shape
    torch.Size([2])
    """
    return of_distribution(FlowDistribution, distribution, context, cache_size, validate_args)


def of_distribution(
    kind: type[FlowDistribution],
    distribution: Distribution,
    context: Tensor | None,
    cache_size: int,
    validate_args: bool | None,
) -> FlowDistribution:
    """A `kind` of this distribution, after the checks that every kind makes."""
    if not isinstance(distribution, Distribution):
        raise TypeError(f"distribution is a {type(distribution).__name__}, wanted a flowkit Distribution, as a Flow is")
    if not distribution.exact:
        raise NotExact(
            f"{type(distribution).__name__} has only a bound on its density (exact is False), which is no "
            "log_prob of torch.distributions; flowkit.metrics.log_prob_bound estimates it"
        )
    if cache_size not in (0, 1):
        raise ValueError(f"cache_size is {cache_size}, wanted 0 or 1")
    return kind(distribution, context, cache_size, validate_args)


class FlowDistribution(torch.distributions.Distribution):
    """What `as_torch_distribution` gives."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(
        self,
        distribution: Distribution,
        context: Tensor | None = None,
        cache_size: int = 0,
        validate_args: bool | None = None,
    ) -> None:
        self.distribution, self.context = distribution, context
        self.has_rsample = distribution.has_rsample
        self._cache_size = cache_size
        self._drawn: tuple[Tensor, Tensor, tuple[int, ...]] | None = None
        self._context_batch = distribution.check_context(context)
        super().__init__(self._context_batch, distribution.event_shape, validate_args=validate_args)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_drawn": None}

    @property
    def support(self) -> constraints.Constraint:
        return over_event(self.distribution.support, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        new = self._get_checked_instance(FlowDistribution, _instance)
        batch_shape = torch.Size(batch_shape)
        if not broadcasts(self.batch_shape, batch_shape):
            raise ShapeError(
                f"expand: batch_shape is {tuple(batch_shape)}, wanted one that {tuple(self.batch_shape)} expands to"
            )
        new.__dict__.update({**self.__dict__, "_drawn": None})
        new._batch_shape = batch_shape
        return new

    def _asked(self, sample_shape: Any) -> tuple[torch.Size, Tensor | None]:
        """Sample shape and context that give sample_shape + batch_shape: every element of the batch is drawn apart."""
        sample_shape, batch, inner = torch.Size(sample_shape), self.batch_shape, self._context_batch
        kept = len(batch) - len(inner)
        if batch[kept:] == inner:
            return sample_shape + batch[:kept], self.context
        assert self.context is not None
        return sample_shape, self.context.expand((*batch, *self.context.shape[len(inner) :]))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.distribution.sample(*self._asked(sample_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        if not self.has_rsample:
            raise NotImplementedError(f"{type(self.distribution).__name__} has no reparametrized sample")
        if self._cache_size == 0 or not torch.is_grad_enabled():
            return self.distribution.rsample(*self._asked(sample_shape))
        x, log_prob = self.distribution.sample_and_log_prob(*self._asked(sample_shape))
        self._drawn = x, log_prob, versions(self.distribution, x, self.context)
        return x

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        if self._drawn is not None and self._drawn[0] is value:
            if self._drawn[2] == versions(self.distribution, value, self.context):
                return self._drawn[1] if torch.is_grad_enabled() else self._drawn[1].detach()
            self._drawn = None
        log_prob = self.distribution.log_prob(value, self.context)
        batch = value.shape[: value.ndim - len(self.event_shape)]
        return log_prob.expand(torch.broadcast_shapes(batch, self.batch_shape))

    def __repr__(self) -> str:
        shapes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        return f"{type(self).__name__}({type(self.distribution).__name__}, {shapes})"


def as_torch_transform(
    bijector: Transform,
    context: Tensor | None = None,
    *,
    direction: str = "base_to_data",
    context_ndim: int = 1,
    cache_size: int = 0,
) -> TorchTransform:
    """A bijector as a `torch.distributions.Transform`.

    By default it runs from base to data, as torch's own do, so that `TransformedDistribution(base, [t])` has the
    density of `flowkit.Flow(bijector, base)`. `log_abs_det_jacobian(x, y)` of a pair that the transform made last
    costs nothing: the log-term came with the pair. Of any other pair it runs the bijector forward on the data. So
    `TransformedDistribution.log_prob` runs every conditioner once.

    The transform is no module: parameters are those of `bijector`, and gradients reach them.

    Args:
        bijector: any transform that draws no noise.
        context: (*batch, *its event), handed to the bijector at every call; its batch broadcasts with that of x.
        direction: "base_to_data", the inverse of the bijector, or "data_to_base".
        context_ndim: how many rightmost dims of the context are its event.
        cache_size: as in torch: 1 keeps the last x and y, so that `t.inv(t(x))` is x itself.

    Raises:
        NotExact: if the transform draws noise in a direction.
        ShapeError: if the context has fewer dims than `context_ndim`.
        TypeError: for what is no `Transform`.
        ValueError: for another direction.

    >>> import torch, flowkit as fk
    >>> t = as_torch_transform(fk.Sigmoid().inv)
    >>> t.domain, t.codomain, t.sign, t(torch.zeros(1))
    (Real(), Interval(lower_bound=0.0, upper_bound=1.0), 1, tensor([0.5000]))
    """
    if not isinstance(bijector, Transform):
        raise TypeError(f"as_torch_transform: bijector is a {type(bijector).__name__}, wanted a flowkit Transform")
    if bijector.stochastic_forward or bijector.stochastic_inverse:
        raise NotExact(f"as_torch_transform: {type(bijector).__name__} draws noise, so it is no bijection")
    if direction not in DIRECTIONS:
        raise ValueError(f"as_torch_transform: direction is {direction!r}, wanted one of {', '.join(DIRECTIONS)}")
    if context is not None and context.ndim < context_ndim:
        raise ShapeError(
            f"as_torch_transform: context has shape {tuple(context.shape)}, wanted at least context_ndim={context_ndim}"
        )
    return BijectorTransform(bijector, context, direction, context_ndim, cache_size)


class BijectorTransform(TorchTransform):
    """What `as_torch_transform` gives."""

    bijective = True

    def __init__(
        self,
        bijector: Transform,
        context: Tensor | None = None,
        direction: str = "base_to_data",
        context_ndim: int = 1,
        cache_size: int = 0,
    ) -> None:
        super().__init__(cache_size=cache_size)
        self.bijector, self.context, self.direction, self.context_ndim = bijector, context, direction, context_ndim
        self._to_data = direction == "base_to_data"
        self._outward = bijector.inv if self._to_data else bijector
        self.domain = over_event(self._outward.domain, self._outward.in_ndim)
        self.codomain = over_event(self._outward.codomain, self._outward.out_ndim)
        self._last: _Pair | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_last": None, "_cached_x_y": (None, None)}

    def with_cache(self, cache_size: int = 1) -> BijectorTransform:
        if cache_size == self._cache_size:
            return self
        return type(self)(self.bijector, self.context, self.direction, self.context_ndim, cache_size)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, BijectorTransform)
            and self.bijector is other.bijector
            and self.direction == other.direction
            and (
                self.context is other.context
                or (self.context is not None and other.context is not None and torch.equal(self.context, other.context))
            )
        )

    def __hash__(self) -> int:
        return hash((id(self.bijector), self.direction))

    @property
    def sign(self) -> Any:
        """+1 where an elementwise bijector rises and -1 where it falls, for every element of the context's batch."""
        ends = _two_points(self.domain)
        if self._outward.in_ndim or self._outward.out_ndim or ends is None:
            raise NotImplementedError
        with torch.no_grad():
            like = next(iter([*self.bijector.parameters(), *self.bijector.buffers()]), self.context)
            options: dict[str, Any] = {} if like is None else {"dtype": like.dtype, "device": like.device}
            low, high = (self._run(self._outward, torch.tensor(end, **options))[0] for end in ends)
            sign = (high - low).sign()
        return sign if sign.ndim else int(sign)

    def _context_batch(self) -> torch.Size:
        return torch.Size() if self.context is None else self.context.shape[: self.context.ndim - self.context_ndim]

    def _run(self, transform: Transform, value: Tensor) -> tuple[Tensor, Tensor]:
        """`transform(value, context)`, both of them expanded to one batch."""
        if self.context is None:
            return transform(value)
        inner = self._context_batch()
        batch = value.shape[: max(value.ndim - transform.in_ndim, 0)]
        event = value.shape[len(batch) :]
        try:
            joint = torch.broadcast_shapes(batch, inner)
        except RuntimeError:
            raise ShapeError(
                f"{transform.path}: the context has batch {tuple(inner)}, which does not broadcast to the batch "
                f"{tuple(batch)} of the values"
            ) from None
        context = self.context.expand((*joint, *self.context.shape[len(inner) :]))
        return transform(value.expand((*joint, *event)), context)

    def _call(self, x: Tensor) -> Tensor:
        y, term = self._run(self._outward, x)
        self._last = _Pair.of(x, y, term, self)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, term = self._run(self._outward.inv, y)
        self._last = _Pair.of(x, y, -term, self)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        known = None if self._last is None else self._last.term_of(x, y, self)
        if known is not None:
            return known
        # Forward is the direction that is cheap in every scheme.
        term = self._run(self.bijector, y if self._to_data else x)[1]
        return -term if self._to_data else term

    def forward_shape(self, shape: Any) -> torch.Size:
        return self._shape(self._outward, shape)

    def inverse_shape(self, shape: Any) -> torch.Size:
        return self._shape(self._outward.inv, shape)

    def _shape(self, transform: Transform, shape: Any) -> torch.Size:
        if transform.in_ndim == transform.out_ndim == 0:
            return torch.broadcast_shapes(shape, self._context_batch())
        with shapes_only(transform) as like:
            return self._run(transform, torch.empty(tuple(shape), **like))[0].shape

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.bijector).__name__}, {self.direction})"


class _Pair:
    """An x and its y, held weakly, and the log-term that came with them."""

    def __init__(self, x: Tensor, y: Tensor, term: Tensor, owner: BijectorTransform) -> None:
        self.x, self.y, self.term = weakref.ref(x), weakref.ref(y), term
        self.with_gradient = torch.is_grad_enabled()
        self.versions = versions(owner.bijector, x, y, owner.context)

    @classmethod
    def of(cls, x: Tensor, y: Tensor, term: Tensor, owner: BijectorTransform) -> _Pair | None:
        # A graph that is being compiled has no identities; there the second run is a common subexpression.
        return None if torch.compiler.is_compiling() else cls(x, y, term, owner)

    def term_of(self, x: Tensor, y: Tensor, owner: BijectorTransform) -> Tensor | None:
        if self.x() is not x or self.y() is not y or (torch.is_grad_enabled() and not self.with_gradient):
            return None
        if self.versions != versions(owner.bijector, x, y, owner.context):
            return None
        return self.term if torch.is_grad_enabled() else self.term.detach()


def versions(module: nn.Module, *tensors: Tensor | None) -> tuple[int, ...]:
    """Changes whenever one of the tensors, or a parameter or buffer of the module, is written to."""
    every = [*module.parameters(), *module.buffers(), *(t for t in tensors if t is not None)]
    return tuple(0 if t.is_inference() else t._version for t in every)


def over_event(constraint: constraints.Constraint | None, ndim: int) -> constraints.Constraint:
    """A constraint on elements as one on events of `ndim` dims; None, for any values, is the real line."""
    constraint = constraints.real if constraint is None else constraint
    extra = ndim - constraint.event_dim
    return constraints.independent(constraint, extra) if extra > 0 else constraint


def _two_points(constraint: constraints.Constraint) -> tuple[float, float] | None:
    """Two values of a set in order, the lesser first; None if bounds do not describe it."""
    low, high = (getattr(constraint, name, None) for name in ("lower_bound", "upper_bound"))
    if low is None and high is None:
        return (0.0, 1.0) if constraint is constraints.real else None
    if low is not None and high is not None:
        return low + (high - low) * 0.25, low + (high - low) * 0.75
    return (low + 1.0, low + 2.0) if low is not None else (high - 2.0, high - 1.0)  # type: ignore[operator]
