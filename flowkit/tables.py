"""Tables of text: aligned by blanks for a terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["markdown_table", "text_table"]


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int, width: int) -> str:
    """Columns two blanks apart, the first `left` of them flush left; the first is cut where the line would be too long.

    A row that is empty becomes a rule.
    """
    filled = [row for row in rows if row]
    sizes = [max(len(row[i]) for row in [headings, *filled]) for i in range(len(headings))]
    sizes[0] = min(sizes[0], max(width - sum(sizes[1:]) - 2 * (len(sizes) - 1), 12))

    def line(row: Sequence[str]) -> str:
        cells = [_cut(row[0], sizes[0]), *row[1:]]
        return "  ".join(
            cell.ljust(size) if i < left else cell.rjust(size)
            for i, (cell, size) in enumerate(zip(cells, sizes, strict=True))
        ).rstrip()

    rule = "-" * (sum(sizes) + 2 * (len(sizes) - 1))
    return "\n".join([line(headings), rule, *(line(row) if row else rule for row in rows)])


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table, the first `left` columns flush left."""
    rule = ["---" if i < left else "---:" for i in range(len(headings))]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [headings, rule, *rows]]
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"
