"""A flow: a transform, a base, perhaps a net for the context."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import constraints

from flowkit.arguments import as_shape, check_tensor, count
from flowkit.bijectors.autoregressive import Autoregressive
from flowkit.distribution import Distribution, drawn_with
from flowkit.errors import DomainError, NotExact, ShapeError
from flowkit.functional.eager import values_at_hand
from flowkit.summary import Summary, summarize
from flowkit.transform import Chain, Map, Transform, fits, run_forward, run_inverse

__all__ = ["Flow"]


class Flow(Distribution):
    """The density of data whose latent, under a transform, follows a base.

    log p(x) = log p_base(z) + l, with z, l = transform(x). It is exact if the transform's forward direction draws
    no noise; else each `log_prob` is one draw of a bound that lies below the truth in expectation, and `exact`
    is False.

    Args:
        transform: from data to latent.
        base: density of the latent. A conditional base gets the context too.
        context_net: turns the user's context into what the parts read; run once per call.
        context_ndim: how many rightmost dims of the user's context are its event (0 labels, 1 vectors, 3 images);
            None for an unconditional flow.
        context_shape: the event shape of the context, in place of `context_ndim`; with it the shapes of a
            conditional flow are checked at construction too, and `event_shape` is known.

    Shapes:
        x: (*batch, *event_shape); log_prob: (*batch). A context (*batch, *its event) broadcasts against x over
        the batch dims. Samples have sample_shape + context batch + event.

    Raises:
        ShapeError: if the base's latent does not pass backwards through the transform; the part is named.
        DomainError: if the base has values that the transform does not take back, as a normal for `Exp`.
        ValueError: if a conditional base stands in an unconditional flow.
        TypeError: if `transform` is no `Transform`, or `base` no `Distribution`.

    >>> import torch, flowkit as fk
    >>> flow = fk.Flow(fk.Chain(scale=fk.ActNorm((2,)), squash=fk.Sigmoid()).inv, fk.Uniform((2,)))
    >>> flow.exact, flow.event_shape, flow.sample((3,)).shape, flow.log_prob(torch.zeros(4, 2)).shape
    (True, torch.Size([2]), torch.Size([3, 2]), torch.Size([4]))
    """

    def __init__(
        self,
        transform: Transform,
        base: Distribution,
        *,
        context_net: nn.Module | None = None,
        context_ndim: int | None = None,
        context_shape: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(transform, Transform):
            raise TypeError(f"Flow: transform is a {type(transform).__name__}, wanted a Transform")
        if not isinstance(base, Distribution):
            raise TypeError(
                f"Flow: base is a {type(base).__module__}.{type(base).__name__}, "
                "wanted a flowkit Distribution, such as flowkit.Normal"
            )
        if context_ndim is not None:
            context_ndim = count("Flow", "context_ndim", context_ndim, 0)
        if context_shape is not None:
            context_shape = as_shape(context_shape, "Flow: context_shape")
            if context_ndim not in (None, len(context_shape)):
                raise ValueError(f"Flow: context_ndim={context_ndim} and context_shape={tuple(context_shape)} disagree")
            context_ndim = len(context_shape)
        if context_ndim is None and (context_net is not None or base.context_ndim is not None):
            raise ValueError("Flow: context_net or a conditional base needs context_ndim or context_shape")
        self.transform, self.base, self.context_net = transform, base, context_net
        self.context_ndim = context_ndim
        self._context_shape = None if context_shape is None else as_shape(context_shape)
        # Samples are integers, or drawn on the way by a part's own distribution: each can lose the gradient.
        drawn = [base, *(part for part in transform.modules() if isinstance(part, Distribution))]
        discrete = transform.domain is not None and transform.domain.is_discrete
        self.has_rsample = not discrete and all(part.has_rsample for part in drawn)
        # Fixed at construction, as the sums of a chain are; a base put in its place later is of the same kind.
        _check_support(transform, base)
        self._latent_shape, self._base_takes_context = base.event_shape, base.context_ndim is not None
        self._event_ndim = len(base.event_shape) + transform.in_ndim - transform.out_ndim
        if len(base.event_shape) < transform.out_ndim:
            raise ShapeError(
                f"Flow: the base's event {tuple(base.event_shape)} has fewer dims than the transform's "
                f"latent, {transform.out_ndim}"
            )
        for name, module in self.named_modules():
            if isinstance(module, Transform):
                module.__dict__["_path"] = name
        self._event_shape = self._trace(context_shape)

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Whether `log_prob` is the log-density itself; if not, it is one draw of a lower bound."""
        return not self.transform.stochastic_forward

    @property
    def event_ndim(self) -> int:
        """How many rightmost dims of x are its event."""
        return self._event_ndim

    @property
    def event_shape(self) -> torch.Size:  # type: ignore[override]
        """Shape of one x. Of a conditional flow it is known if the flow was made with `context_shape`."""
        if self._event_shape is None:
            raise ShapeError("Flow: event_shape of a conditional flow is known only if context_shape was given")
        return self._event_shape

    @property
    def support(self) -> constraints.Constraint:
        """The values that an element of x may have: the transform's domain."""
        return self.base.support if self.transform.domain is None else self.transform.domain

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Log-density in nats, or one draw of a lower bound on it where `exact` is False: (*batch).

        It is minus infinity at an end of the domain that no finite latent leads to, as at 0 for `Exp().inv`, and NaN
        outside the domain, where a layer is not defined; `flowkit.debugging.validation` names the layer.
        """
        x, context = self._with_context("x", x, context)
        z, term = run_forward(self.transform, x, context, generator)
        term, log_base = self._sum(term), self._base_log_prob(z, context)
        # The latent is infinite, and its slope too: their sum would be NaN.
        unreached = (log_base == -torch.inf) & (term == torch.inf)
        return torch.where(unreached, -torch.inf, term + log_base)

    def to_latent(
        self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """z of x: (*batch, *latent)."""
        x, context = self._with_context("x", x, context)
        return run_forward(self.transform, x, context, generator)[0]

    def from_latent(
        self, z: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """x of z: (*batch, *event)."""
        z, context = self._with_context("z", z, context)
        return run_inverse(self.transform, z, context, generator)[0]

    def sample(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples without gradients: sample_shape + context batch + event."""
        with torch.no_grad():
            shape, context = self._sample_context(sample_shape, context)
            z = self.base.sample(*self._base_arguments(shape, context), **drawn_with(generator))
            return run_inverse(self.transform, z, context, generator)[0]

    def rsample(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples with gradients to all parameters: sample_shape + context batch + event.

        Raises:
            NotExact: if samples carry no gradient (`has_rsample` is False): if they are integers, or the base, or a
                distribution in a part, has none.
            ShapeError: if the sample shape or the context does not fit.
        """
        if not self.has_rsample:
            return super().rsample(sample_shape, context, generator=generator)
        shape, context = self._sample_context(sample_shape, context)
        z = self.base.rsample(*self._base_arguments(shape, context), **drawn_with(generator))
        return run_inverse(self.transform, z, context, generator)[0]

    def sample_and_log_prob(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples, with gradients where the base has them, and their log-density; every net runs once.

        Raises:
            NotExact: if the flow is not exact. What the inverse direction gives at its own sample lies *above*
                log p in expectation, so it would flatter the flow.
            ShapeError: if the sample shape or the context does not fit.
        """
        if not self.exact:
            raise NotExact(
                "Flow.sample_and_log_prob: this flow has only a bound on its density (exact is False); "
                "use sample, then flowkit.metrics.log_prob_bound"
            )
        shape, context = self._sample_context(sample_shape, context)
        z, log_prob = self.base.sample_and_log_prob(*self._base_arguments(shape, context), **drawn_with(generator))
        x, term = run_inverse(self.transform, z, context, generator)
        return x, log_prob - self._sum(term)

    def summary(
        self,
        event_shape: int | Sequence[int] | None = None,
        *,
        x: Tensor | None = None,
        samples: int | None = None,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
        repeats: int = 5,
    ) -> Summary:
        """A table with a row for each layer: `print(flow.summary())`.

        Without data it has shapes and parameters; no arithmetic is done, and parameters may be on the meta device.
        With data it also has each layer's share of log_prob, its time there and on the way back, and the memory it
        holds for backward, measured in the mode (train or eval) in which the flow stands. Buffers stay as they were.

        Args:
            event_shape: shape of one x, which is checked; None for what the base says.
            x: data to measure on: (*batch, *event).
            samples: in place of x, the number of samples of the flow itself, for each context, to measure on.
            context: as for `log_prob`; in its absence, a conditional flow is given ones.
            generator: for the noise.
            repeats: runs, of which the fastest gives the times.

        Raises:
            ShapeError: if `event_shape` is not the flow's, or a conditional flow made without `context_shape` is
                given no context.
            ValueError: for x and samples together, no example, no run, or data for parameters on the meta device.
            TypeError: if x is no tensor.

        >>> import torch, flowkit as fk
        >>> flow = fk.Flow(fk.Chain(scale=fk.ActNorm((2,)), mix=fk.LULinear(2)), fk.Normal((2,)))
        >>> print(flow.summary())
        Flow over events (2,); log_prob is exact
        <BLANKLINE>
        layer            in  parameters  own
        ------------------------------------
        transform Chain   2          10
          scale ActNorm   2           4    4
          mix LULinear    2           6    6
        base Normal       2
        ------------------------------------
        total             2          10   10
        <BLANKLINE>
        A layer's figures contain those of the layers in it.
        >>> report = flow.summary(x=torch.zeros(5, 2))
        >>> report["transform.mix"].log_term, report["base"].log_term_deviation, round(report.total.bits_per_dim, 3)
        (0.0, 0.0, 1.326)
        """
        if x is not None and samples is not None:
            raise ValueError("Flow.summary: x and samples are given, wanted one of them or neither")
        samples = None if samples is None else count("Flow.summary", "samples", samples)
        repeats = count("Flow.summary", "repeats", repeats)
        if x is not None:
            check_tensor("Flow.summary", "x", x)
        like = tensor_of(self)
        if context is None and self.context_ndim is not None:
            known = torch.Size() if self.context_ndim == 0 else self._context_shape
            if known is None:
                raise ShapeError("Flow.summary: context is missing; this flow was made without context_shape")
            context = torch.ones(known, dtype=self._context_dtype(like.dtype), device=like.device)
        self.check_context(context)
        shape, dtype = None, None
        if context is not None and self.context_ndim is not None:
            shape, dtype = context.shape[context.ndim - self.context_ndim :], context.dtype

        def trace(watch: Callable[[], AbstractContextManager[Any]]) -> torch.Size:
            event = self._trace(shape, dtype, watch)
            assert event is not None
            if event_shape is not None and as_shape(event_shape) != event:
                raise ShapeError(f"Flow.summary: event_shape is {tuple(as_shape(event_shape))}, wanted {tuple(event)}")
            return event

        if x is None and samples is None:
            return summarize(self, trace)
        if like.device.type == "meta":
            raise ValueError("Flow.summary: parameters on the meta device have no values; give neither x nor samples")
        if x is None:
            x = self.sample(samples or 1, context, generator=generator)
        data = x
        return summarize(
            self,
            trace,
            log_prob=lambda: self.log_prob(data, context, generator=generator),
            to_latent=lambda: self.to_latent(data, context, generator=generator),
            from_latent=lambda z: self.from_latent(z, context, generator=generator),
            data=[data] if context is None else [data, context],
            repeats=repeats,
        )

    def _sum(self, term: Tensor) -> Tensor:
        extra = len(self._latent_shape) - self.transform.out_ndim
        return term.sum(tuple(range(-extra, 0))) if extra else term

    def _base_log_prob(self, z: Tensor, context: Tensor | None) -> Tensor:
        return self.base.log_prob(z, context) if self._base_takes_context else self.base.log_prob(z)

    def _base_arguments(self, shape: torch.Size, context: Tensor | None) -> tuple[Any, ...]:
        """What the base is asked to sample: a conditional one adds the context's batch itself."""
        return ((), context) if self._base_takes_context else (shape,)

    def _encode(self, context: Tensor) -> Tensor:
        """The context as the parts read it."""
        return context if self.context_net is None else self.context_net(context)

    def _with_context(self, name: str, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`value`, an x or a z, and the encoded context, expanded to one batch."""
        event_ndim = self.event_ndim if name == "x" else len(self._latent_shape)
        event_shape = self._event_shape if name == "x" else self._latent_shape
        if event_shape is not None:
            self.check_event(name, value, event_shape)
        else:
            self.check_tensor(name, value)
            if value.ndim < event_ndim:
                came = tuple(value.shape)
                raise ShapeError(f"Flow: {name} has shape {came}, wanted at least {event_ndim} dims of event")
        context_batch = self.check_context(context)
        if context is None:
            return value, None
        encoded = self._encode(context)
        batch, event = value.shape[: value.ndim - event_ndim], value.shape[value.ndim - event_ndim :]
        joint = self.joint_batch(batch, context_batch)
        return value.expand((*joint, *event)), encoded.expand((*joint, *encoded.shape[len(context_batch) :]))

    def _sample_context(
        self, sample_shape: int | Sequence[int], context: Tensor | None
    ) -> tuple[torch.Size, Tensor | None]:
        """Sample shape + context batch, and the encoded context expanded to it."""
        batch = self.check_context(context)
        shape = as_shape(sample_shape)
        if context is None:
            return shape, None
        encoded = self._encode(context)
        shape = shape + batch
        return shape, encoded.expand((*shape, *encoded.shape[len(batch) :]))

    def _trace(
        self,
        context_shape: Sequence[int] | None,
        context_dtype: torch.dtype | None = None,
        watch: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> torch.Size | None:
        """The shape of x, by a backwards run of the base's event on fake tensors; no arithmetic is done."""
        if self.context_ndim is not None and context_shape is None:
            return None
        with shapes_only(self) as like:
            # One batch dim: it shows a part that mistakes it for its event.
            z = torch.empty(1, *self._latent_shape, **like)
            context = None if context_shape is None else torch.empty(1, *context_shape, **like)
            if context is not None:
                context = context.to(context_dtype or self._context_dtype(like["dtype"]))
            with watch():
                z, context = self._with_context("z", z, context)
                return run_inverse(self.transform, z, context, None)[0].shape[1:]

    def _context_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """That of a context nobody has seen: a net that reads single numbers reads labels."""
        return torch.int64 if self.context_ndim == 0 and self.context_net is not None else dtype

    def extra_repr(self) -> str:
        kind = "exact" if self.exact else "lower bound"
        shape = "" if self._event_shape is None else f", event_shape={tuple(self._event_shape)}"
        conditional = "" if self.context_ndim is None else f", context_ndim={self.context_ndim}"
        return f"x -> z, log_prob: {kind}{shape}{conditional}"


def tensor_of(module: nn.Module) -> Tensor:
    """A tensor with the dtype and device of the module: one of its own, or an empty one of torch's defaults."""
    return next((t for t in [*module.parameters(), *module.buffers()] if t.is_floating_point()), torch.empty(()))


@contextmanager
def shapes_only(module: nn.Module) -> Iterator[dict[str, Any]]:
    """While the context lasts, `module` runs on fake tensors, without arithmetic: only shapes come out of it.

    Long ways to a shape that is known are left out. Maps only look at their parameters: elementwise, they keep the
    shape. Autoregressive parts go back as they go forward, in one pass of their net, which checks the same. Gives the
    dtype and device of the module, for the tensors to run it on.
    """

    def passed(map: Map) -> Callable[..., tuple[Tensor, Tensor]]:
        def run(value: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            map.parameters_for(value, context)
            return value, value

        return run

    like = tensor_of(module)
    # Kernels of parts that are compiled would read memory that fake tensors do not have.
    eager = torch.compiler.set_stance("force_eager")
    with eager, FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), ExitStack() as stack:
        for part in module.modules():
            if isinstance(part, Map):
                for direction in ("forward", "inverse"):
                    part.__dict__[direction] = passed(part)
                    stack.callback(part.__dict__.pop, direction)
            elif isinstance(part, Autoregressive):
                part.__dict__["inverse"] = part.forward
                stack.callback(part.__dict__.pop, "inverse")
        yield {"dtype": like.dtype, "device": like.device}


def _check_support(transform: Transform, base: Distribution) -> None:
    """Refuse a base with values that the transform does not take back, where supports tell for certain.

    Of the transform an interval or a half-line tells, but not of a dequantizer, which takes any real back. A base fills
    its support; only a flow as a base may keep to a part of it, unless it is an interval, as in a chain.
    """
    last, taken, given = transform, transform.codomain, base.support
    if taken is None:
        return
    while isinstance(last, Chain):
        last = [part for part in last if part.codomain is not None][-1]
    if last.stochastic_forward:
        return
    of_base, of_transform = ([getattr(c, f"{end}_bound", None) for end in ("lower", "upper")] for c in (given, taken))
    known = None not in of_base or (given is constraints.real and not isinstance(base, Flow))
    bounds = [bound for bound in (*of_base, *of_transform) if isinstance(bound, Tensor)]
    if not known or of_transform == [None, None] or not values_at_hand(*bounds):
        return
    if not fits(given, taken):
        raise DomainError(
            f"Flow: the base, {type(base).__name__}, has values in {given}, but the transform gives values in {taken} "
            "and takes no others back"
        )
