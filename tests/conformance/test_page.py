"""The committed page of results has the rows and columns of the tables, and no result is missing."""

import re
from pathlib import Path

import pytest

from flowkit.testing import DISTRIBUTION_PROPERTIES, PROPERTIES
from tests.conformance.cases import DISTRIBUTIONS, TRANSFORMS

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
STALE = "docs/conformance.md is stale: run `python scripts/conformance_table.py --only conformance`"


def tables():
    """Of each heading, its table as lists of cells."""
    found = {}
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        heading, *lines = section.splitlines()
        cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if line.startswith("|")]
        found[heading] = cells
    return found


@pytest.mark.parametrize(
    ("heading", "rows", "properties"),
    [("Transforms", TRANSFORMS, PROPERTIES), ("Distributions", DISTRIBUTIONS, DISTRIBUTION_PROPERTIES)],
)
def test_page_is_in_step_with_the_tables(heading, rows, properties):
    header, _, *lines = tables()[heading]
    assert header == ["", *properties, "inductor"], STALE
    assert [line[0] for line in lines] == [row.name for row in rows], STALE
    slow = {(row.name, name) for row in rows for name in row.slow}
    for name, *entries in lines:
        for column, entry in zip(properties, entries[:-1], strict=True):
            # What fails has a test of its own that says so.
            assert entry in ({"T", "✗"} if (name, column) in slow else {"✓", "–", "✗"}), f"{STALE}: {name}, {column}"
        assert entries[-1] in {"T", "✗", ""}
