"""Every benchmark runs and is right; each in a process of its own, for zuko changes torch's state."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import mpmath
import pytest
import torch

from benchmarks import mix_logistic, report, spline
from benchmarks.measure import Cell, Contestant, Contract, allocated, measure
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parents[1]
PEERS = {
    "densities": ["zuko", "matplotlib"],
    "tabular": ["zuko", "nflows", "sklearn"],
    "mix_logistic": [],
    "spline": ["zuko", "nflows", "normflows", "pyro"],
    "autoregressive": ["zuko", "nflows", "normflows", "pyro"],
    "glow": ["nflows", "normflows", "FrEIA"],
    "flowpp": [],
    "growth": [],
}
TINY = Contract(tiny=True)


def needs(name):
    missing = [peer for peer in PEERS[name] if importlib.util.find_spec(peer) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


@pytest.mark.parametrize("name", WORKLOADS)
def test_everybody_in_a_workload_is_right(name, tmp_path):
    needs(name)
    command = [sys.executable, "-m", "benchmarks", name, "--tiny", "--results", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / f"{name}-1.json").read_text())
    assert report.tables(result) in run.stdout
    for cell in result["cells"]:
        for contestant, found in cell["contestants"].items():
            assert "failed" not in found, (cell["cell"], contestant, found)
            # The forms that take the logit of an exponential are here because they are in use, not because they hold.
            if contestant not in ("linear CDF", "log CDF"):
                assert not found["wrong"], (cell["cell"], contestant, found["error"])
                assert found["repeats"] == 2
    wrong = [found["wrong"] for cell in result["cells"] for found in cell["contestants"].values()]
    assert any(wrong) == (name == "mix_logistic")


def test_a_wrong_adapter_is_marked_and_no_rival(monkeypatch):
    right = spline.plain

    def slipped(*arguments):
        z, log_slope = right(*arguments)
        return z, log_slope + 1e-2

    monkeypatch.setattr(spline, "plain", slipped)
    cell = next(spline.cells(TINY))
    chosen = {name: cell.contestants[name] for name in ("flowkit", "plain")}
    found = measure(Cell(cell.name, chosen, cell.tolerance, cell.memory), TINY)
    assert not found["contestants"]["flowkit"]["wrong"]
    assert found["contestants"]["plain"]["wrong"]
    assert found["contestants"]["plain"]["error"] == pytest.approx(1e-2, rel=0.01)
    assert report.ratios(found) == (None, None)
    assert "| wrong: " in report.tables({"cells": [found]})


def test_nan_is_wrong_and_an_exception_is_a_result():
    def fail():
        raise AssertionError("discriminant")

    contestants = {"nan": Contestant(lambda: torch.nan, lambda x: x), "raises": Contestant(fail, lambda x: x)}
    found = measure(Cell("both", contestants, tolerance=1.0), TINY)["contestants"]
    assert found["nan"]["wrong"]
    assert found["raises"] == {"failed": "AssertionError: discriminant"}
    assert "| fails |" in report.tables({"cells": [{"cell": "both", "tolerance": 1.0, "contestants": found}]})


def test_memory_is_the_allocator_s():
    mebibyte = 2**18  # floats

    def run():
        temporary = torch.empty(3 * mebibyte)
        del temporary
        return torch.empty(mebibyte)

    assert allocated(run) == (3 * 2**20, 2**20)


def test_the_mixture_takes_a_quarter_of_the_memory_of_log_space():
    """Forward and backward on one thread; each thread more has a tile of its own."""
    arguments, threads = mix_logistic.inputs("init", (16, 6, 16, 16), 32), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours, plain = (
            allocated(lambda form=form: mix_logistic.gradients(form, arguments))[0]
            for form in (mix_logistic.logit_mix_logistic_cdf, mix_logistic.log_space)
        )
    finally:
        torch.set_num_threads(threads)
    assert ours <= plain / 4


def test_the_page_is_written_from_results(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    cells = [measure(Cell("one", {"flowkit": Contestant(lambda: 0.0, lambda x: x)}, tolerance=1.0), TINY)]
    machine = {"date": "2026-01-01", "processor": "one", "threads": 1, "versions": {"torch": "2"}}
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- spline -->\nold\n<!-- end of spline -->\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "ASSETS", tmp_path)
    report.write_page([{"workload": "spline", "title": "Splines", "machine": machine, "cells": cells}])
    assert "old" not in page.read_text()
    assert "2026-01-01; one; one thread, CPU time; torch 2." in page.read_text()
    assert (tmp_path / "performance_spline.png").stat().st_size > 1000


@pytest.mark.parametrize("regime", mix_logistic.REGIMES)
def test_what_the_mixture_is_held_to_agrees_with_mpmath(regime):
    x, *parameters = (t.double().flatten(0, 3)[:20] for t in mix_logistic.inputs(regime, (2, 2, 4, 4), 4))
    y, log_slope = mix_logistic.log_space(x, *parameters)
    with mpmath.workdps(60):
        for i in range(len(x)):
            weights, means, log_scales = ([mpmath.mpf(v) for v in t[i].tolist()] for t in parameters)
            weights = [mpmath.exp(w) for w in weights]
            rates = [mpmath.exp(-s) for s in log_scales]
            z = [(mpmath.mpf(x[i].item()) - m) * rate for m, rate in zip(means, rates, strict=True)]
            below = sum(w / (1 + mpmath.exp(-v)) for w, v in zip(weights, z, strict=True))
            above = sum(w / (1 + mpmath.exp(v)) for w, v in zip(weights, z, strict=True))
            density = sum(
                w * rate / (1 + mpmath.exp(-v)) / (1 + mpmath.exp(v))
                for w, rate, v in zip(weights, rates, z, strict=True)
            )
            scale = max(1, abs(mpmath.log(below / above)))
            assert abs(y[i].item() - mpmath.log(below / above)) < 1e-12 * scale
            total = sum(weights)
            exact = mpmath.log(density) + mpmath.log(total) - mpmath.log(below) - mpmath.log(above)
            assert abs(log_slope[i].item() - exact) < 1e-11 * scale


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["densities", "tabular"])
def test_a_quick_run_prints_models_of_one_size(name):
    needs(name)
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
