"""Finding where values go wrong: a validation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from flowkit.errors import DomainError
from flowkit.interception import intercepted
from flowkit.transform import Chain, Inverse, Transform

__all__ = ["validation"]


@contextmanager
def validation(module: nn.Module) -> Iterator[None]:
    """While the context lasts, every transform in `module` checks what comes in and what goes out.

    What comes in must be free of NaN and lie in the transform's domain (its codomain, on the way back); what goes out
    must be free of NaN. The first transform where it is not so is named, with the example and the value. For
    debugging: every check waits for the device.

    Args:
        module: a flow, or any module that holds transforms.

    Raises:
        DomainError: from the call that goes wrong.

    >>> import torch, flowkit as fk
    >>> flow = fk.Flow(fk.Chain(logit=fk.Logit(), norm=fk.ActNorm((2,))), fk.Normal((2,)))
    >>> with validation(flow):
    ...     flow.log_prob(torch.tensor([[0.5, 0.2], [0.5, 1.5]]))
    Traceback (most recent call last):
        ...
    flowkit.errors.DomainError: transform.logit: x is 1.5 in example (1, 1), wanted Interval(lower_bound=0.0, ...
    """
    # Chains and inverses are left to their parts, which name the place more closely.
    transforms: list[nn.Module] = [
        part for part in module.modules() if isinstance(part, Transform) and not isinstance(part, Chain | Inverse)
    ]
    # A bijector of finite values that gives infinite ones stands at the edge of its domain, and a sum makes NaN of it.

    def before(part: nn.Module, args: tuple[Any, ...], inverse: bool) -> None:
        assert isinstance(part, Transform)
        name, value, support = ("z", args[0], part.codomain) if inverse else ("x", args[0], part.domain)
        _check(part, name, value.isnan(), value, "no NaN")
        # How far a stochastic inverse reaches is for it to say: a dequantizer's takes any real.
        if support is not None and not part.stochastic_forward:
            _check(part, name, ~support.check(value), value, str(support))

    def after(part: nn.Module, args: tuple[Any, ...], result: tuple[Tensor, Tensor], inverse: bool) -> None:
        assert isinstance(part, Transform)
        name = "x" if inverse else "z"
        _check(part, name, ~result[0].isfinite() & args[0].isfinite().all(), result[0], "a finite value")
        if part.stochastic_forward and not inverse and part.codomain is not None:  # noise from outside its cube
            _check(part, name, ~part.codomain.check(result[0]), result[0], str(part.codomain))
        _check(part, "the log-term", result[1].isnan(), result[1], "no NaN")

    with intercepted(transforms, before, after):
        yield


def _check(part: Transform, name: str, bad: Tensor, value: Tensor, wanted: str) -> None:
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        raise DomainError(f"{part.path}: {name} is {value[first].item()} in example {first}, wanted {wanted}")
