"""Run the tables of tests/conformance and tests/peers in full, and write docs/conformance.md and docs/peers.md from it.

    python scripts/conformance_table.py            # both pages, two processes
    python scripts/conformance_table.py -n 8       # further arguments go to pytest
    python scripts/conformance_table.py --only conformance
    python scripts/conformance_table.py --only conformance -n 2 -k LULinear    # these rows anew, the others as they are

What a page says comes from the results of runs alone. What fails is shown as such, and the command's status says so.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import flowkit as fk  # noqa: E402
from flowkit.testing import DISTRIBUTION_PROPERTIES, PROPERTIES  # noqa: E402

PASSED, THOROUGH, FAILED, NOT_APPLICABLE, NOT_RUN = "✓", "T", "✗", "–", ""
TABLES = {"transforms": PROPERTIES, "distributions": DISTRIBUTION_PROPERTIES}
COMMAND = "python scripts/conformance_table.py"


class Collector:
    """A plugin of pytest that keeps what the tests recorded, from all processes."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.found: list[tuple[object, str]] = []
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self.counts[report.outcome] += 1
            thorough = "thorough" in report.keywords
            for key, value in report.user_properties:
                if key == self.key:
                    self.found.append((value, FAILED if report.failed else THOROUGH if thorough else PASSED))


def run(key: str, tests: str, arguments: list[str]) -> Collector:
    """All of the tests, the thorough ones too."""
    collector = Collector(key)
    pytest.main([str(ROOT / tests), "-q", "-m", "", *arguments], plugins=[collector])
    if not collector.found:
        raise SystemExit(f"{tests}: nothing ran; the page stays as it is")
    return collector


def entries_of(page: Path) -> dict[tuple[str, str, str], str]:
    """What a page says, by table, row and column."""
    found = {}
    for section in re.split(r"^## ", page.read_text(), flags=re.MULTILINE)[1:] if page.exists() else []:
        heading, *lines = section.splitlines()
        header, *rows = [
            [cell.strip() for cell in line[1:-1].split("|")] for line in lines if line.startswith("|")
        ] or [[]]
        for name, *marks in rows[1:]:
            found |= {
                (heading.lower(), name, column): mark for column, mark in zip(header[1:], marks, strict=True) if mark
            }
    return found


def conformance_page(collector: Collector) -> str:
    """Rows and columns in the order of the tables; what did not run is as it was."""
    from tests.conformance.cases import DISTRIBUTIONS, TRANSFORMS

    entries = entries_of(ROOT / "docs" / "conformance.md")
    for (*place, applies), mark in collector.found:
        entries[tuple(place)] = mark if applies or mark == FAILED else NOT_APPLICABLE
    lines = [
        "# What passes",
        "",
        "Every exported transform and distribution, in every variant that takes another path through the code, is "
        f"held to every property of [the test kit](testing.md). This page is written by `{COMMAND}` from the results "
        "of such a run.",
        "",
        f"- {PASSED} passes, in the profile that every change runs; {THOROUGH} passes, in the thorough profile; "
        f"{FAILED} fails.",
        f"- {NOT_APPLICABLE} does not apply: a law that a part which draws noise does not promise, a context where "
        "there is none. Empty: not run; inductor is asked of one part of each family.",
        "",
        stamp(collector),
    ]
    for kind, rows in (("transforms", TRANSFORMS), ("distributions", DISTRIBUTIONS)):
        columns = [*TABLES[kind], "inductor"]
        lines += ["", f"## {kind.capitalize()}", "", table(["", *columns])]
        for row in rows:
            lines.append(line([row.name, *(entries.get((kind, row.name, name), NOT_RUN) for name in columns)]))
    for kind, properties in TABLES.items():
        lines += ["", f"## What the properties of {kind} say", ""]
        lines += [f"- **{name}**: {check.promise}" for name, check in properties.items()]
    lines += ["- **inductor**: `compiles`, with the backend inductor in place of aot_eager.", ""]
    return "\n".join(lines)


def peers_page(collector: Collector) -> str:
    """What the kit says of other libraries."""
    from tests.peers.cases import DENSITIES, PARTS

    order = [(row.library, row.name) for row in [*PARTS, *DENSITIES]]
    found = sorted((value for value, _ in collector.found), key=lambda value: order.index(tuple(value[:2])))
    libraries = sorted({value[0] for value in found}, key=str.lower)
    lines = [
        "# The kit on other libraries",
        "",
        "Small adapters in `tests/peers` give parts of other libraries flowkit's interface: they flatten batch dims, "
        "turn the direction round where it is the other, and check shapes at the door. Then the same kit runs on them. "
        f"This page is written by `{COMMAND}` from the results of such a run; a test fails if any of them comes out "
        "otherwise.",
        "",
        "Some properties are conveniences that flowkit promises and others do not: a part that fails only "
        "`batch_shapes` (for an empty batch), `compiles`, `vectorizes`, `copies` or `dtypes` (in bfloat16) has a right "
        "density. What fails `autocast` gives results in bfloat16, without a warning.",
        "",
        stamp(collector, libraries),
        "",
        table(["library", "part", "passes", "fails", "what was found", "what is behind it"]),
    ]
    for library, part, passes, fails, first, note in found:
        cells = [library, part, str(passes), ", ".join(fails) or "nothing", first.replace("|", "\\|"), note]
        lines.append(line(cells))
    return "\n".join([*lines, ""])


def stamp(collector: Collector, libraries: list[str] = []) -> str:  # noqa: B006
    """When, on what, and how many."""
    versions = [f"flowkit {fk.__version__}", f"torch {torch.__version__}", f"Python {platform.python_version()}"]
    names = metadata.packages_distributions()
    for library in libraries:
        if library not in ("torch", "flowkit"):
            versions.append(f"{names[library][0]} {metadata.version(names[library][0])}")
    counts = collector.counts
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    return (
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}, {', '.join(versions)}, on a CPU "
        f"({platform.machine()}); in the last run {counts['passed']} tests passed, {counts['failed']} failed{skipped}."
    )


def table(header: list[str]) -> str:
    """The head of a table; only the first column stands to the left."""
    return "\n".join([line(header), line([":--", *[":-:"] * (len(header) - 1)])])


def line(cells: list[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write the pages that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("conformance", "peers"), help="one of the two pages")
    options, arguments = parser.parse_known_args()
    arguments = arguments or ["-n", "2"]
    failed = 0
    if options.only != "peers":
        collector = run("conformance", "tests/conformance/test_conformance.py", arguments)
        (ROOT / "docs" / "conformance.md").write_text(conformance_page(collector))
        failed += collector.counts["failed"]
    if options.only != "conformance":
        collector = run("peer", "tests/peers", arguments)
        if collector.counts["failed"]:
            raise SystemExit("tests/peers: something came out otherwise; the page stays as it is")
        (ROOT / "docs" / "peers.md").write_text(peers_page(collector))
    raise SystemExit(min(failed, 1))


if __name__ == "__main__":
    main()
