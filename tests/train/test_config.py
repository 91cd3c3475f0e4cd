"""Recipes: the published ones, overrides, and faults."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import flowkit as fk
from flowkit.cli import main
from flowkit.train import Evaluation, digits, evaluate, read_log
from flowkit.train.config import Recipe, available, check_levels, recipe
from flowkit.train.data import WANTED
from tests.train.workers import exact_flow, train

SMALL = [
    "model.filters=4",
    "model.blocks=1",
    "model.layout=[['columns', 1]]",
    "model.dequant_couplings=1",
    "batch=4",
    "final_draws=1",
    "sample_every=0",
    "init_batch=16",
]


@pytest.mark.parametrize("name", available())
def test_every_recipe_fits_its_model(name):
    made = recipe(name)
    assert made.about
    assert fk.zoo.CONFIGS[made.model["config"]].levels == (
        17 if name == "flowpp-digits" else 2 ** made.data.get("bits", 8)
    )
    json.dumps(made.as_dict())


def test_every_size_of_the_model_has_a_recipe():
    # What else there is has no size of its own: it names one and changes it.
    assert {f"flowpp-{config}" for config in fk.zoo.CONFIGS} == set(available()) - {"flowpp-cifar10-small"}


PUBLISHED = {
    "flowpp-cifar10": {"batch": 64, "rate": 3e-4, "warmup": 2000, "ema": 0.999, "clip": 1.0, "init_batch": 128},
    "flowpp-imagenet32": {"batch": 32, "rate": 1e-3, "warmup": 5000, "ema": 0.999222, "init_batch": 32},
    "flowpp-imagenet64": {"batch": 72, "rate": 4e-4, "warmup": 10000, "ema": 0.999, "init_batch": 72},
    "flowpp-celeba128-5bit": {"batch": 48, "rate": 1e-5, "warmup": 50000, "ema": 0.999, "init_batch": 64},
    "flowpp-digits": {"steps": 4000, "batch": 64, "rate": 1e-3, "warmup": 500, "hold": 2000, "final_draws": 128},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name):
    assert PUBLISHED[name].items() <= asdict(recipe(name).train).items()


def test_the_ablations_are_trained_alike():
    full = recipe("flowpp-cifar10")
    for name in ("uniform", "affine", "noattention"):
        ablated = recipe(f"flowpp-cifar10-{name}")
        assert (ablated.train, ablated.data) == (full.train, full.data)
        assert ablated.model == {**full.model, "config": f"cifar10-{name}"}


def test_overrides():
    texts = ["steps=7", "rate=1", "precision=bfloat16", "model.filters=8", "data.hold_out=6", "model.shape=[1, 8, 8]"]
    made = recipe("flowpp-digits", texts)
    assert (made.train.steps, made.train.rate, made.train.precision) == (7, 1.0, "bfloat16")
    assert made.model == {"name": "flowpp", "config": "digits", "filters": 8, "shape": [1, 8, 8]}
    assert made.data == {"source": "digits", "hold_out": 6}
    assert recipe("flowpp-mnist", ["data.path=/a b/c=d.npz"]).data["path"] == "/a b/c=d.npz"


FAULTS = {
    "config is 'flowpp', wanted a path ending in .toml, or one of": ("flowpp", []),
    "train has no 'stepz'; there are accumulate, batch": ("flowpp-digits", ["stepz=1"]),
    "'steps' is no override; wanted key=value": ("flowpp-digits", ["steps"]),
    "'optim.rate=1' is no override": ("flowpp-digits", ["optim.rate=1"]),
    "model has no 'width'": ("flowpp-digits", ["model.width=1"]),
    "model.name is 'pixelcnn', wanted one of flowpp, glow": ("flowpp-digits", ["model.name=pixelcnn"]),
    "model has no 'config'; there are context_shape, coupling": ("flowpp-digits", ["model.name=glow"]),
    "steps is 'many', wanted int": ("flowpp-digits", ["steps=many"]),
    "model.layout is 3, wanted a list, of [a text, a whole number] each": ("flowpp-digits", ["model.layout=3"]),
    "model.layout is [['columns']], wanted a list": ("flowpp-digits", ["model.layout=[['columns']]"]),
    "model.config is ['digits'], wanted a text": ("flowpp-digits", ["model.config=['digits']"]),
    "model.filters is True, wanted a whole number": ("flowpp-digits", ["model.filters=true"]),
    "model.dropout is 'no', wanted a number": ("flowpp-digits", ["model.dropout=no"]),
    "model.variational is 1, wanted true or false": ("flowpp-digits", ["model.variational=1"]),
    "data.path is 3, wanted a text": ("flowpp-mnist", ["data.path=3"]),
    "data.channels is 'up', wanted one of auto, first": ("flowpp-mnist", ["data.channels=up"]),
    "data.hold_out is '6th', wanted a whole number": ("flowpp-digits", ["data.hold_out=6th"]),
    "seed is 99999999999999999999999, wanted a whole number from 0 to 2^63 - 1": (
        "flowpp-digits",
        ["seed=99999999999999999999999"],
    ),
    "device is 'gpu': Expected one of cpu": ("flowpp-digits", ["device=gpu"]),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_faults_are_told(reason, capsys, tmp_path):
    config, overrides = FAULTS[reason]
    assert main(["train", config, *overrides, "--out", str(tmp_path)]) == 1
    assert reason in capsys.readouterr().err


def test_a_file_of_ones_own(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('[model]\nname = "flowpp"\nconfig = "digits"\n[data]\nsource = "digits"\n[train]\nsteps = 5\n')
    assert (recipe(str(file)).name, recipe(str(file)).train.steps) == ("mine", 5)
    file.write_text("[model\n")
    with pytest.raises(ValueError, match="not TOML"):
        recipe(str(file))
    file.write_text('colour = "red"\n[model]\nname = "flowpp"\n[data]\nsource = "digits"\n[train]\nsteps = 5\n')
    with pytest.raises(ValueError, match="unknown 'colour'"):
        recipe(str(file))
    file.write_text('[model]\nname = "flowpp"\n[train]\nsteps = 5\n')
    with pytest.raises(ValueError, match=r"data\.source is missing"):
        recipe(str(file))
    file.write_text('[model]\nname = "maf"\n[data]\nsource = "digits"\n[train]\nsteps = 5\n')
    with pytest.raises(ValueError, match=r"model\.features is missing"):
        recipe(str(file))
    file.write_text('model = "flowpp"\n[data]\nsource = "digits"\n[train]\nsteps = 5\n')
    with pytest.raises(ValueError, match=r"mine\.toml: model is 'flowpp', wanted a table, \[model\]"):
        recipe(str(file))
    file.write_bytes('about = "für mich"\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"mine\.toml: not TOML, which is UTF-8"):
        recipe(str(file))


GLOW = (
    '[model]\nname = "glow"\nshape = [1, 8, 8]\nlevels = 17\nscales = 2\nsteps = 2\nfilters = 8\n'
    '[data]\nsource = "digits"\n[train]\nsteps = 2\nwarmup = 0\nbatch = 8\n'
)


def test_other_models_of_the_zoo_and_a_start_from_their_weights(tmp_path, capsys):
    file, path = tmp_path / "glow.toml", tmp_path / "run" / "glow.json"
    file.write_text(GLOW)
    assert main(["train", str(file), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    flow = fk.zoo.load(path)
    assert flow.sample((2,)).shape == (2, 1, 8, 8)
    start = ["train", str(file), "rate=0", "--from", str(path), "--quiet", "--out"]
    assert main([*start, str(tmp_path / "on")]) == 0
    on = fk.zoo.load(tmp_path / "on" / "glow.json").state_dict()
    assert all(torch.equal(value, on[key]) for key, value in flow.state_dict().items())
    # What the card lacks is at its default, as on cards before this release.
    card = json.loads(path.read_text())
    assert card["config"].pop("coupling") == "affine"
    path.write_text(json.dumps(card))
    assert recipe(str(file)).starting_from(str(path)).start == str(path)
    for override, said in (
        ("model.coupling=additive", "coupling is 'affine', and that of the recipe 'additive'"),
        ("model.shape=[1, 8, 4]", "shape is (1, 8, 8), and that of the recipe (1, 8, 4)"),
        ("model.context_shape=[3]", "context_shape is None, and that of the recipe (3,)"),
    ):
        capsys.readouterr()
        assert main([*start, str(tmp_path / "other"), override]) == 1
        assert f"{path}: {said}" in capsys.readouterr().err
    with pytest.raises(ValueError, match="model is 'glow', and that of the recipe 'flowpp'"):
        recipe("flowpp-digits").starting_from(str(path))


def test_images_of_other_levels_than_the_models_are_refused(tmp_path, capsys):
    np.savez(tmp_path / "m.npz", x_train=np.zeros((40, 8, 8), np.uint8))
    given = ["data.source=arrays", f"data.path={tmp_path / 'm.npz'}", "data.bits=3"]
    assert main(["train", "flowpp-digits", *given, "model.levels=256", "--out", str(tmp_path / "run")]) == 1
    said = "model.levels is 256, and m, 3 bits has 8 levels; wanted model.levels=8, or data.bits=8\n"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    for overrides in ([*given, "model.levels=8"], [*given[:2], "model.levels=256"], []):
        made = recipe("flowpp-digits", overrides)
        check_levels(made, made.images())
    made = recipe("flowpp-digits", ["model.levels=32"])
    with pytest.raises(ValueError, match="model.levels is 32, and digits has 17 levels; wanted model.levels=17$"):
        check_levels(made, made.images())
    without = Recipe("x", {"name": "maf", "features": 64}, {"source": "digits"}, made.train)
    check_levels(without, without.images())


def test_list_and_show(capsys):
    assert main(["train", "--list"]) == 0
    shown = capsys.readouterr().out
    assert "flowpp-cifar10-uniform " in shown
    assert len({re.match(r"\S+ +", line).end() for line in shown.splitlines()}) == 1  # one column
    assert main(["train", "flowpp-digits", "steps=3", "--show"]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["steps"] == 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run to its end: its folder, and the command."""
    out = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["train", "flowpp-digits", "steps=2", "log_every=1", "--out", str(out), "--quiet", *SMALL]
    assert main(arguments) == 0
    return out, arguments


