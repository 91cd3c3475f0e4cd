"""The code in the README and in the docs runs."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = {page: re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL) for page in PAGES}


# What a page may ask for that is no requirement of flowkit: the module, and how pip calls it.
OPTIONAL = {"pyro": "pyro-ppl", "zuko": "zuko", "nflows": "nflows"}


def imported(code):
    """The top-level packages that it imports."""
    for node in ast.walk(ast.parse(code)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        yield from (name.split(".")[0] for name in names)


@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if blocks], ids=lambda page: page.name)
def test_blocks_of_a_page_run_one_after_another(page, tmp_path):
    for name in {*imported("\n".join(BLOCKS[page]))} & {*OPTIONAL}:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: pip install {OPTIONAL[name]}")
    script = tmp_path / "page.py"
    script.write_text("\n".join(BLOCKS[page]))
    run = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_there_are_blocks():
    assert sum(map(len, BLOCKS.values())) >= 8
