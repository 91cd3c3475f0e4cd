"""What the package promises as a whole: its names, its docstrings, and that importing it changes nothing."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import flowkit as fk
from flowkit import testing, train
from flowkit.train import config

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
TOOLS = [fk.interop, testing, train, config, train.data, train.schedules]
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


PROBE = """
import json, sys, warnings
import torch

def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "validate_args": torch.distributions.Distribution._validate_args,
        "random state": torch.random.get_rng_state().tolist(),
        "gradients": torch.is_grad_enabled(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "print options": repr(vars(torch._tensor_str.PRINT_OPTS)),
        "warning filters": repr(warnings.filters),
        "recursion limit": sys.getrecursionlimit(),
    }

torch.manual_seed(0)
before, modules = state(), set(sys.modules)
import MODULE
after = state()
print(json.dumps({
    "changed": [name for name in before if before[name] != after[name]],
    "modules": sorted({name.split(".")[0] for name in set(sys.modules) - modules}),
    "torch": sorted(name for name in set(sys.modules) - modules if name.startswith("torch.")),
}))
"""


@pytest.fixture(scope="module", params=["flowkit", "flowkit.testing"])
def importing(request):
    script = PROBE.replace("MODULE", request.param)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_importing_changes_nothing_global(importing):
    assert importing["changed"] == []


def test_importing_needs_no_extra(importing):
    extras = {"matplotlib", "sklearn", "scipy", "tqdm", "hypothesis", "pytest", "mpmath", "pyro", "zuko", "nflows"}
    assert not extras & set(importing["modules"])


def test_importing_does_not_load_the_compiler(importing):
    """Which would take longer than all the rest."""
    heavy = ("torch._inductor", "torch._dynamo.convert_frame", "torch.testing._internal")
    assert [name for name in importing["torch"] if name.startswith(heavy)] == []
