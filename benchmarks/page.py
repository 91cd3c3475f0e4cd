"""Tables in Markdown, and where they go in the docs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["DOCS", "table", "write_between_marks"]

DOCS = Path(__file__).parents[1] / "docs"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """In Markdown; numbers stand to the right."""
    head = [f"| {' | '.join(columns)} |", "|" + "|".join("---" if i == 0 else "--:" for i in range(len(columns))) + "|"]
    return "\n".join([*head, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def write_between_marks(path: Path, name: str, text: str) -> None:
    """Put `text` between `<!-- name -->` and `<!-- end of name -->` on a page.

    Raises:
        RuntimeError: unless the page has one such place.
    """
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page, found = re.subn(
        f"{start}.*?{end}", lambda _: f"{start}\n\n{text}\n\n{end}", path.read_text(), flags=re.DOTALL
    )
    if found != 1:
        raise RuntimeError(f"{path} has {found} places for {name}, wanted one")
    path.write_text(page)
