"""Run the notebooks from top to bottom, and save them with what they print and draw.

    python scripts/run_notebooks.py             # all of them, in full
    python scripts/run_notebooks.py 1 3         # those whose names begin so
    python scripts/run_notebooks.py --small     # with small numbers, as the tests do; nothing is saved

A notebook takes its small numbers where the environment variable FLOWKIT_SMALL is set. It runs in an empty folder, with
the flowkit of this checkout. Needs the extra `test`.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"


def run(path: Path, *, small: bool) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in a kernel of its own, and without what differs from run to run."""
    notebook = nbformat.read(path, as_version=4)
    environment = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "FLOWKIT_SMALL")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    if small:
        environment["FLOWKIT_SMALL"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=3600,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=environment)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02d}", {}
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = in_128_colors(output.data["image/png"])
    return notebook


def in_128_colors(png: str) -> str:
    """A picture in base64, as another of a third of the size that looks the same."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    """Run, and save unless the numbers are small."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="how the names begin; all if not given")
    parser.add_argument("--small", action="store_true", help="small numbers, and nothing saved")
    options = parser.parse_args()
    paths = [path for path in sorted(FOLDER.glob("*.ipynb")) if path.name.startswith(tuple(options.names or [""]))]
    if not paths:
        parser.error(f"no notebook's name begins with {' or '.join(options.names)}")
    for path in paths:
        start = time.monotonic()
        notebook = run(path, small=options.small)
        if not options.small:
            nbformat.write(notebook, path)
        print(f"{path.name}: {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
