"""The command line, as a user runs it."""

import subprocess
import sys

import pytest

from flowkit.cli import main


def test_demo_draws_a_picture_and_prints_bits_per_dim(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "flowkit", "demo", "--draws", "1"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert " bits/dim on 359 held-out digits" in run.stdout
    assert "scoring held-out digits" in run.stderr  # progress
    assert (tmp_path / "flowkit-demo.png").read_bytes().startswith(b"\x89PNG")


def test_faults_are_a_line_and_a_status(tmp_path, capsys):
    assert main(["demo", "--draws", "0"]) == 1
    assert capsys.readouterr().err == "flowkit: --draws is 0, wanted at least 1\n"
    assert main(["demo", "--draws", "1", "--out", str(tmp_path / "no" / "folder.png")]) == 1
    assert "no/folder.png" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["paint"]])
def test_unknown_commands_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "usage: flowkit" in capsys.readouterr().err
