"""Turns saved results into Markdown tables and plots, on the screen or on the page about performance."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks import page

__all__ = ["SAVED", "draw", "load", "save", "tables", "taken_with", "write_page"]

SAVED = Path(__file__).parent / "results"
PAGE = page.DOCS / "performance.md"
ASSETS = page.DOCS / "assets"


def save(result: dict[str, Any], folder: Path) -> None:
    """Keep the results of one workload, in place of earlier ones with as many threads."""
    folder.mkdir(exist_ok=True)
    _place(folder, result["workload"], result["machine"]["threads"]).write_text(json.dumps(result, indent=1) + "\n")


def load(workload: str, threads: int, folder: Path) -> dict[str, Any] | None:
    """The results kept for a workload."""
    place = _place(folder, workload, threads)
    return json.loads(place.read_text()) if place.exists() else None


def _place(folder: Path, workload: str, threads: int) -> Path:
    return folder / f"{workload}-{threads}.json"


def taken_with(result: dict[str, Any]) -> str:
    """A line about when, with what and on what results were taken."""
    machine = result["machine"]
    clock = "one thread, CPU time" if machine["threads"] == 1 else f"{machine['threads']} threads, time on the wall"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['date']}; {machine['processor']}; {clock}; {versions}."


def tables(result: dict[str, Any]) -> str:
    """Times with their quartiles, errors, and memory where it was measured."""
    cells = result["cells"]
    columns = _columns(cells)
    parts = [page.table(["ms", *columns, *_ratio_names(columns)], (_times(cell, columns) for cell in cells))]
    parts.append(page.table(["error", *columns, "allowed"], (_errors(cell, columns) for cell in cells)))
    for key, name in (("peak_bytes", "peak, MiB"), ("held_bytes", "held for backward, MiB an example")):
        rows = [_memory(cell, columns, key) for cell in cells if any(key in r for r in cell["contestants"].values())]
        if rows:
            parts.append(page.table([name, *columns], rows))
    return "\n\n".join(parts)


def _columns(cells: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for cell in cells for name in cell["contestants"]))


def _ratio_names(columns: list[str]) -> list[str]:
    """A ratio for flowkit as it is, and one for its fastest way if there are several."""
    own = [name for name in columns if name.startswith("flowkit")]
    return ["flowkit is faster by", *(["at its fastest by"] if len(own) > 1 else [])]


def _correct(result: dict[str, Any]) -> bool:
    return "median_ms" in result and not result.get("wrong")


def ratios(cell: dict[str, Any]) -> tuple[float | None, float | None]:
    """The time of the fastest other contestant that is right, over that of flowkit: as it is, and at its fastest."""
    right = {name: result["median_ms"] for name, result in cell["contestants"].items() if _correct(result)}
    others = [value for name, value in right.items() if not name.startswith("flowkit")]
    own = [value for name, value in right.items() if name.startswith("flowkit")]
    if not others or not own:
        return None, None
    plain = min(others) / right["flowkit"] if "flowkit" in right else None
    return plain, min(others) / min(own)


def _times(cell: dict[str, Any], columns: list[str]) -> list[str]:
    results = cell["contestants"]
    fastest = min((each["median_ms"] for each in results.values() if _correct(each)), default=None)
    row = [cell["cell"]]
    for name in columns:
        result = results.get(name, {})
        if "failed" in result:
            row.append("fails")
        elif "median_ms" not in result:
            row.append("")
        else:
            middle, (low, high) = _short(result["median_ms"]), map(_short, result["quartiles_ms"])
            text = f"{middle} ({low}–{high})"
            if result.get("wrong"):
                text = f"wrong: {middle}"
            row.append(f"**{text}**" if result["median_ms"] == fastest and not result.get("wrong") else text)
    found = ratios(cell)[: len(_ratio_names(columns))]
    return row + ["" if ratio is None else f"{ratio:.2f}" for ratio in found]


def _errors(cell: dict[str, Any], columns: list[str]) -> list[str]:
    def text(result: dict[str, Any]) -> str:
        if "failed" in result:
            return result["failed"].split(":")[0]
        if "error" not in result:
            return ""
        return f"{result['error']:.0e}" + (" **wrong**" if result["wrong"] else "")

    return [cell["cell"], *(text(cell["contestants"].get(name, {})) for name in columns), f"{cell['tolerance']:.0e}"]


def _memory(cell: dict[str, Any], columns: list[str], key: str) -> list[str]:
    sizes = (cell["contestants"].get(name, {}).get(key) for name in columns)
    return [cell["cell"], *("" if size is None else _short(size / 2**20) for size in sizes)]


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def draw(result: dict[str, Any], path: Path) -> None:
    """Medians with their quartiles, a row for each cell, on a logarithmic axis; what is wrong is a cross."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    cells = result["cells"]
    columns = _columns(cells)
    # Labels of the names beside one another: as many in a row as the longest leaves room for.
    in_a_row = min(len(columns), max(2, 80 // (6 + max(map(len, columns)))))
    height = 1.1 + 0.3 * len(cells) + 0.22 * (math.ceil(len(columns) / in_a_row) - 1)
    figure, ax = plt.subplots(figsize=(8, height), dpi=110, layout="constrained")
    hues = plt.get_cmap("tab10")
    others = [name for name in columns if not name.startswith("flowkit")]
    own = [name for name in columns if name.startswith("flowkit")]
    for name in [*others, *own]:
        color = (
            hues(3 + own.index(name) * 1) if name in own else plt.get_cmap("Greys")(0.35 + 0.13 * others.index(name))
        )
        marker = "o" if name in own else "sD^vP*"[others.index(name) % 6]
        shown = [
            (row, each["contestants"][name])
            for row, each in enumerate(cells)
            if "median_ms" in each["contestants"].get(name, {})
        ]
        right = [(row, each) for row, each in shown if not each.get("wrong")]
        for chosen, sign in ((right, marker), ([pair for pair in shown if pair not in right], "x")):
            if not chosen:
                continue
            middles = [each["median_ms"] for _, each in chosen]
            spread = [
                [max(each["median_ms"] - each["quartiles_ms"][0], 0) for _, each in chosen],
                [max(each["quartiles_ms"][1] - each["median_ms"], 0) for _, each in chosen],
            ]
            ax.errorbar(
                middles, [row for row, _ in chosen], xerr=spread, fmt=sign, color=color, markersize=6, linewidth=1,
                label=name if sign == marker else None, zorder=3 if name in own else 2,
            )  # fmt: skip
    ax.set(xscale="log", xlabel="milliseconds, median and quartiles; a cross is a wrong result")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_yticks(range(len(cells)), [cell["cell"] for cell in cells])
    ax.set_ylim(len(cells) - 0.5, -0.5)
    ax.grid(axis="both", color="#e6e6e6", linewidth=0.7)
    ax.spines[:].set_visible(False)
    figure.legend(loc="outside upper center", ncols=in_a_row, frameon=False)
    figure.savefig(path)
    plt.close(figure)


def write_page(results: list[dict[str, Any]]) -> None:
    """Put tables and plots of these results into the page."""
    for result in results:
        threads = result["machine"]["threads"]
        name = result["workload"] if threads == 1 else f"{result['workload']}, {threads} threads"
        text = f"{tables(result)}\n\n{taken_with(result)}"
        if threads == 1:
            picture = f"performance_{result['workload']}.png"
            draw(result, ASSETS / picture)
            text = f"![{result['title']}](assets/{picture})\n\n{text}"
        page.write_between_marks(PAGE, name, text)
