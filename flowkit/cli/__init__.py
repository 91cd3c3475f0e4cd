"""The command line: `flowkit <command>`.

A command is a module of this folder with `NAME`, `HELP`, `DESCRIPTION`, `arguments(parser)` and `run(options)`, named
in `COMMANDS`. What `run` returns is the exit status; None is 0.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from flowkit import __version__
from flowkit.cli import demo, evaluate, info, sample, train

__all__ = ["COMMANDS", "main"]

COMMANDS: tuple[Any, ...] = (demo, train, evaluate, sample, info)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    parser = argparse.ArgumentParser(prog="flowkit", description="Normalizing flows on PyTorch.")
    parser.add_argument("--version", action="version", version=f"flowkit {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        own = commands.add_parser(
            command.NAME,
            help=command.HELP,
            description=command.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.arguments(own)
        own.set_defaults(run=command.run)
    # argparse takes no positionals after options in a subcommand; key=value may stand anywhere.
    options, rest = parser.parse_known_args(arguments)
    strangers = [text for text in rest if text.startswith("-") or "=" not in text or "overrides" not in options]
    if strangers:
        parser.error(f"unrecognized arguments: {' '.join(strangers)}")
    if rest:
        options.overrides += rest
    try:
        status = options.run(options)
        sys.stdout.flush()  # here, and not at exit, where nobody can catch what it raises
    except BrokenPipeError:
        # Whoever read the output, `head` for one, wants no more of it. What is left must go somewhere at exit, and the
        # status is that of a program that dies of a closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except (ImportError, OSError, ValueError) as error:
        print(f"flowkit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("flowkit: interrupted", file=sys.stderr)
        return 130
    return status or 0
