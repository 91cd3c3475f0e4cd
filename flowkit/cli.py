"""The command line: `flowkit demo | evaluate | info | sample`."""

from __future__ import annotations

import argparse
import sys

from flowkit import __version__
from flowkit.commands import demo, evaluate, info, sample

__all__ = ["main"]

COMMANDS = (demo, evaluate, info, sample)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    parser = argparse.ArgumentParser(
        prog="flowkit",
        description="Normalizing flows on PyTorch.",
        epilog="`flowkit COMMAND --help` says more of each command.",
    )
    parser.add_argument("--version", action="version", version=f"flowkit {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        command.add(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ImportError, OSError, ValueError) as error:
        print(f"flowkit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("flowkit: interrupted", file=sys.stderr)
        return 130
    return 0
