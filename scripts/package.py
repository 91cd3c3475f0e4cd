"""Build the wheel and the source distribution, and use the wheel as someone would who has only that.

    python scripts/package.py            # into dist/, which is emptied before
    python scripts/package.py --list     # and print what the wheel holds

In order: both are built and pass `twine check`; the wheel holds the files that git knows under flowkit/, and no others;
it installs into a fresh environment in which no compiler can be found; `flowkit demo` runs there; and a program that
uses it passes `mypy --strict`. It needs build, twine and mypy: `pip install '.[release]'`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSUMER = ROOT / "tests" / "consumer.py"


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """What a command prints; one that fails ends this with all it said."""
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def build(out: Path) -> tuple[Path, Path]:
    """The source distribution in an emptied folder, and the wheel, which is built from it; so it is whole."""
    shutil.rmtree(out, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", out)
    run(sys.executable, "-m", "twine", "check", "--strict", *out.iterdir())
    (wheel,), (source,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, source


def contents(wheel: Path) -> dict[str, int]:
    """The files of a wheel with their sizes, without those that pip reads."""
    with zipfile.ZipFile(wheel) as archive:
        return {each.filename: each.file_size for each in archive.infolist() if ".dist-info/" not in each.filename}


def wanted() -> set[str]:
    """What the wheel is to hold."""
    return set(run("git", "ls-files", "flowkit").split())


def environment(folder: Path, wheel: Path) -> Path:
    """A fresh virtual environment with the wheel and what `flowkit demo` needs; its programs are all that is found."""
    run(sys.executable, "-m", "venv", folder)
    programs = folder / "bin"
    alone = {**os.environ, "PATH": str(programs)}
    alone.pop("PYTHONPATH", None)
    for compiler in ("cc", "gcc", "c++", "g++", "clang"):
        assert shutil.which(compiler, path=alone["PATH"]) is None
    run(programs / "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", f"{wheel}[demo]", env=alone)
    return programs


def main() -> None:
    """Do it, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print what the wheel holds")
    listed = parser.parse_args().list
    wheel, source = build(ROOT / "dist")
    held = contents(wheel)
    if set(held) != wanted():
        raise SystemExit(f"the wheel has too much or too little: {sorted(set(held) ^ wanted())}")
    if listed:
        print("".join(f"{size:>10,}  {name}\n" for name, size in sorted(held.items())), end="")
    for each in (wheel, source):
        print(f"{each.name}: {each.stat().st_size / 1e6:.2f} MB")
    print(f"the wheel: {len(held)} files, {sum(held.values()) / 1e6:.2f} MB unpacked")
    with tempfile.TemporaryDirectory() as folder:
        elsewhere = Path(folder)
        started = time.monotonic()
        programs = environment(elsewhere / "fresh", wheel)
        print(f"installed without a compiler, torch too, in {time.monotonic() - started:.0f} s")
        alone = {**os.environ, "PATH": str(programs), "OMP_NUM_THREADS": "1"}
        alone.pop("PYTHONPATH", None)
        started = time.monotonic()
        run(programs / "flowkit", "demo", cwd=elsewhere, env=alone)
        print(f"flowkit demo: {time.monotonic() - started:.1f} s")
        shutil.copy(CONSUMER, elsewhere)
        checker = (
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--config-file=",
            "--python-executable",
            programs / "python",
        )
        print("mypy --strict:", run(*checker, CONSUMER.name, cwd=elsewhere, env=alone).strip())


if __name__ == "__main__":
    main()
