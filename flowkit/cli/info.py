"""`flowkit info`: which trained weights there are, and what is known of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from flowkit.cli.options import MODEL

__all__ = ["DESCRIPTION", "HELP", "NAME", "arguments", "run"]


NAME = "info"
HELP = "list trained weights, their scores, and where their files are"
DESCRIPTION = """\
Without a name: lists all trained weights. With a name: what is known of one: sizes, how it was trained, how it scores
and how that was measured. Fetches nothing.

  flowkit info
  flowkit info flowpp-digits
  flowkit info runs/flowpp-digits        a run, by its newest checkpoint

Environment: FLOWKIT_HOME, the folder of the cache; FLOWKIT_WEIGHTS, the address or folder from which weights are
fetched; FLOWKIT_OFFLINE=1, use no network."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("model", nargs="?", help=MODEL)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(options: argparse.Namespace) -> None:
    """Print.

    Raises:
        ValueError: for an unknown name, or a damaged card.
    """
    from flowkit import zoo
    from flowkit.cli.options import model

    if options.model is not None:
        card = model(options.model).card
        print(json.dumps(card, indent=2) if options.json else _card(options.model, card))
        return
    weights = zoo.available()
    if options.json:
        print(json.dumps({name: found._asdict() for name, found in weights.items()}, indent=2))
        return
    rows = [("name", "bits/dim", "data", "parameters", "MB", "where")]
    for name, found in weights.items():
        card = zoo.card(name)
        evaluation = card["evaluation"] or {}
        bits = "" if found.bits_per_dim is None else f"{found.bits_per_dim:.3f}"
        size = f"{found.size / 1e6:.1f}"
        rows.append((name, bits, evaluation.get("data", ""), f"{card['parameters']:,}", size, found.where))
    print(_table(rows))
    print()
    print(_table(_environment()))


def _environment() -> list[tuple[str, ...]]:
    """What decides where weights come from."""
    import torch

    from flowkit import __version__
    from flowkit.zoo.registry import cache_folder, offline, source

    return [
        ("flowkit", f"{__version__}, torch {torch.__version__}"),
        ("cache", f"{cache_folder()} (FLOWKIT_HOME)"),
        ("fetched from", f"{source() or 'nowhere: not set'} (FLOWKIT_WEIGHTS)"),
        ("offline", f"{'yes' if offline() else 'no'} (FLOWKIT_OFFLINE)"),
    ]


def _card(name: str, card: dict[str, Any]) -> str:
    """A card for readers."""
    from flowkit.train import Evaluation

    size = f"{card['size'] / 1e6:.1f} MB"
    blocks = [f"{name}: {card['model']}, {card['parameters']:,} parameters, {size} in {card['dtype']}"]
    if card["evaluation"] is not None:
        blocks.append(str(Evaluation.of(card["evaluation"])))
    for title in ("evaluation", "training", "config", "files"):
        entries = card[title] or {}
        pairs = _flat(entries) if isinstance(entries, dict) else [(each["file"], each["sha256"]) for each in entries]
        if pairs:
            blocks.append(f"{title}\n{_table([(f'  {key}', _text(value)) for key, value in pairs])}")
    return "\n\n".join(blocks)


def _flat(entries: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Entries within entries by their whole names: recipe.train.steps."""
    found: list[tuple[str, Any]] = []
    for key, value in entries.items():
        found += _flat(value, f"{before}{key}.") if isinstance(value, dict) else [(f"{before}{key}", value)]
    return found


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns as wide as their widest entry."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
