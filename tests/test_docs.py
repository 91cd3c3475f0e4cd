"""The code in the README and in the docs runs, and the commands that they show are commands."""

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from flowkit import cli
from flowkit.train import config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A fence may be indented, as under a tab. `python` runs; `py` does not, and a comment before it says why.
FENCE = re.compile(
    r"(?:^ *(?P<why><!-- not run: .+? -->)\n\n)?"
    r"^(?P<indent> *)```(?P<kind>python|py|sh)\b[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
FENCES = {page: [match.groupdict() for match in FENCE.finditer(page.read_text())] for page in PAGES}


def blocks(page, kind):
    return [textwrap.dedent(fence["code"]) for fence in FENCES[page] if fence["kind"] == kind]


# What a page may ask for that is no requirement of flowkit: the module, and how pip calls it.
OPTIONAL = {"pyro": "pyro-ppl", "zuko": "zuko", "nflows": "nflows", "normflows": "normflows"}


def imported(code):
    """The top-level packages that it imports."""
    for node in ast.walk(ast.parse(code)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        yield from (name.split(".")[0] for name in names)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: str(page.relative_to(ROOT))
)
def test_blocks_of_a_page_run_one_after_another(page, tmp_path):
    code = "\n".join(blocks(page, "python"))
    for name in {*imported(code)} & {*OPTIONAL}:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: pip install {OPTIONAL[name]}")
    script = tmp_path / "page.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # the code beside the page, whatever is installed
    run = subprocess.run([sys.executable, script.name], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_blocks_that_do_not_run_say_why():
    """And there are few of them; their code is at least Python."""
    idle = [fence for page in PAGES for fence in FENCES[page] if fence["kind"] == "py"]
    for fence in idle:
        assert fence["why"], fence["code"]
        ast.parse(textwrap.dedent(fence["code"]))
    running = sum(len(blocks(page, "python")) for page in PAGES)
    assert running >= 80 and len(idle) <= 4, f"{running} blocks run and {len(idle)} do not"


def commands():
    """Every line of the shell blocks that calls flowkit, and where it stands."""
    for page in PAGES:
        for line in "\n".join(blocks(page, "sh")).splitlines():
            for command in re.split(r"&&", line.partition(" #")[0]):
                words = shlex.split(command)
                if words[:1] == ["flowkit"]:
                    yield pytest.param(words[1:], id=f"{page.name}: {' '.join(words[1:])}")
                elif words[:1] == ["torchrun"] and "flowkit" in words and "..." not in words:
                    yield pytest.param(words[words.index("flowkit") + 1 :], id=f"{page.name}: {' '.join(words)}")


COMMANDS = list(commands())


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_parse(words, monkeypatch):
    """Up to what a command is to do; a training run up to its recipe with the overrides."""
    given = []
    for command in cli.COMMANDS:
        monkeypatch.setattr(command, "run", given.append)
    assert cli.main(words) == 0
    (options,) = given
    if words[0] == "train" and options.config:
        config.recipe(options.config, options.overrides)


def test_there_are_commands():
    assert len(COMMANDS) >= 20


def test_drawings_are_those_of_their_script():
    spec = importlib.util.spec_from_file_location("drawings", ROOT / "docs" / "drawings.py")
    drawings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawings)
    found = {file.stem: file.read_text() for file in drawings.FOLDER.glob("*.svg")}
    assert found == {drawing.__name__: drawings.svg(drawing) for drawing in drawings.DRAWINGS}
