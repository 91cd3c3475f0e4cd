"""Runs of `flowkit train` go on as they began, or say what differs."""

from __future__ import annotations

from flowkit.cli import main
from tests.train.test_config import SMALL


def train(out, *more: str) -> int:
    return main(["train", "flowpp-digits", *SMALL, "--out", str(out), "--quiet", *more])


def test_a_run_goes_on_with_the_data_that_it_began_with(tmp_path, capsys):
    assert train(tmp_path, "steps=1") == 0
    assert train(tmp_path, "steps=2", "data.hold_out=6") == 1
    assert "holds a run with data.hold_out=None, not 6; with another --out it begins anew" in capsys.readouterr().err
    assert train(tmp_path, "steps=2") == 0


def test_a_run_goes_on_from_where_it_started(tmp_path, capsys):
    started, random = tmp_path / "started", tmp_path / "random"
    assert train(random, "steps=1") == 0
    card = random / "flowpp-digits.json"
    assert train(started, "steps=1", "--from", str(card)) == 0
    assert train(started, "steps=2") == 1
    assert (
        "holds a run that started from flowpp-digits; it goes on with --from flowpp-digits" in capsys.readouterr().err
    )
    assert train(random, "steps=2", "--from", str(card)) == 1
    assert "started from random weights; it goes on with no --from" in capsys.readouterr().err


def test_other_draws_at_the_end_are_drawn(tmp_path, capsys):
    assert train(tmp_path, "steps=1") == 0
    capsys.readouterr()
    assert train(tmp_path, "steps=1", "final_draws=2") == 0
    assert "2 importance samples each" in capsys.readouterr().out


def test_no_path_is_told_however_it_is_written(tmp_path):
    from argparse import Namespace

    from flowkit.cli.train import _command

    given = Namespace(config="flowpp-mnist", overrides=[" data.path = /home/somebody/m.npz", "steps=3"], start=None)
    assert _command(given) == "flowkit train flowpp-mnist data.path=m.npz steps=3"
