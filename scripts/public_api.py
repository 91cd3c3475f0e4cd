"""The public names with their signatures: tests/api.txt holds them, and this writes it anew.

    python scripts/public_api.py              # after a change of public names; then name them in the changelog
    python scripts/public_api.py --release    # from now on count changes from here; scripts/release does it

A line that begins with + came since the last release, with - it went; a signature that changed has both.
A name is public if it stands in `__all__` of one of `MODULES`; of a public class, so are its methods and properties
without an underscore.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LIST = ROOT / "tests" / "api.txt"
MODULES = [
    "flowkit",
    "flowkit.bijectors",
    "flowkit.debugging",
    "flowkit.distributions",
    "flowkit.errors",
    "flowkit.functional",
    "flowkit.interop",
    "flowkit.losses",
    "flowkit.maps",
    "flowkit.metrics",
    "flowkit.nets",
    "flowkit.plots",
    "flowkit.summary",
    "flowkit.surjections",
    "flowkit.testing",
    "flowkit.testing.strategies",
    "flowkit.train",
    "flowkit.train.config",
    "flowkit.train.data",
    "flowkit.train.schedules",
    "flowkit.train.toy",
    "flowkit.zoo",
]


def public() -> dict[str, Any]:
    """What is public, by its full name, the names of `flowkit` first: where a thing has two names, that is its own."""
    return {
        f"{name}.{each}": getattr(module, each)
        for name, module in ((name, importlib.import_module(name)) for name in MODULES)
        for each in module.__all__
    }


def own(name: str) -> bool:
    """Whether a name is public and not one of torch's, such as `extra_repr`."""
    return not name.startswith("_") and not hasattr(nn.Module, name)


def members(thing: type, known: set[type]) -> Iterator[tuple[str, Any]]:
    """The methods and properties that a class defines, itself or in a base of flowkit that is not in `known`."""
    found = {}
    for base in reversed(thing.__mro__):
        if base is thing or (base.__module__.split(".")[0] == "flowkit" and base not in known):
            found |= {name: value for name, value in vars(base).items() if name == "forward" or own(name)}
    for name, value in sorted(found.items()):
        if isinstance(value, classmethod | staticmethod):
            value = value.__func__
        if inspect.isroutine(value) or isinstance(value, property):
            yield name, value


def signature(thing: Any) -> str:
    """Names and defaults, without annotations: those are for the type checker. Nothing for what is not called."""
    inherited = inspect.isclass(thing) and issubclass(thing, BaseException) and "__init__" not in vars(thing)
    if inherited or not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return ""

    class Shown:
        def __init__(self, default: Any) -> None:
            self.default = default

        def __repr__(self) -> str:
            return getattr(self.default, "__qualname__", None) or repr(self.default)

    whole = inspect.signature(thing)
    parameters = [
        each.replace(annotation=each.empty, default=each.empty if each.default is each.empty else Shown(each.default))
        for each in whole.parameters.values()
    ]
    return str(whole.replace(parameters=parameters, return_annotation=whole.empty))


def lines() -> list[str]:
    """One line a name, in the order of the alphabet."""
    names: dict[int, str] = {}
    things = public()
    known = {thing for thing in things.values() if isinstance(thing, type)}
    found = []
    for name, thing in things.items():
        if not (inspect.isclass(thing) or inspect.isroutine(thing)):
            found.append(name)
        elif id(thing) in names:
            found.append(f"{name} is {names[id(thing)]}")
        else:
            names[id(thing)] = name
            found.append(name + signature(thing))
            if isinstance(thing, type):
                found += [f"{name}.{each}{signature(value)}" for each, value in members(thing, known)]
    return sorted(found)


def merged(listed: str, now: list[str]) -> str:
    """The list with marks: what `listed` had at the last release stays, whether it is still there or not."""
    released = {line[2:] for line in listed.splitlines() if line[:2] in ("  ", "- ")}
    marked = [("  " if line in released else "+ ") + line for line in now]
    marked += ["- " + line for line in released - set(now)]
    return "".join(f"{line}\n" for line in sorted(marked, key=lambda line: (line[2:], line[0])))


def main() -> None:
    """Write the list, and print what changed since the last release."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", action="store_true", help="drop the marks")
    released = parser.parse_args().release
    now = lines()
    text = "".join(f"  {line}\n" for line in now) if released else merged(LIST.read_text(), now)
    LIST.write_text(text)
    print("".join(line for line in text.splitlines(keepends=True) if line[0] != " "), end="")


if __name__ == "__main__":
    main()
