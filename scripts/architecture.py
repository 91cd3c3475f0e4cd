"""Write the tables of docs/architecture.md anew: every file, on its floor, with the first line of its docstring.

    python scripts/architecture.py

The floors are those of tests/test_floors.py, which also holds the page to the files.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- floors -->\n", "<!-- end of floors -->\n"


def tables(floors: Mapping[str, float]) -> str:
    """A table for each floor, from the ground up."""
    package = ROOT / "flowkit"
    found = []
    for floor in sorted({*floors.values()}):
        rooms = [name for name, height in floors.items() if height == floor]
        found.append(f"### Floor {floor:g}\n\n| file | what |\n|---|---|\n")
        for room in rooms:
            path = package / f"{room}.py"
            for file in [path] if path.exists() else sorted((package / room).rglob("*.py")):
                first = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0].replace("|", r"\|")
                found.append(f"| `{file.relative_to(package)}` | {first} |\n")
        found.append("\n")
    return "".join(found)


def page(floors: Mapping[str, float]) -> str:
    """The page with its tables as they are to be."""
    before, rest = PAGE.read_text().split(BEGIN)
    return f"{before}{BEGIN}\n{tables(floors)}{END}{rest.split(END)[1]}"


def main() -> None:
    """Write it."""
    sys.path.insert(0, str(ROOT))
    from tests.test_floors import FLOORS

    PAGE.write_text(page(FLOORS))


if __name__ == "__main__":
    main()
