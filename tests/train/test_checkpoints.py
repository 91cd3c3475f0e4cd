"""Nothing is lost: kills, signals, full disks, files cut short, checkpoints of something else."""

import errno
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

import flowkit as fk
from flowkit.train import CheckpointError, checkpoints, evaluate, fit, read_log
from tests.train import workers
from tests.train.workers import exact_flow, integers, noisy_flow, start, train


def losses(out):
    return {row["step"]: (row["loss"], row["gradient_norm"]) for row in read_log(out / "log.jsonl")}


def weights(out, step, name="ema"):
    return load_file(out / "checkpoints" / f"step-{step:09d}" / f"{name}.safetensors")


def found(out):
    refused = []
    return [one.step for one in checkpoints.newest(out / "checkpoints", refused.append)], refused


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run that nobody interrupts."""
    out = tmp_path_factory.mktemp("straight")
    workers.run(train, noisy_flow, out / "run", folder=out)
    return out / "run"


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.thorough)])
def test_after_kills_at_random_moments_the_run_is_the_same_to_the_bit(tmp_path, kills):
    chance, straight, out, steps = random.Random(0), tmp_path / "straight", tmp_path / "run", 30 * kills
    workers.run(partial(train, steps=steps), noisy_flow, straight, folder=tmp_path)
    reached, died = 0, 0
    for number in range(kills):
        process = start(partial(train, steps=steps), noisy_flow, out, report=tmp_path / "error.txt")
        # The first is killed while it begins; the others after they have come further than those before.
        before, deadline = len(read_log(out / "log.jsonl")), time.monotonic() + 100
        while number and len(read_log(out / "log.jsonl")) <= before and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1 if number else 0.3))
        process.kill()
        process.join()
        died += process.exitcode == -signal.SIGKILL
        there, refused = found(out)
        assert refused == [], "a checkpoint is half written"
        assert max(there, default=0) >= reached, "a checkpoint is lost"
        reached = max(there, default=0)
    assert died == kills, "runs ended before they were killed"
    workers.run(partial(train, steps=steps), noisy_flow, out, folder=tmp_path)
    assert losses(out) == losses(straight)
    assert len(losses(out)) == steps
    assert same(weights(out, steps), weights(straight, steps))
    assert same(weights(out, steps, "model"), weights(straight, steps, "model"))


def test_a_kill_within_the_first_checkpoint_leaves_a_run_that_begins_again(tmp_path):
    (tmp_path / "checkpoints" / "step-000000002.partial").mkdir(parents=True)
    assert train(noisy_flow, tmp_path, steps=2).step == 2
    assert not list((tmp_path / "checkpoints").glob("*.partial"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_with_a_checkpoint(straight, tmp_path, number):
    rows = []

    class Interrupting(torch.optim.Adam):
        def step(self, *args, **kwargs):
            rows.append(1)
            if len(rows) == 7:
                os.kill(os.getpid(), number)
            return super().step(*args, **kwargs)

    handler = signal.getsignal(number)
    stopped = train(noisy_flow, tmp_path, save_every=1000, given={"optimizer": Interrupting})
    assert (stopped.step, stopped.stopped_by) == (8, number)  # it is noticed within the next step
    assert signal.getsignal(number) is handler
    assert found(tmp_path) == ([8], [])
    assert train(noisy_flow, tmp_path).step == 30
    assert losses(tmp_path) == losses(straight)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "cut short": (cut, "training.pt", "training.pt has .* bytes, wanted .*: it is cut short"),
    "one bit": (flip, "model.safetensors", "model.safetensors does not have the SHA-256 of its manifest"),
    "missing": (os.remove, "ema.safetensors", "ema.safetensors cannot be read: No such file"),
    "no manifest": (os.remove, "manifest.json", "no manifest.json that can be read"),
    "half a manifest": (cut, "manifest.json", "no manifest.json that can be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_used(straight, tmp_path, kind, capsys):
    damage, file, reason = DAMAGE[kind]
    train(noisy_flow, tmp_path, steps=6)
    damage(tmp_path / "checkpoints" / "step-000000006" / file)
    steps, refused = found(tmp_path)
    assert steps == [4]
    assert len(refused) == 1
    train(noisy_flow, tmp_path, steps=8)
    told = capsys.readouterr().out
    assert "going on from step 4" in told
    assert re.search(f"passed over: step-000000006: {reason}", told)
    assert found(tmp_path) == ([8, 6], []), "the damaged one was written anew"
    assert {step: loss for step, loss in losses(straight).items() if step <= 8} == losses(tmp_path)


def test_of_another_model_is_refused_and_nothing_is_overwritten(tmp_path):
    train(noisy_flow, tmp_path, steps=4)
    before = found(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint to go on from; step-000000004/model lacks transform"):
        train(exact_flow, tmp_path, steps=8)
    assert found(tmp_path) == before


def test_of_another_format_is_refused(tmp_path):
    train(noisy_flow, tmp_path, steps=2)
    manifest = tmp_path / "checkpoints" / "step-000000002" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="step-000000002: format 99, wanted 1"):
        train(noisy_flow, tmp_path, steps=4)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("bomb",))


def test_nothing_is_executed_on_reading(tmp_path, monkeypatch):
    """Not even if the hashes fit."""
    monkeypatch.chdir(tmp_path)
    train(noisy_flow, tmp_path, steps=2)
    folder = tmp_path / "checkpoints" / "step-000000002"
    torch.save({"state": Bomb()}, folder / "training.pt")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["training.pt"] = {
        "size": (folder / "training.pt").stat().st_size,
        "sha256": checkpoints._digest(folder / "training.pt"),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="training.pt cannot be read"):
        train(noisy_flow, tmp_path, steps=4)
    assert not (tmp_path / "bomb").exists()
    with pytest.raises(pickle.UnpicklingError, match="has no place in a table of contents"):
        checkpoints._Unpickler(__import__("io").BytesIO(pickle.dumps(Bomb()))).load()


@pytest.mark.parametrize("calls", range(4))
def test_a_full_disk_ends_it_and_leaves_the_checkpoint_before(straight, tmp_path, monkeypatch, calls):
    """At each of the places that write one: three files and the manifest."""
    train(noisy_flow, tmp_path, steps=4)
    write, count = checkpoints._write, []

    def full(path, content):
        if path.name.startswith("."):
            return write(path, content)
        count.append(path)
        if len(count) == 4 + calls + 1:  # the checkpoint of step 6 goes well, that of step 8 does not
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(checkpoints, "_write", full)
    with pytest.raises(CheckpointError, match="step-000000008 was not written: .*No space left on device"):
        train(noisy_flow, tmp_path)
    monkeypatch.undo()
    assert found(tmp_path) == ([6, 4], [])
    assert not list((tmp_path / "checkpoints").glob("*.partial")), "half a checkpoint takes up the disk"
    train(noisy_flow, tmp_path)
    assert losses(tmp_path) == losses(straight)


def small_disk(out, limit):
    """Like a full disk, by the kernel: no file may be larger."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(CheckpointError, match="step-000000002 was not written"):
        train(noisy_flow, out)


