"""Parts of other libraries behind flowkit's interface, so that the kit can run on them.

An adapter does what is a matter of convention: it flattens the batch dims to the one that the library wants, turns the
direction round where the library's forward leads to the data, refuses wrong shapes at the door, and takes log-terms of
bfloat16 inputs to float32. What is computed is left to the library.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.distributions import constraints

import flowkit as fk
from flowkit.arguments import as_shape


@contextmanager
def own_validation():
    """What an import changes in torch.distributions is put back. (That zuko changes it, a test of its own shows.)"""
    distribution = torch.distributions.Distribution
    kept = {name: distribution.__dict__.get(name) for name in ("_validate_args", "arg_constraints")}
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is not None:
                setattr(distribution, name, value)


class Peer(fk.Transform):
    """A transform of events of a fixed shape; a subclass writes `run(x, context, inverse)` for batches of one dim."""

    def __init__(self, peer, event, *, latent=None, context=False, domain=constraints.real, codomain=constraints.real):
        super().__init__()
        self.peer = peer
        self.event, self.latent, self.reads_context = tuple(event), tuple(latent or event), context
        self.in_ndim, self.out_ndim = len(self.event), len(self.latent)
        self.domain, self.codomain = domain, codomain

    def forward(self, x, context=None):
        return self._run("x", x, context, self.event, inverse=False)

    def inverse(self, z, context=None):
        return self._run("z", z, context, self.latent, inverse=True)

    def _run(self, name, value, context, event, inverse):
        self.check_event(name, value, event)
        batch = value.shape[: value.ndim - len(event)]
        if self.reads_context:
            context = self.needed_context(context)
            context = context.reshape(batch.numel(), *context.shape[len(batch) :])
        result, log_term = self.run(value.reshape(batch.numel(), *event), context, inverse)
        return result.reshape(*batch, *result.shape[1:]), promoted(log_term, value).expand(len(result)).reshape(batch)


def promoted(log_term, value):
    return log_term.float() if value.dtype == torch.bfloat16 else log_term


class Nflows(Peer):
    """nflows: forward leads to the latent."""

    def run(self, x, context, inverse):
        return (self.peer.inverse if inverse else self.peer)(x, context)


class Torchflows(Nflows):
    """torchflows: likewise."""


class Normflows(Peer):
    """normflows: forward leads to the data."""

    def run(self, x, context, inverse):
        given = () if context is None else (context,)
        return self.peer(x, *given) if inverse else self.peer.inverse(x, *given)


class FrEIA(Peer):
    """FrEIA: lists of tensors, and a flag for the direction."""

    def run(self, x, context, inverse):
        (result,), log_term = self.peer([x], c=None if context is None else [context], rev=inverse, jac=True)
        return result, log_term


class Torch(Peer):
    """torch.distributions: a call, and the log-determinant by another."""

    def run(self, x, context, inverse):
        transform = self.peer.inv if inverse else self.peer
        z = transform(x)
        log_term = transform.log_abs_det_jacobian(x, z)
        return z, log_term.flatten(1).sum(1)


class Zuko(Peer):
    """zuko: a module that makes a transform of torch.distributions, perhaps of a context."""

    def run(self, x, context, inverse):
        transform = self.peer(context)
        return (transform.inv if inverse else transform).call_and_ladj(x)


class Spline(fk.Transform):
    """A function of elements and their parameters, which a buffer holds: `run(x, params, inverse)`."""

    def __init__(self, run, params):
        super().__init__()
        self.in_ndim = self.out_ndim = params.ndim - 1
        self.run = run
        self.register_buffer("params", params)

    def forward(self, x, context=None):
        return self._run("x", x, inverse=False)

    def inverse(self, z, context=None):
        return self._run("z", z, inverse=True)

    def _run(self, name, value, inverse):
        self.check_event(name, value, tuple(self.params.shape[:-1]))
        z, log_term = self.run(value, self.params.expand(*value.shape, self.params.shape[-1]), inverse)
        return z, promoted(log_term.flatten(value.ndim - self.in_ndim).sum(-1), value)


class Density(fk.Distribution):
    """A distribution of vectors, perhaps of a context of one dim; a subclass speaks to the library."""

    def __init__(self, peer, size, context=False):
        super().__init__()
        self.peer, self.event_shape, self.context_ndim = peer, torch.Size((size,)), 1 if context else None

    def _flat(self, x, context):
        """The joint batch, and x and context with one batch dim."""
        self.check_event("x", x)
        self.check_context(context)
        batch = torch.broadcast_shapes(x.shape[:-1], () if context is None else context.shape[:-1])
        if context is not None:
            context = context.expand(*batch, context.shape[-1]).reshape(batch.numel(), context.shape[-1])
        return batch, x.expand(*batch, *self.event_shape).reshape(batch.numel(), *self.event_shape), context


class NflowsFlow(Density):
    """nflows: one number of samples, for contexts (N, C) samples (N, number, *event), in pieces of `batch_size`."""

    batch_size = None

    def log_prob(self, x, context=None, *, generator=None):
        batch, x, context = self._flat(x, context)
        return self.peer.log_prob(x, context).reshape(batch)

    def rsample(self, sample_shape=(), context=None, *, generator=None):
        draw = partial(self.peer.sample, batch_size=self.batch_size)
        return self._drawn(lambda *args: (draw(*args),), sample_shape, context, generator)[0]

    def sample_and_log_prob(self, sample_shape=(), context=None, *, generator=None):
        return self._drawn(self.peer.sample_and_log_prob, sample_shape, context, generator)

    def _drawn(self, draw, sample_shape, context, generator):
        """What is drawn, the context's batch put after the sample shape; for none, one is drawn and not kept."""
        self.check_context(context)
        shape = as_shape(sample_shape)
        count = max(shape.numel(), 1)
        with seeded(generator, self):
            if context is None:
                return tuple(each[: shape.numel()].reshape(*shape, *each.shape[1:]) for each in draw(count))
            batch = context.shape[:-1]
            rows = context.reshape(batch.numel(), context.shape[-1])
            drawn = draw(count, rows if len(rows) else context.new_zeros(1, context.shape[-1]))
        for each in drawn:
            if each.shape[:2] != (max(len(rows), 1), count):
                raise RuntimeError(f"for {len(rows)} contexts, {count} samples of each have shape {tuple(each.shape)}")
        return tuple(
            each[: len(rows), : shape.numel()].movedim(0, 1).reshape(*shape, *batch, *each.shape[2:]) for each in drawn
        )


class ZukoFlow(Density):
    """zuko: a module that makes a distribution, perhaps of a context."""

    def log_prob(self, x, context=None, *, generator=None):
        self._flat(x, context)
        return self.peer(context).log_prob(x)

    def rsample(self, sample_shape=(), context=None, *, generator=None):
        self.check_context(context)
        with seeded(generator, self):
            return self.peer(context).rsample(as_shape(sample_shape))

    def sample_and_log_prob(self, sample_shape=(), context=None, *, generator=None):
        with seeded(generator, self):
            return self.peer(context).rsample_and_log_prob(as_shape(sample_shape))


@contextmanager
def seeded(generator, module):
    """No peer takes a generator: the global one stands in for it; and the default dtype is that of the module."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(next((parameter.dtype for parameter in module.parameters()), before))
    try:
        with torch.random.fork_rng(devices=[], enabled=generator is not None):
            if generator is not None:
                torch.manual_seed(generator.initial_seed())
            yield
    finally:
        torch.set_default_dtype(before)


def with_weights(module: nn.Module, scale: float, seed: int = 0) -> nn.Module:
    """Every parameter drawn from N(0, scale²)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module
