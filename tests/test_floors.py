"""A file imports only from the floors below it, or from its own folder; and nothing imports itself in a circle."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flowkit"

# The first prefix that fits counts. Nets and maps stand on one floor and do not know one another.
FLOORS = {
    "errors": 0,
    "files": 0,
    "arguments": 0,
    "progress": 0,
    "functional": 0,
    "tables": 0,
    "transform": 1,
    "distribution": 1,
    "interception": 1,
    "nets": 2,
    "maps": 2,
    "distributions": 2,
    "bijectors": 2.5,
    "surjections": 2.5,
    "layers": 2,
    "summary": 2.75,
    "flow": 3,
    "checkpointing": 3,
    "initialization": 3,
    "losses": 3,
    "metrics": 3,
    "testing": 3,
    "zoo": 4,
    "interop": 4,
    "debugging": 4,
    "plots": 4,
    "train": 5,
    "cli": 6,
    "__main__": 7,
}
# Torch in, torch out: a conditioner does not know what uses it.
HIGHEST_IMPORT = {"nets": 0}

FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def room(module):
    """`flowkit.functional.reduce` stands in `functional`; the public names stand in no room."""
    return module.split(".")[1] if "." in module else ""


@cache
def imports(module):
    """The modules of flowkit that one imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import, line {node.lineno}"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in full}
    return {name for name in found if name.split(".")[0] == "flowkit"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_below(module):
    if module == "flowkit":
        return  # the public names: all rooms are below it
    assert room(module) in FLOORS, f"{module} stands on no floor; give it one here and in the design"
    floor = FLOORS[room(module)]
    for other in imports(module):
        if room(other) == room(module):
            continue
        if other == "flowkit":
            assert floor >= 6, f"{module} imports the public names, which import it"
            continue
        allowed = FLOORS[room(other)] <= HIGHEST_IMPORT.get(room(module), floor)
        below = FLOORS[room(other)] < floor
        # The errors stand under everything, the functions on the same floor too.
        assert (below and allowed) or room(other) == "errors", f"{module} imports {other} from above"


def test_no_module_is_imported_in_a_circle():
    graph = {module: imports(module) for module in MODULES}
    TopologicalSorter(graph).prepare()


def test_public_names_compute_nothing():
    """`flowkit/__init__.py` has imports, a version and `__all__`, and nothing else."""
    docstring, *statements = ast.parse((PACKAGE / "__init__.py").read_text()).body
    assert isinstance(docstring, ast.Expr)
    for statement in statements:
        assert isinstance(statement, ast.ImportFrom | ast.Assign), ast.unparse(statement)
        if isinstance(statement, ast.Assign):
            assert ast.unparse(statement.targets[0]) in ("__version__", "__all__")


def test_the_page_of_the_floors_is_in_step():
    from scripts import architecture

    assert architecture.page(FLOORS) == architecture.PAGE.read_text(), "run `python scripts/architecture.py`"


def test_every_room_stands_on_a_floor_and_every_floor_has_its_rooms():
    assert {room(module) for module in MODULES if "." in module} == {*FLOORS}