@pytest.mark.parametrize("limit", [1000, 6000])
def test_a_write_that_the_kernel_breaks_off_is_told(tmp_path, limit):
    workers.run(small_disk, tmp_path / "run", limit, folder=tmp_path)
    assert found(tmp_path / "run") == ([], [])
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_damaged_one_does_not_count_among_those_kept(tmp_path):
    train(noisy_flow, tmp_path, steps=4)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step-000000004", folder / "step-000000099")
    cut(folder / "step-000000099" / "training.pt")
    train(noisy_flow, tmp_path, steps=8)
    steps, refused = found(tmp_path)
    assert (steps, len(refused)) == ([8, 6], 1)


def test_a_log_that_cannot_be_written_ends_it_with_a_checkpoint(straight, tmp_path, monkeypatch):
    from flowkit.train.records import Records

    row = Records.row

    def full(self, values):
        if values["step"] == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        row(self, values)

    monkeypatch.setattr(Records, "row", full)
    with pytest.raises(OSError, match="No space left"):
        train(noisy_flow, tmp_path)
    monkeypatch.undo()
    assert found(tmp_path)[0][0] == 5
    train(noisy_flow, tmp_path)
    assert losses(tmp_path) == losses(straight), "the row that was not written comes from the checkpoint"


def test_the_last_and_the_best_are_kept(tmp_path, monkeypatch):
    scores = {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.1, 10: 2.2, 12: 2.25}
    given = iter(scores.values())

    def scored(flow, images, **options):
        score = next(given)
        tight = score - 1 if options["draws"] > 1 else score  # by many samples, which must not make it the best
        return replace(evaluate(flow, images, **options), bits_per_dim=tight, bits_per_dim_single=score)

    monkeypatch.setattr("flowkit.train.loop.evaluate", scored)
    trained = train(noisy_flow, tmp_path, steps=12, score_every=2, keep=2, final_draws=2)
    assert trained.evaluation.bits_per_dim == 1.25
    assert found(tmp_path) == ([12, 10, 4], [])
    rows = read_log(tmp_path / "log.jsonl")
    assert {row["step"]: row["held_out_bits_per_dim"] for row in rows if "held_out_bits_per_dim" in row} == scores | {
        12: 1.25
    }