def test_a_run_ends_with_a_card_of_the_zoo(run):
    out, _ = run
    path = out / "flowpp-digits.json"
    card, flow = fk.zoo.card(path), fk.zoo.load(path)
    average = load_file(out / "checkpoints" / "step-000000002" / "ema.safetensors")
    assert all(torch.equal(value, average[key]) for key, value in flow.state_dict().items())
    again = evaluate(flow, digits()[1], data_name="digits", split="held-out", model="flowpp-digits", steps=2, ema=0.999)
    assert replace(again, seconds=0) == replace(Evaluation.of(card["evaluation"]), seconds=0)
    told = card["training"]
    assert told["command"] == shlex.join(["flowkit", "train", "flowpp-digits", "steps=2", "log_every=1", *SMALL])
    assert Recipe.of(told["recipe"]) == recipe("flowpp-digits", ["steps=2", "log_every=1", *SMALL])
    assert told["data_sha256"] == fk.zoo.card("flowpp-digits")["training"]["data_sha256"]
    assert (told["steps"], told["skipped"], told["device"], told["processes"]) == (2, 0, "cpu", 1)
    assert fk.zoo.card("flowpp-digits")["training"].keys() <= told.keys(), "unlike the card that is shipped"
    assert sorted(file.name for file in out.iterdir()) == [
        ".lock", "checkpoints", "flowpp-digits.json", "flowpp-digits.safetensors", "log.csv", "log.jsonl",
    ]  # fmt: skip


