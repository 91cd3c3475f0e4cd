"""A progress bar where tqdm is installed, and nothing where it is not."""

from __future__ import annotations

from typing import Any

__all__ = ["NoBar", "progress_bar"]


class NoBar:
    """Takes the place of a bar."""

    n = 0

    def __enter__(self) -> NoBar:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        """Do nothing."""


def progress_bar(total: int, title: str, *, shown: bool | None = True, **options: Any) -> Any:
    """A bar with `update(n)` and `n`, to be used in a `with`.

    Args:
        total: what `n` comes to.
        title: before the bar.
        shown: None to show it on a terminal only.
        options: of tqdm.

    >>> with progress_bar(10, "counting", shown=False) as bar:
    ...     bar.update(10)
    """
    if shown is False:
        return NoBar()
    try:
        from tqdm import tqdm
    except ImportError:
        return NoBar()
    return tqdm(total=total, desc=title, disable=None if shown is None else False, **options)