def test_a_score_comes_with_a_checkpoint(tmp_path):
    train(noisy_flow, tmp_path, steps=7, score_every=3, save_every=100, keep=5)
    assert found(tmp_path)[0] == [7, 6, 3]


def test_a_signal_while_it_scores_ends_it_at_once_and_it_scores_when_it_goes_on(tmp_path, monkeypatch):
    whole = train(noisy_flow, tmp_path / "whole", steps=4)

    def interrupted(flow, images, **options):
        assert found(tmp_path / "run")[0][0] == 4, "what is scored is kept"
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr("flowkit.train.loop.evaluate", interrupted)
    began = time.monotonic()
    trained = train(noisy_flow, tmp_path / "run", steps=4)
    assert time.monotonic() - began < 30
    assert (trained.stopped_by, trained.step, trained.evaluation) == (signal.SIGTERM, 4, None)
    monkeypatch.undo()
    again = train(noisy_flow, tmp_path / "run", steps=4)
    assert replace(again.evaluation, seconds=0) == replace(whole.evaluation, seconds=0)


def test_a_signal_shortly_before_it_scores_is_not_forgotten(tmp_path, monkeypatch):
    save = checkpoints.save

    def signalled(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return save(*arguments, **options)

    monkeypatch.setattr("flowkit.train.loop.checkpoints.save", signalled)
    monkeypatch.setattr("flowkit.train.loop.evaluate", lambda *_, **__: pytest.fail("it scores all the same"))
    trained = train(noisy_flow, tmp_path, steps=4, save_every=100)
    assert (trained.stopped_by, trained.step) == (signal.SIGTERM, 4)
    assert found(tmp_path)[0] == [4]


def test_any_failure_leaves_the_steps_that_are_done(tmp_path, straight):
    class Damaged(torch.utils.data.Dataset):
        seen = 0

        def __len__(self):
            return 200

        def __getitem__(self, index):
            Damaged.seen += 1
            if Damaged.seen > 300:
                raise OSError("image 7 is damaged")
            return integers()[index]

    with pytest.raises(OSError, match="image 7 is damaged"):
        fit(
            noisy_flow(),
            Damaged(),
            workers.settings(save_every=1000),
            out=tmp_path,
            held_out=integers()[:37],
            progress=False,
        )
    (last,) = found(tmp_path)[0]
    assert last > 5
    train(noisy_flow, tmp_path)
    assert losses(tmp_path) == losses(straight), "random numbers of the step that failed are drawn again"


def test_lost_weights_do_not_take_the_place_of_good_ones(tmp_path):
    class Poisoned(torch.optim.Adam):
        done = 0

        def step(self, closure=None):
            super().step(closure)
            Poisoned.done += 1
            if Poisoned.done == 6:
                with torch.no_grad():
                    self.param_groups[0]["params"][0].fill_(float("nan"))

    given = {"optimizer": lambda parameters: Poisoned(parameters, lr=1e-2)}
    with pytest.raises(fk.DomainError, match=r"after step 6 .* is not finite; no checkpoint was written"):
        train(noisy_flow, tmp_path, nonfinite="skip", given=given)
    assert found(tmp_path)[0] == [4, 2]


def test_skipping_gives_up(tmp_path):
    x = torch.full((64, 6), float("nan"))
    with pytest.raises(fk.DomainError, match="step 99: the loss or its gradient is not finite"):
        quick = workers.settings(steps=500, nonfinite="skip", init_batch=0, save_every=50)
        fit(exact_flow(), x, quick, out=tmp_path, progress=False)
    assert found(tmp_path)[0][0] == 99


def test_two_runs_do_not_share_a_folder(tmp_path):
    process = start(partial(train, steps=100_000), noisy_flow, tmp_path, report=tmp_path / "error.txt")
    try:
        while not (tmp_path / "checkpoints").exists():
            assert process.is_alive()
            time.sleep(0.01)
        with pytest.raises(CheckpointError, match="another process is training there"):
            train(noisy_flow, tmp_path)
    finally:
        process.kill()
        process.join()
    assert train(noisy_flow, tmp_path, steps=4).step >= 4, "a killed run keeps nobody out"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"format": 1}', "lacks step, sharded, processes, of, files"),
        (
            '{"format": 1, "step": 4, "sharded": false, "processes": 1, "of": {}, "files": {}}',
            "lacks training.pt, model",
        ),
        ('{"format": 1, "step": 4, "sharded": false, "processes": 1, "of": {}, "files": 3}', "lacks files"),
    ],
)
def test_a_manifest_that_is_none_is_passed_over(tmp_path, text, reason):
    train(noisy_flow, tmp_path, steps=4)
    (tmp_path / "checkpoints" / "step-000000004" / "manifest.json").write_text(text)
    steps, (refused,) = found(tmp_path)
    assert steps == [2] and reason in refused
    assert train(noisy_flow, tmp_path, steps=6).step == 6