def test_every_command_takes_a_run_and_its_card(run, tmp_path, capsys):
    out, _ = run
    ways, figures, samples = (str(out), str(out / "flowpp-digits.json")), [], []
    for way in ways:
        assert main(["evaluate", way, "--out", str(tmp_path / "card.json")]) == 0
        figures.append(replace(Evaluation.read(tmp_path / "card.json"), seconds=0))
        assert main(["sample", way, "--count", "3", "--out", str(tmp_path / "a.npy")]) == 0
        samples.append(np.load(tmp_path / "a.npy"))
        assert main(["info", way]) == 0
        told = capsys.readouterr().out
        assert re.search(r"recipe.train.steps +2\n", told) and re.search(r"recipe.model.filters +4\n", told)
    assert figures[0] == figures[1] and np.array_equal(*samples)


def test_the_same_command_goes_on_and_nothing_changes(run, capsys):
    out, arguments = run
    content = (out / "flowpp-digits.safetensors").read_bytes()
    assert main(arguments) == 0
    assert "going on from step 2" in capsys.readouterr().out
    assert (out / "flowpp-digits.safetensors").read_bytes() == content
    assert main([*arguments, "--fresh"]) == 1
    assert "holds an earlier run" in capsys.readouterr().err
    assert main([*arguments[:2], "model.filters=8", *arguments[2:7], *SMALL[1:]]) == 1
    assert "or a checkpoint of another model" in capsys.readouterr().err


