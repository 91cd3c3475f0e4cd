"""The benchmarks of fits run, and compare what is of one size; a process of its own, for zuko changes torch's state."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PEERS = {"densities": ["zuko", "matplotlib"], "tabular": ["zuko", "nflows", "sklearn"]}


@pytest.mark.thorough
@pytest.mark.parametrize("name", PEERS)
def test_a_quick_run_prints_models_of_one_size(name):
    missing = [peer for peer in PEERS[name] if importlib.util.find_spec(peer) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in run.stdout.splitlines()[2:]]
    if name == "densities":
        assert len(rows) == 12
        for _, model, own, peer, *_ in rows:
            scales = 8 if model == "RealNVP" else 0  # one learned scale in each coupling
            assert int(own.replace(",", "")) == int(peer.replace(",", "")) + scales
    else:
        assert [row[0] for row in rows] == ["flowkit", "zuko", "nflows"]
        assert len({row[1] for row in rows}) == 1
    assert all(re.fullmatch(r"-?\d+\.\d+ ± \d+\.\d+", row[4 if name == "densities" else 2]) for row in rows)
