"""What the package promises as a whole: its names, a changelog that tells of them, and no side effects on importing."""

import inspect
import re
import sys
from pathlib import Path

import pytest

import flowkit as fk
from scripts import public_api
from tests.support import changed_by_importing

ROOT = Path(__file__).parent.parent
LISTED = public_api.LIST.read_text()
CHANGED = [line[2:] for line in LISTED.splitlines() if line[:2] != "  "]
COMMAND = "python scripts/public_api.py"


def test_public_names_are_those_of_the_list():
    """A name or a signature that changes by accident fails here; one that changes on purpose is written down."""
    now = public_api.merged(LISTED, public_api.lines())
    strangers = sorted({*now.splitlines()} ^ {*LISTED.splitlines()})
    assert now == LISTED, f"run `{COMMAND}`, and name in CHANGELOG.md what is new, other or gone: {strangers}"


def unreleased():
    """What stands in backticks in the changelog's section of what is not yet released."""
    section = re.search(r"^## \[Unreleased\]\n(.*?)(?=^## |\Z)", (ROOT / "CHANGELOG.md").read_text(), re.M | re.S)
    return re.findall(r"`([^`]+)`", section[1])


def told(line, spans):
    """Whether a span names what a line of the list has: `Name`, or for a member `Class.member`, or the class if new."""
    *owner, name = re.match(r"[\w.]+", line)[0].split(".")
    words = [set(re.findall(r"\w+", span)) for span in spans]
    if owner[-1][0].isupper():
        return any(owner[-1] in each and (name in each or is_new(owner)) for each in words)
    return any(name in each for each in words)


def is_new(owner):
    return any(line.startswith("+ " + ".".join(owner) + "(") for line in LISTED.splitlines())


def test_changes_since_the_release_stand_in_the_changelog():
    spans = unreleased()
    assert spans, "CHANGELOG.md: nothing in backticks under Unreleased"
    assert [line for line in CHANGED if not told(line, spans)] == [], "CHANGELOG.md says nothing of these"


@pytest.mark.parametrize(
    ("line", "spans", "expected"),
    [
        ("flowkit.Wobble(x)", ["Wobble", "x"], True),
        ("flowkit.Wobble(x)", ["flowkit.Wobble(x)"], True),
        ("flowkit.Wobble(x)", ["Wobbles", "x"], False),
        ("flowkit.zoo.wobble(x)", ["zoo.wobble"], True),
        ("flowkit.Flow.wobble(self)", ["Flow", "wobble"], False),
        ("flowkit.Flow.wobble(self)", ["Flow.wobble"], True),
    ],
)
def test_what_counts_as_told(line, spans, expected):
    assert told(line, spans) is expected


def test_the_list_remembers_what_the_release_had():
    listed = "  a.kept(x)\n- a.old()\n  a.changed(x)\n+ a.brief()\n"
    marked = "+ a.changed(x, y)\n- a.changed(x)\n  a.kept(x)\n+ a.new()\n- a.old()\n"
    assert sorted(public_api.merged(listed, ["a.kept(x)", "a.changed(x, y)", "a.new()"]).splitlines()) == sorted(
        marked.splitlines()
    )
    assert public_api.merged(listed, ["a.kept(x)", "a.changed(x)", "a.old()"]).count("+") == 0


def test_names_are_sorted_and_there():
    assert fk.__all__ == sorted(fk.__all__)
    for name in public_api.MODULES:
        assert len(set(sys.modules[name].__all__)) == len(sys.modules[name].__all__)
        assert all(hasattr(sys.modules[name], each) for each in sys.modules[name].__all__)


def test_no_module_bears_the_name_of_a_public_function():
    """`flowkit.initialize` is the function, and no file hides it."""
    for name in fk.__all__:
        assert not (inspect.isroutine(getattr(fk, name)) and f"flowkit.{name}" in sys.modules)


@pytest.fixture(scope="module", params=["flowkit", "flowkit.testing"])
def importing(request):
    return changed_by_importing(request.param)


def test_importing_changes_nothing_global(importing):
    assert importing["changed"] == []


def test_importing_brings_in_what_the_metadata_requires_and_nothing_else(importing):
    """Beside torch, which is there already. matplotlib, scikit-learn, scipy and tqdm would cost more than flowkit."""
    others = {*importing["modules"]} - {*sys.stdlib_module_names} - {"flowkit"}
    assert others <= {"numpy", "safetensors", "filelock"}


def test_importing_does_not_load_the_compiler(importing):
    """Which would take longer than all the rest."""
    heavy = ("torch._inductor", "torch._dynamo.convert_frame", "torch.testing._internal")
    assert [name for name in importing["torch"] if name.startswith(heavy)] == []
