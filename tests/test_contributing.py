"""What CONTRIBUTING.md tells a newcomer to do can be done: the bijector of its five steps, and every path it names."""

import doctest
import re
import textwrap
from pathlib import Path

import flowkit as fk
from flowkit.bijectors import functions
from tests.conformance.cases import TransformRow

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
WRITTEN, ROW = (textwrap.dedent(block) for block in re.findall(r"^ *```py\n(.*?)^ *```", PAGE, re.M | re.S))


def test_the_bijector_of_the_five_steps(monkeypatch):
    """Step 1 in the file that it names, and the row of step 2 as the case of step 3."""
    room = dict(vars(functions))
    exec(compile(WRITTEN, "CONTRIBUTING.md", "exec"), room)

    monkeypatch.setattr(functions, "Asinh", room["Asinh"], raising=False)  # where pickle looks for it

    class Exported:
        Asinh = room["Asinh"]

    row = eval(ROW.rstrip().rstrip(","), {"TransformRow": TransformRow, "fk": Exported})
    fk.testing.check_transform(row.make(), event_shape=row.event)
    (example,) = doctest.DocTestFinder().find(Exported.Asinh, "Asinh", globs=room, module=False)
    assert doctest.DocTestRunner().run(example) == (0, 2)


def test_paths_that_are_named_are_there():
    paths = set(re.findall(r"(?:tests|docs|scripts|flowkit|benchmarks)/[\w./]*", PAGE))
    assert len(paths) > 15
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
