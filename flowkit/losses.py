"""What flows are trained on: maximum likelihood, and fitting an unnormalized density."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from flowkit.distribution import Distribution, drawn_with
from flowkit.errors import NotExact, ShapeError

__all__ = ["forward_kl", "reverse_kl"]


def forward_kl(
    flow: Distribution, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
) -> Tensor:
    """Maximum likelihood: the mean of -log q(x) over a batch of data, in nats.

    It is KL(p || q) of the data's density p but for p's entropy, which no parameter changes. Of a flow that has only a
    bound on its density, it is an upper bound in expectation.

    Args:
        flow: q, the distribution that is trained.
        x: (*batch, *event), data.
        context: as for `flow.log_prob`.
        generator: for the noise of a dequantizer.

    Returns:
        A scalar.

    Raises:
        ShapeError: if the batch is empty: it has no mean.

    >>> import torch, flowkit as fk
    >>> forward_kl(fk.Normal((2,), trainable=True), torch.zeros(8, 2))
    tensor(1.8379, grad_fn=<NegBackward0>)
    """
    # Called, not asked for its log_prob: the way in that DDP and FSDP synchronise.
    log_q = flow(x, context, **drawn_with(generator))
    if not log_q.numel():
        raise ShapeError(f"forward_kl: x has shape {tuple(x.shape)}, an empty batch, wanted at least one event")
    return -log_q.mean()


def reverse_kl(
    flow: Distribution,
    log_density: Callable[[Tensor], Tensor],
    sample_shape: int | Sequence[int],
    context: Tensor | None = None,
    *,
    path_gradient: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Variational inference: the mean of log q(x) - log p(x) over draws x of q, for an unnormalized p.

    It is KL(q || p) less the logarithm of p's normalizing constant, and every net runs once.

    With `path_gradient` the value is the same and its gradient is another estimate of the same: log q is taken at fixed
    parameters, so that the gradient goes through the draws alone ("sticking the landing"). What that leaves out, the
    score of q, has mean 0 but a variance, so near q = p the noise of this gradient goes to 0 and that of the other does
    not. It costs a second run of every net.

    Args:
        flow: q, the distribution that is trained; exact, with `has_rsample`.
        log_density: log p(x) but for a constant: (*sample_shape, *context batch, *event) to
            (*sample_shape, *context batch).
        sample_shape: how many draws, for each context if there are several.
        context: as for `flow.rsample`.
        path_gradient: whether the gradient goes through the draws alone.
        generator: for the draws.

    Returns:
        A scalar.

    Raises:
        NotExact: if the flow has only a bound on its density, or its draws carry no gradient.
        ShapeError: if `log_density` does not give one number for each draw, or there are no draws.

    Reference:
        Rezende, Mohamed, "Variational inference with normalizing flows", 2015, https://arxiv.org/abs/1505.05770;
        Roeder, Wu, Duvenaud, "Sticking the landing", 2017, https://arxiv.org/abs/1703.09194; for flows, Vaitl et al.,
        "Gradients should stay on path", 2022, https://arxiv.org/abs/2207.08219.

    >>> import torch, flowkit as fk
    >>> q = fk.Normal((2,), loc=1.0, trainable=True)
    >>> loss = reverse_kl(q, fk.Normal((2,), loc=1.0).log_prob, 64, path_gradient=True)
    >>> loss.backward()
    >>> loss.item(), q.loc.grad
    (0.0, tensor([0., 0.]))
    """
    if not (flow.exact and flow.has_rsample):
        lacks = "has only a bound on its density (exact" if not flow.exact else "draws without gradient (has_rsample"
        raise NotExact(f"reverse_kl: {type(flow).__name__} {lacks} is False)")
    if path_gradient:
        x = flow.rsample(sample_shape, context, **drawn_with(generator))
        fixed = {name: value.detach() for name, value in flow.named_parameters()}
        # Called, it gives its log_prob; the parameters in `fixed` stand in for its own.
        log_q = functional_call(flow, fixed, (x, context))
    else:
        x, log_q = flow.sample_and_log_prob(sample_shape, context, **drawn_with(generator))
    if not log_q.numel():
        raise ShapeError(
            f"reverse_kl: the draws have shape {tuple(x.shape)}, an empty batch, wanted at least one event"
        )
    log_p = log_density(x)
    if log_p.shape != log_q.shape:
        raise ShapeError(
            f"reverse_kl: log_density gave {tuple(log_p.shape)} for draws {tuple(x.shape)}, wanted {tuple(log_q.shape)}"
        )
    return (log_q - log_p).mean()