def test_a_run_that_has_not_ended_is_scored_by_its_newest_whole_checkpoint(run, tmp_path, capsys):
    out = tmp_path / "stopped"
    shutil.copytree(run[0] / "checkpoints", out / "checkpoints")
    shutil.copytree(run[0] / "checkpoints" / "step-000000002", out / "checkpoints" / "step-000000009")
    (out / "checkpoints" / "step-000000009" / "ema.safetensors").write_bytes(b"half")
    assert main(["evaluate", str(out), "--out", str(tmp_path / "card.json")]) == 0
    card = Evaluation.read(tmp_path / "card.json")
    assert (card.steps, card.ema, card.images, card.model) == (2, 0.999, 359, "flowpp-digits")
    shutil.rmtree(out / "checkpoints" / "step-000000002")
    assert main(["info", str(out)]) == 1
    assert "no checkpoint of a run: step-000000009: ema.safetensors has 4 bytes" in capsys.readouterr().err
    shutil.rmtree(out / "checkpoints")
    assert main(["sample", str(out)]) == 1
    assert "there is none; a run has its first after `save_every` steps" in capsys.readouterr().err


def test_a_run_without_a_recipe_is_told(tmp_path, capsys):
    train(exact_flow, tmp_path, steps=2)
    assert main(["info", str(tmp_path)]) == 1
    assert "a run of `fit`, of which no recipe is known" in capsys.readouterr().err


