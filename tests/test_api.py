"""What the package promises as a whole: its names, its docstrings, and that importing it changes nothing."""

import inspect
import sys
from pathlib import Path

import pytest

import flowkit as fk
from flowkit import plots, testing, train
from flowkit.train import config
from tests.support import changed_by_importing

# One name a line, so that what is promised can be read and merged.
NAMES = (Path(__file__).parent / "public_names.txt").read_text().split()


def test_public_names_are_frozen():
    assert fk.__all__ == NAMES
    assert sorted(NAMES) == NAMES
    assert all(hasattr(fk, name) for name in fk.__all__)


PACKAGES = [
    fk,
    fk.bijectors,
    fk.distributions,
    fk.functional,
    fk.losses,
    fk.maps,
    fk.metrics,
    fk.nets,
    fk.surjections,
    fk.zoo,
]
TOOLS = [fk.interop, plots, testing, train, config, train.data, train.schedules]
PUBLIC = [(package, name) for package in [*PACKAGES, *TOOLS] for name in package.__all__]


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=[f"{p.__name__}.{name}" for p, name in PUBLIC])
def test_public_names_have_docstrings(package, name):
    thing = getattr(package, name)
    if inspect.isclass(thing) or inspect.isroutine(thing) or inspect.ismodule(thing):
        assert inspect.getdoc(thing) if inspect.isroutine(thing) else vars(thing).get("__doc__"), f"{name} has none"
        assert not thing.__doc__.startswith(f"{name}("), f"{name} has only what dataclass writes"


@pytest.mark.parametrize("package", [package for package in PACKAGES if package is not fk])
def test_no_module_bears_the_name_of_a_public_function(package):
    """`flowkit.initialize` is the function, and no file hides it."""
    for name in fk.__all__:
        assert not (inspect.isroutine(getattr(fk, name)) and f"flowkit.{name}" in sys.modules)


@pytest.fixture(scope="module", params=["flowkit", "flowkit.testing"])
def importing(request):
    return changed_by_importing(request.param)


def test_importing_changes_nothing_global(importing):
    assert importing["changed"] == []


def test_importing_needs_no_extra(importing):
    extras = {"matplotlib", "sklearn", "scipy", "tqdm", "hypothesis", "pytest", "mpmath", "pyro", "zuko", "nflows"}
    assert not extras & set(importing["modules"])


def test_importing_does_not_load_the_compiler(importing):
    """Which would take longer than all the rest."""
    heavy = ("torch._inductor", "torch._dynamo.convert_frame", "torch.testing._internal")
    assert [name for name in importing["torch"] if name.startswith(heavy)] == []