@pytest.mark.parametrize("line", [b"\xff\xfe\n", b"3\n", b'{"loss": 2.0}\n'])
def test_a_damaged_log_stops_no_run(tmp_path, straight, line):
    train(noisy_flow, tmp_path, steps=8)
    log = tmp_path / "log.jsonl"
    log.write_bytes(log.read_bytes() + line)
    train(noisy_flow, tmp_path)
    assert losses(tmp_path) == losses(straight)


def test_a_run_goes_on_with_its_images_and_its_optimizer(tmp_path):
    train(noisy_flow, tmp_path, steps=4)
    with pytest.raises(CheckpointError, match="trained on 200 images, and is given 100"):
        fit(noisy_flow(), integers(100), workers.settings(), out=tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="the optimizer is Adam, and that of this run SGD"):
        train(noisy_flow, tmp_path, given={"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)})


def test_a_finished_run_is_scored_anew_for_other_draws_or_images(tmp_path):
    first = train(noisy_flow, tmp_path, steps=4)
    assert train(noisy_flow, tmp_path, steps=4).evaluation == first.evaluation, "not scored again"
    assert train(noisy_flow, tmp_path, steps=4, final_draws=3).evaluation.draws == 3
    other = train(noisy_flow, tmp_path, steps=4, given={"held_out": integers()[37:74]}).evaluation
    assert other.data_sha256 != first.evaluation.data_sha256 and other.draws == 1


def test_a_log_forgets_what_comes_again(tmp_path):
    train(noisy_flow, tmp_path, steps=4)
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    assert [row["step"] for row in read_log(log)] == [1, 2, 3, 4, 5]
    train(noisy_flow, tmp_path, steps=6)
    assert [row["step"] for row in read_log(log)] == [1, 2, 3, 4, 5, 6]
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 7