def test_no_path_of_the_machine_is_on_a_card_and_yet_the_data_is_found(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 255, (24, 8, 8), np.uint8)
    np.savez(tmp_path / "private.npz", x_train=images[:16], x_test=images[16:])
    given = [f"data.path={tmp_path / 'private.npz'}", "model.shape=[1, 8, 8]", "steps=1", *SMALL, "data.hold_out=4"]
    given += ["precision=float32", "channels_last=false"]
    assert main(["train", "flowpp-mnist", *given, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    path = tmp_path / "run" / "flowpp-mnist.json"
    assert str(tmp_path) not in path.read_text() and "data.path=private.npz" in path.read_text()
    evaluation = fk.zoo.card(path)["evaluation"]
    assert (evaluation["split"], evaluation["images"]) == ("every 4th training image", 4)
    for way in (path, tmp_path / "run"):
        for split, wanted in (("held-out", ("every 4th training image", 4)), ("test", ("held-out", 8))):
            assert main(["evaluate", str(way), "--split", split, "--out", str(tmp_path / "card.json")]) == 0
            card = Evaluation.read(tmp_path / "card.json")
            assert (card.data, card.split, card.images) == ("mnist", *wanted)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    capsys.readouterr()
    assert main(["evaluate", str(path)]) == 1
    assert f"flowkit evaluate {path} --data mnist --path mnist.npz" in capsys.readouterr().err
    assert main(["evaluate", str(path), "--path", str(tmp_path / "private.npz"), "--split", "train"]) == 0
    assert "mnist, train without every 4th image: all 12 images" in capsys.readouterr().out


def test_what_a_run_held_out_is_scored_again(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", x_train=np.random.default_rng(0).integers(0, 255, (24, 8, 8), np.uint8))
    given = ["data.source=arrays", f"data.path={tmp_path / 'a.npz'}", "data.bits=5", "model.levels=32"]
    given += ["data.hold_out=4", "steps=1"]
    assert main(["train", "flowpp-digits", *given, *SMALL, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    told = Evaluation.read(tmp_path / "run" / "flowpp-digits.json")
    assert (told.split, told.images) == ("every 4th training image", 6)
    given = ["evaluate", str(tmp_path / "run"), "--against", str(tmp_path / "run" / "flowpp-digits.json")]
    assert main([*given, "--out", str(tmp_path / "card.json")]) == 0
    assert replace(Evaluation.read(tmp_path / "card.json"), seconds=0) == replace(told, seconds=0)
    assert main(["evaluate", str(tmp_path / "run"), "--split", "train", "--out", str(tmp_path / "card.json")]) == 0
    assert Evaluation.read(tmp_path / "card.json").images == 18
    assert main(["evaluate", str(tmp_path / "run"), "--split", "test"]) == 1
    assert "no images held out there" in capsys.readouterr().err


@pytest.mark.parametrize("source", WANTED)
def test_a_missing_path_says_what_to_give(source, capsys):
    assert main(["train", "flowpp-mnist", "steps=3", f"data.source={source}"]) == 1
    told = capsys.readouterr().err
    what, example = WANTED[source]
    assert told == (
        f"flowkit: where is the data ({source})? Nothing is downloaded. Give {what}:\n"
        f"  flowkit train flowpp-mnist steps=3 data.source={source} data.path={example}\n"
    )


def test_ctrl_c_stops_with_a_checkpoint_and_the_same_command_goes_on(tmp_path):
    run = [sys.executable, "-m", "flowkit", "train", "flowpp-digits", "--out", str(tmp_path), *SMALL]
    process = subprocess.Popen([*run, "log_every=1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(read_log(tmp_path / "log.jsonl")) < 2:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    told, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, errors
    reached = int(told.split("stopped by SIGINT at step ")[1].split()[0])
    assert "Traceback" not in errors
    assert "bits/dim" in errors  # the bar
    assert main([*run[3:], f"steps={reached + 1}", "log_every=1", "--quiet"]) == 0
    assert [row["step"] for row in read_log(tmp_path / "log.jsonl")] == list(range(1, reached + 2))


def test_images_of_another_shape_are_refused(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", x_train=np.zeros((40, 8, 8), np.uint8))
    assert main(["train", "flowpp-mnist", f"data.path={tmp_path / 'a.npz'}", "--out", str(tmp_path / "run")]) == 1
    assert "x has shape (40, 1, 8, 8), wanted" in capsys.readouterr().err
    assert torch.is_grad_enabled()


def test_training_goes_on_from_trained_weights(tmp_path):
    few = ["steps=1", "batch=8", "rate=0", "warmup=0"]
    assert main(["train", "flowpp-digits", *few, "--from", "flowpp-digits", "--out", str(tmp_path), "--quiet"]) == 0
    card, before = fk.zoo.card(tmp_path / "flowpp-digits.json"), fk.zoo.card("flowpp-digits")
    # A step of rate 0 from them leaves them as they are: nothing was set from data either.
    assert card["evaluation"]["state_sha256"] == before["evaluation"]["state_sha256"]
    assert card["training"]["started_from"]["sha256"] == before["sha256"]
    assert card["training"]["started_from"]["training"]["steps"] == 4000
    assert card["training"]["command"].endswith("--from flowpp-digits")


def test_weights_of_another_size_are_no_start(tmp_path, capsys):
    told = ["train", "flowpp-digits", "model.filters=8", "--from", "flowpp-digits", "--out", str(tmp_path)]
    assert main(told) == 1
    assert "flowpp-digits: filters is 24, and that of the recipe 8" in capsys.readouterr().err
    assert main(["train", "flowpp-digits", "--from", "absent"]) == 1
    assert "'absent', wanted one of flowpp-cifar10-small, flowpp-digits" in capsys.readouterr().err
