"""Densities and samplers as programs of `torch.export`."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowkit.arguments import check_kind
from flowkit.distribution import Distribution
from flowkit.flow import Flow, tensor_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["export_from_latent", "export_log_prob", "export_sample"]


def export_log_prob(distribution: Distribution, context: Tensor | None = None) -> ExportedProgram:
    """`log_prob` as a program: `program.module()(x)`, or `(x, context)`, gives (N).

    As all programs of this page it is a snapshot in eval mode, for inference: `torch.export.save` writes it to a file
    that loads without flowkit, N is any number, 0 and 1 included, and no gradients flow, since those of numerical
    inverses are not among the operations of a program. For a program with gradients of a flow in closed form, or with
    other dims, call `torch.export.export(flow, (x,))` itself: it takes every flow as it is.

    Args:
        distribution: a flow, or any distribution. If it is not exact, the program draws noise from the global
            generator and gives one draw of the bound.
        context: an example, for a conditional distribution; of it only event shape, dtype and device matter.

    Shapes:
        x: (N, *event_shape); context: (N, *its event); the result: (N).

    Raises:
        ShapeError: if the context does not fit.
        TypeError: if `distribution` is none.

    >>> import torch, flowkit as fk
    >>> flow = fk.Flow(fk.ActNorm((2,)), fk.Normal((2,)))
    >>> program = export_log_prob(flow)
    >>> x = torch.randn(7, 2)
    >>> torch.equal(program.module()(x), flow.log_prob(x))
    True
    """
    contexts = _contexts(distribution, context)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        x = distribution.sample(() if contexts else (2,), *contexts)
    return _exported(_LogProb(distribution), x, *contexts)


def export_from_latent(flow: Flow, context: Tensor | None = None) -> ExportedProgram:
    """Sampling as a function of explicit noise: `program.module()(z)`, or `(z, context)`, gives x.

    z is a draw of the flow's base, which the caller makes. It is otherwise as `export_log_prob`.

    Args:
        flow: any flow. Parts that draw noise on their way to the data draw it from the global generator.
        context: an example, for a conditional flow.

    Shapes:
        z: (N, *base.event_shape); context: (N, *its event); the result: (N, *event_shape).

    Raises:
        ShapeError: if the context does not fit.
        TypeError: for what is no `Flow`.

    >>> import torch, flowkit as fk
    >>> flow = fk.Flow(fk.ActNorm((2,)), fk.Normal((2,)))
    >>> export_from_latent(flow).module()(torch.randn(7, 2)).shape
    torch.Size([7, 2])
    """
    if not isinstance(flow, Flow):
        raise TypeError(f"export_from_latent: flow is a {type(flow).__name__}, wanted a Flow, which has a latent")
    contexts = _contexts(flow, context)
    like = tensor_of(flow)
    z = torch.zeros(2, *flow.base.event_shape, dtype=like.dtype, device=like.device)
    return _exported(_FromLatent(flow), z, *contexts)


def export_sample(distribution: Distribution, context: Tensor | None = None) -> ExportedProgram:
    """`sample` as a program, with noise of its own: `program.module()(rows)`, or `(context)`, gives x.

    The noise comes from the global generator of wherever the program runs. Of a `rows` only the length is read, as the
    number of samples: `torch.empty(n)`. It is otherwise as `export_log_prob`.

    Args:
        distribution: a flow, or any distribution.
        context: an example, for a conditional distribution, which draws one sample for each context.

    Shapes:
        rows: (N), or context: (N, *its event); the result: (N, *event_shape).

    Raises:
        ShapeError: if the context does not fit.
        TypeError: if `distribution` is none.

    >>> import torch, flowkit as fk
    >>> flow = fk.Flow(fk.ActNorm((2,)), fk.Normal((2,)))
    >>> program = export_sample(flow)
    >>> program.module()(torch.empty(7)).shape, program.module()(torch.empty(1)).shape
    (torch.Size([7, 2]), torch.Size([1, 2]))
    """
    contexts = _contexts(distribution, context)
    return _exported(_Sample(distribution), *(contexts or (torch.empty(2),)))


class _LogProb(nn.Module):
    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        self.distribution = distribution

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.distribution(x, context).detach()


class _FromLatent(nn.Module):
    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self.flow.from_latent(z, context).detach()


class _Sample(nn.Module):
    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        self.distribution = distribution

    def forward(self, rows: Tensor) -> Tensor:
        if self.distribution.context_ndim is None:
            return self.distribution.sample((rows.shape[0],)).detach()
        return self.distribution.sample((), rows).detach()


def _contexts(distribution: Distribution, context: Tensor | None) -> tuple[Tensor, ...]:
    """Two contexts like the example, or none."""
    check_kind("export", "distribution", distribution, Distribution, "a flowkit Distribution, as a Flow is")
    batch = distribution.check_context(context)
    return () if context is None else (context.new_zeros(2, *context.shape[len(batch) :]),)


def _exported(module: nn.Module, *examples: Tensor) -> ExportedProgram:
    """The program of a copy in eval mode, for any number of examples."""
    from torch.export import Dim, export  # loads the compiler

    rows: Any = Dim("rows", min=0)
    frozen = copy.deepcopy(module).eval().requires_grad_(False)
    # Without gradients from the outset: a `no_grad` inside would become a graph of its own for every block.
    with torch.no_grad():
        # Traced and not compiled, as is torch's default from 2.9 on.
        return export(frozen, examples, dynamic_shapes=tuple({0: rows} for _ in examples), strict=False)
