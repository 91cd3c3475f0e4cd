"""Every notebook runs; and what is committed is the whole of one run, with nothing of the machine in it."""

import ast
import re

import nbformat
import pytest

from scripts import run_notebooks

FOLDER = run_notebooks.FOLDER
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell):
    """All that the outputs of a cell say."""
    for output in cell.outputs:
        yield from [output.get("text", ""), *output.get("data", {}).values()]


@every_notebook
def test_runs_with_small_numbers(path):
    for cell in code_cells(run_notebooks.run(path, small=True)):
        for output in cell.outputs:
            assert output.get("name") != "stderr", output.text


@every_notebook
def test_committed_outputs_are_those_of_one_clean_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    for cell in cells:
        assert all(output.output_type in ("stream", "display_data", "execute_result") for output in cell.outputs)
        assert all(output.get("name") != "stderr" for output in cell.outputs), "a warning"
        for text in texts(cell):
            assert not re.search(r"/(tmp|home|root|work|usr|Users)/|0x[0-9a-f]{6}|Traceback", text)
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


@every_notebook
def test_committed_files_are_small_and_have_no_needless_metadata(path):
    assert path.stat().st_size < 400_000
    notebook = nbformat.read(path, as_version=4)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}
    assert all(cell.metadata == {} for cell in notebook.cells)


@every_notebook
def test_small_numbers_are_asked_for(path):
    """A notebook that never reads SMALL runs in full in the tests."""
    names = [
        node.id
        for cell in code_cells(nbformat.read(path, as_version=4))
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    ]
    assert "SMALL" in names


@every_notebook
def test_links_between_notebooks_lead_somewhere(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\((?!https?:)([^)#]+)", cell.source):
                assert (FOLDER / target).is_file(), target


def test_the_folder_lists_them_in_order():
    listed = re.findall(r"\]\((\S+\.ipynb)\)", (FOLDER / "README.md").read_text())
    assert listed == [path.name for path in NOTEBOOKS] and len(listed) >= 6


def test_pictures_keep_what_they_show():
    """128 colours are enough for a smooth scale: nothing is further off than the eye tells."""
    import base64
    import io

    import numpy as np
    from PIL import Image

    ramp = np.linspace(0, 255, 256, dtype=np.uint8)
    picture = np.stack([np.tile(ramp, (32, 1)), np.tile(255 - ramp, (32, 1)), np.full((32, 256), 128, np.uint8)], -1)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png")
    found = run_notebooks.in_128_colors(base64.b64encode(buffer.getvalue()).decode())
    again = np.asarray(Image.open(io.BytesIO(base64.b64decode(found))).convert("RGB"))
    assert np.abs(again.astype(int) - picture).max() <= 4
