"""The command line, as a user runs it."""

import json
import os
import re
import struct
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import flowkit as fk
import flowkit.train
from flowkit.cli import main
from flowkit.cli.sample import _sample
from flowkit.zoo.flowpp import configuration


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


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    """The card of a small untrained model."""
    sizes = configuration("digits", filters=8, blocks=1, components=2)
    torch.manual_seed(0)
    flow = fk.zoo.flowpp(config="digits", filters=8, blocks=1, components=2)
    path = tmp_path_factory.mktemp("weights") / "flowpp-tiny.json"
    fk.zoo.save(flow, path, model="flowpp", config=asdict(sizes), training={"steps": 0})
    return str(path)


@pytest.mark.parametrize("command", ["demo", "evaluate", "info", "sample"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: flowkit {command}") and len(said.splitlines()) > 8


def test_info_lists_weights_and_where_they_are(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FLOWKIT_HOME", str(tmp_path))
    monkeypatch.setenv("FLOWKIT_WEIGHTS", "https://example.org/weights")
    monkeypatch.setenv("FLOWKIT_OFFLINE", "1")
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    bits = fk.zoo.card("flowpp-digits")["evaluation"]["bits_per_dim"]
    assert re.search(rf"^flowpp-digits +{bits:.3f} +digits +496,928 +2\.0 +package$", said, re.MULTILINE)
    for line in (rf"cache +{tmp_path}", "fetched from +https://example.org/weights", "offline +yes"):
        assert re.search(line, said)
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["flowpp-digits"]["where"] == "package"


def test_info_shows_a_card(capsys, card):
    assert main(["info", "flowpp-digits"]) == 0
    said = capsys.readouterr().out
    known = fk.zoo.card("flowpp-digits")
    assert "all 359 images" in said and known["sha256"] in said and "496,928 parameters" in said
    assert main(["info", "flowpp-digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == known
    assert main(["info", card]) == 0  # of one's own, without an evaluation
    assert "flowpp, " in capsys.readouterr().out
    assert main(["info", "flowpp-nothing"]) == 1
    assert "wanted one of flowpp-cifar10-small, flowpp-digits" in capsys.readouterr().err


def test_samples_are_an_array_or_a_picture(card, tmp_path, capsys):
    def draw(name, *options):
        assert main(["sample", card, "--count", "5", "--out", str(tmp_path / name), *options]) == 0
        return tmp_path / name

    first = np.load(draw("a.npy"))
    assert first.shape == (5, 1, 8, 8) and first.min() >= 0 and first.max() <= 16 and first.std() > 0
    assert np.array_equal(first, np.load(draw("b.npy")))
    assert not np.array_equal(first, np.load(draw("c.npy", "--seed", "1")))
    assert draw("d.png").read_bytes().startswith(b"\x89PNG")
    alike = np.load(draw("e.npy", "--temperature", "0"))
    assert (alike == alike[0]).all()  # the latent does not vary
    cooler = np.load(draw("f.npy", "--temperature", "0.999999"))
    assert (cooler == first).mean() > 0.95  # the same noise, hardly smaller
    assert np.load(draw("g.npy", "--batch", "2")).shape == (5, 1, 8, 8)
    assert "5 samples of flowpp-tiny" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--count", "0"], "--count is 0, wanted at least 1"),
        (["--temperature", "-1"], "--temperature is -1.0, wanted at least 0"),
        (["--temperature", "nan"], "--temperature is nan"),
        (["--out", "a.gif"], r"--out is a.gif, wanted \*.png or \*.npy$"),
    ],
)
def test_samples_that_cannot_be_drawn(card, options, reason, capsys):
    assert main(["sample", card, *options]) == 1
    assert re.search(reason, capsys.readouterr().err.strip())


@pytest.mark.parametrize("command", ["sample", "evaluate", "info"])
def test_a_run_that_is_not_there_is_told_as_a_folder(command, capsys):
    assert main([command, "runs/nowhere"]) == 1
    assert "runs/nowhere: there is no such folder" in capsys.readouterr().err


def test_a_temperature_needs_one_normal_latent():
    flow = fk.Flow(fk.ActNorm((2,)), fk.Logistic((2,)))
    with pytest.raises(ValueError, match="--temperature is for flows whose samples are functions of one normal latent"):
        _sample(flow, 3, 0.5, torch.Generator())


def test_an_evaluation_writes_its_card_and_is_compared(card, tmp_path, capsys):
    def score(*options):
        return main(["evaluate", card, "--data", "digits", "--batch", "359", *options])

    first = str(tmp_path / "first.json")
    assert score("--out", first) == 0
    said = capsys.readouterr()
    assert "flowpp-tiny on digits, held-out: all 359 images" in said.out and "scoring with flowpp-tiny" in said.err
    kept = fk.train.Evaluation.read(first)
    assert (kept.model, kept.steps, kept.draws, kept.images) == ("flowpp-tiny", 0, 1, 359)
    assert score("--seed", "1", "--against", first) == 0
    assert re.search(r"[+-]0\.\d{4} ± \d\.\d{4} bits/dim against flowpp-tiny", capsys.readouterr().out)
    assert score("--against", "flowpp-digits") == 1
    said = capsys.readouterr()
    assert "not measured alike: draws is 1 and 128" in said.err and "all 359 images" not in said.out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--draws", "0"], "--draws is 0, wanted at least 1"),
        ([], "its card names no data set; give one with --data"),
        (["--data", "faces"], "--data is 'faces', wanted one of digits, cifar10, mnist"),
        (["--data", "cifar10"], "--data cifar10 --path cifar-10-python.tar.gz"),
        (["--data", "digits", "--device", "abacus"], "--device is 'abacus': "),
        (["--data", "digits", "--seed", "-1"], "flowkit: --seed is -1, wanted a whole number from 0"),
        (["--data", "digits", "--seed", str(10**30)], "flowkit: --seed is 1000"),
        (["--data", "digits", "--scores", "."], "--scores is '.', a folder; wanted the path of a file"),
        (["--data", "digits", "--out", "."], "--out is '.', a folder; wanted the path of a file"),
    ],
)
def test_evaluations_that_cannot_be_made(card, options, reason, capsys):
    assert main(["evaluate", card, *options]) == 1
    assert reason in capsys.readouterr().err


def test_a_card_without_an_evaluation_is_nothing_to_compare_with(card, capsys):
    assert main(["evaluate", card, "--data", "digits", "--against", card]) == 1
    assert f"{card}: Evaluation: the card has no evaluation: nothing was held out" in capsys.readouterr().err


def test_a_run_with_the_name_of_shipped_weights_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flowpp-digits" / "checkpoints").mkdir(parents=True)
    assert main(["info", "flowpp-digits", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == fk.zoo.card("flowpp-digits")
    assert "flowpp-digits: the trained weights of that name are taken" in said.err
    assert "the run in the folder here is ./flowpp-digits\n" in said.err
    assert main(["info", "./flowpp-digits"]) == 1  # the run, which has no checkpoint yet
    assert "no checkpoint of a run" in capsys.readouterr().err


def sources(folder):
    """The same 10 images of 8x8 to train on, and 6 held out, in every format."""
    from PIL import Image

    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8), np.uint8)
    train, held_out = images[:10], images[10:]
    np.savez(folder / "a.npz", x_train=train, x_test=held_out)
    (folder / "npy").mkdir()
    (folder / "idx").mkdir()
    for part, stem, values in (("train", "train", train), ("test", "t10k", held_out)):
        np.save(folder / "npy" / f"x_{part}.npy", values)
        header = b"\0\0\x08\x03" + struct.pack(">3I", *values.shape)
        (folder / "idx" / f"{stem}-images-idx3-ubyte").write_bytes(header + values.tobytes())
        (folder / "png" / part).mkdir(parents=True)
        for number, image in enumerate(values):
            Image.fromarray(image).save(folder / "png" / part / f"{number:03d}.png")
    return images


@pytest.mark.parametrize(
    ("source", "path"),
    [("mnist", "a.npz"), ("mnist", "idx"), ("arrays", "a.npz"), ("arrays", "npy"), ("folder", "png")],
)
@pytest.mark.parametrize("levels", [256, 32])
def test_every_reader_gives_the_whole_split(tmp_path, source, path, levels):
    """No image is dropped by a batch that does not divide, and bits are those of the model."""
    images = torch.from_numpy(sources(tmp_path))[:, None] // (256 // levels)
    torch.manual_seed(0)
    sizes = {"filters": 4, "blocks": 1, "components": 2, "dequant_couplings": 1, "levels": levels}
    config = configuration("digits", **sizes, layout=(("columns", 1),))
    flow = fk.zoo.flowpp(config="digits", **sizes, layout=(("columns", 1),))
    fk.zoo.save(flow, tmp_path / "m.json", model="flowpp", config=asdict(config))
    for split, wanted in (("train", images[:10]), ("held-out", images[10:])):
        card = str(tmp_path / "card.json")
        given = ["--data", source, "--path", str(tmp_path / path), "--split", split, "--batch", "4", "--out", card]
        assert main(["evaluate", str(tmp_path / "m.json"), *given]) == 0
        found = fk.train.Evaluation.read(card)
        name = source if source == "mnist" else Path(path).stem
        same = fk.train.evaluate(
            flow, wanted, data_name=name if levels == 256 else f"{name}, 5 bits", split=split, batch=4, model="m"
        )
        assert replace(found, seconds=0) == replace(same, seconds=0) and found.images == len(wanted)


def test_a_split_that_is_not_there_is_told(card, tmp_path, capsys):
    np.savez(tmp_path / "a.npz", x_train=np.zeros((4, 8, 8), np.uint8))
    assert main(["evaluate", card, "--data", "arrays", "--path", str(tmp_path / "a.npz")]) == 1
    assert "no images held out there; --split train" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["info"], ["info", "flowpp-digits", "--json"]])
def test_a_reader_that_leaves_is_no_fault(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "flowkit", *arguments]
    run = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (run.returncode, run.stderr) == (141, "")


def test_an_interruption_is_a_line_and_a_status(monkeypatch, capsys):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(fk.zoo, "available", stop)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "flowkit: interrupted\n"
