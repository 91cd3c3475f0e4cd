"""Factoring out: part of the event is scored where it stands, and drawn on the way back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowkit.arguments import count, takes_context, whole
from flowkit.distribution import Distribution, drawn_with
from flowkit.errors import ShapeError
from flowkit.functional.precision import log_term_dtype
from flowkit.transform import Transform

__all__ = ["Slice"]


class Slice(Transform):
    """z = a, with x = (a, b) along one axis; b is scored under a base, and drawn from it on the way back.

    Log-term: log p(b), or log p(b | a) if the base is conditional; on the way back its negative at the b that was
    drawn. The density stays exact. This is how a multi-scale flow drops half of its channels after each scale.

    Turned round, `Slice(keep, base, dim).inv` augments: forward appends noise b with log-term -log p(b | a), and the
    flow's `log_prob` is a lower bound in expectation, for flows on more dims than the data have.

    Args:
        keep: how many elements of the axis are a, and stay.
        base: density of b, whose event is that of x with the rest of the axis. A conditional one is given a, or what
            the encoder makes of it: `Flow(FromContext(Affine(), net, event_ndim=3), Normal(shape), context_ndim=3)` is
            Glow's.
        dim: the axis, negative.
        encoder: `encoder(a, context)` gives the one tensor on which the base is conditional. None for a itself.

    Shapes:
        x: (*batch, *event), `base.event_ndim` dims of event; z: the same with `keep` along the axis; l: (*batch).

    Raises:
        ShapeError: if x does not have more than `keep` elements along the axis, or the rest is no event of the base.
        ValueError: if nothing is kept, `dim` is no axis of the base's event, the base has only a bound on its density,
            or an encoder or an a of these dims does not suit it.
        TypeError: if the base is no `Distribution`, or the encoder no network.

    Reference:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, section 3.6,
        https://arxiv.org/abs/1605.08803; Nielsen et al., "SurVAE flows", 2020, https://arxiv.org/abs/2007.02731.

    >>> import torch, flowkit as fk
    >>> factor_out = Slice(1, fk.Normal((2,)), dim=-1)
    >>> z, term = factor_out(torch.tensor([[5.0, 0.0, 0.0]]))
    >>> z, term
    (tensor([[5.]]), tensor([-1.8379]))
    >>> factor_out.inverse(z)[0].shape
    torch.Size([1, 3])
    """

    stochastic_inverse = True

    def __init__(self, keep: int, base: Distribution, dim: int, encoder: nn.Module | None = None) -> None:
        super().__init__()
        if not isinstance(base, Distribution):
            raise TypeError(f"Slice: base is a {type(base).__name__}, wanted a flowkit Distribution")
        keep, axis = count("Slice", "keep", keep), whole(dim)
        if axis is None or not -base.event_ndim <= axis < 0:
            raise ValueError(f"Slice: dim is {dim}, wanted from {-base.event_ndim} to -1, an axis of the base's event")
        if not base.exact:
            raise ValueError("Slice: base has only a bound on its density, wanted an exact one")
        if encoder is not None and base.context_ndim is None:
            raise ValueError("Slice: base takes no context, wanted none either for the encoder, or a conditional base")
        if encoder is None and base.context_ndim not in (None, base.event_ndim):
            raise ValueError(
                f"Slice: base is conditional on {base.context_ndim} dims of event, but what is kept has "
                f"{base.event_ndim}; wanted an encoder"
            )
        self.net_takes_context = encoder is None or takes_context("Slice", "encoder", encoder)
        self.keep, self.base, self.dim, self.encoder = keep, base, axis, encoder
        self.in_ndim = self.out_ndim = base.event_ndim

    def _condition(self, kept: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        """What the base is conditional on, as further arguments of its methods."""
        if self.base.context_ndim is None:
            return ()
        if self.encoder is None:
            return (kept,)
        return (self.enter_net(self.encoder, *self.net_arguments(kept, context)),)

    def _event(self, size: int | None) -> tuple[int | None, ...]:
        """The event with this size along the axis."""
        event: list[int | None] = [None] * self.in_ndim
        event[self.dim] = size
        return tuple(event)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_event("x", x, self._event(None))
        if x.shape[self.dim] <= self.keep:
            raise ShapeError(
                f"{self.path}: x has shape {tuple(x.shape)}, wanted more than the {self.keep} along {self.dim} to keep"
            )
        kept, rest = x.split([self.keep, x.shape[self.dim] - self.keep], dim=self.dim)
        # What the base says of the shape of the rest comes with the path of this part.
        log_density = self.enter_net(self.base.log_prob, rest, *self._condition(kept, context))
        return kept, log_density.to(log_term_dtype(x.dtype))

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        self.check_event("z", z, self._event(self.keep))
        condition = self._condition(z, context)
        # A conditional base adds the batch of its context itself.
        sample_shape = () if condition else z.shape[: z.ndim - self.in_ndim]
        rest, log_density = self.base.sample_and_log_prob(sample_shape, *condition, **drawn_with(generator))
        wanted = list(z.shape)
        wanted[self.dim] = rest.shape[self.dim]
        if list(rest.shape) != wanted:
            raise ShapeError(f"{self.path}: z has shape {tuple(z.shape)}, but the rest comes as {tuple(rest.shape)}")
        return torch.cat([z, rest], dim=self.dim), -log_density.to(log_term_dtype(z.dtype))

    def extra_repr(self) -> str:
        return f"keep={self.keep}, dim={self.dim}"
