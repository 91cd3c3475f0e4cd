"""Calls a function when a module is about to run, or has run, in either direction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

__all__ = ["intercepted"]


@contextmanager
def intercepted(
    modules: Iterable[nn.Module],
    before: Callable[[nn.Module, tuple[Any, ...], bool], None] | None = None,
    after: Callable[[nn.Module, tuple[Any, ...], Any, bool], None] | None = None,
    methods: Sequence[str] = ("forward", "inverse"),
    failed: Callable[[nn.Module], None] | None = None,
) -> Iterator[None]:
    """While the context lasts, `before(module, arguments, inverse)` and `after(module, arguments, result, inverse)`.

    PyTorch's hooks fire on `__call__` alone, and layers also run by `.inverse`, distributions by `.log_prob`. Keyword
    arguments come after the positional ones. `failed(module)` stands in place of `after` where the call, or one of the
    two functions, raises. Contexts nest, and the inner one is called nearer to the module.
    """
    with ExitStack() as stack:
        for module in modules:
            for name in methods:
                if hasattr(type(module), name):
                    stack.callback(_restore, module, name, module.__dict__.get(name))
                    module.__dict__[name] = _watched(module, name, before, after, failed)
        yield


def _restore(module: nn.Module, name: str, previous: Any) -> None:
    if previous is None:
        del module.__dict__[name]
    else:
        module.__dict__[name] = previous


def _watched(module: nn.Module, name: str, before: Any, after: Any, failed: Any) -> Callable[..., Any]:
    run = getattr(module, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        try:
            if before is not None:
                before(module, given, name == "inverse")
            result = run(*args, **kwargs)
            if after is not None:
                after(module, given, result, name == "inverse")
        except BaseException:
            if failed is not None:
                failed(module)
            raise
        return result

    return watched
