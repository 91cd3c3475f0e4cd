"""Several processes: the same steps as one, the same start, shards that save and load."""

import json
import math
import os
import resource
import signal

import pytest
import torch
from safetensors.torch import load_file

import flowkit as fk
from flowkit.train import CheckpointError, Settings, checkpoints, evaluate, fit, processes, read_log
from flowkit.train.data import order
from tests.train import workers
from tests.train.workers import exact_flow, noisy_flow, together, train, vectors

STEADY = {"steps": 50, "save_every": 25}


def rows(out, name="loss"):
    return {row["step"]: row[name] for row in read_log(out / "log.jsonl")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, with the whole batch."""
    out = tmp_path_factory.mktemp("alone")
    train(exact_flow, out, **STEADY)
    return out


def assert_close(one, other):
    assert one.keys() == other.keys()
    assert max(abs(one[step] - other[step]) for step in one) < 1e-5


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_take_the_steps_of_one_with_twice_the_batch(alone, tmp_path, how):
    together(part_of, tmp_path / "run", how, 1, folder=tmp_path)
    assert_close(rows(tmp_path / "run"), rows(alone))
    assert_close(rows(tmp_path / "run", "gradient_norm"), rows(alone, "gradient_norm"))
    end = json.loads((tmp_path / "run" / "end-0.json").read_text())
    assert end == json.loads((tmp_path / "run" / "end-1.json").read_text()), "the processes scored different models"
    assert end["bits"] == pytest.approx(
        evaluate(trained(alone, 50), vectors()[:37], data_name="x", split="x").bits_per_dim, abs=1e-5
    )
    # The checkpoint, sharded or not, read by one process that knows nothing of the others.
    found, read = next(checkpoints.newest(tmp_path / "run" / "checkpoints", print)), exact_flow(seed=3)
    found.average(read)
    average = trained(alone, 50).state_dict()
    assert read.state_dict().keys() == average.keys()
    for key, value in read.state_dict().items():
        torch.testing.assert_close(value, average[key], rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match="a checkpoint of another model"):
        found.average(noisy_flow())


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_accumulated_parts_of_two_processes_too(alone, tmp_path, how):
    together(part_of, tmp_path / "run", how, 2, {"steps": 10}, folder=tmp_path)
    assert_close(rows(tmp_path / "run"), {step: loss for step, loss in rows(alone).items() if step <= 10})


def part_of(out, how, accumulate, settings=None):
    """Every process builds another flow: the first one's start must win."""
    with processes("cpu") as ours:
        made = {**STEADY, "parallel": how, "accumulate": accumulate, **(settings or {})}
        done = train(exact_flow, out, seed=ours.rank, **made)
        samples = done.flow.sample((5,), generator=torch.Generator().manual_seed(0))
        again, _ = done.flow.sample_and_log_prob((5,), generator=torch.Generator().manual_seed(0))
        assert torch.equal(samples, again)
        latent = done.flow.to_latent(samples)
        torch.testing.assert_close(latent, torch.randn(5, 6, generator=torch.Generator().manual_seed(0)))
        (out / f"end-{ours.rank}.json").write_text(json.dumps({"bits": done.evaluation.bits_per_dim}))


def trained(out, step):
    flow = exact_flow().eval()
    flow.load_state_dict(load_file(out / "checkpoints" / f"step-{step:09d}" / "ema.safetensors"))
    return flow


def start_of(out):
    """Without a step that moves anything."""
    with processes("cpu") as ours:
        done = train(noisy_flow, None, seed=ours.rank, steps=1, rate=0.0)
        torch.save(done.flow.state_dict(), out / f"start-{ours.rank}.pt")


def test_all_processes_start_alike_to_the_bit(tmp_path):
    together(start_of, tmp_path, folder=tmp_path)
    first, second = (torch.load(tmp_path / f"start-{rank}.pt", weights_only=True) for rank in range(2))
    done = train(noisy_flow, None, seed=0, steps=1, rate=0.0).flow.state_dict()
    for key, value in done.items():
        assert torch.equal(first[key], second[key]), key
        assert torch.equal(first[key], value), f"{key}: two processes start otherwise than one"


def noisy_part(out, how, steps):
    train(noisy_flow, out, parallel=how, steps=steps, save_every=4)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_go_on_as_if_nothing_had_happened(tmp_path, how):
    """Dropout and dequantization draw other noise on each; the random states of both come back."""
    together(noisy_part, tmp_path / "straight", how, 12, folder=tmp_path)
    together(noisy_part, tmp_path / "run", how, 8, folder=tmp_path)
    together(noisy_part, tmp_path / "run", how, 12, folder=tmp_path)
    assert rows(tmp_path / "run") == rows(tmp_path / "straight")
    manifest = json.loads((tmp_path / "run" / "checkpoints" / "step-000000012" / "manifest.json").read_text())
    assert manifest["sharded"] is (how == "fsdp")
    assert manifest["processes"] == 2
    assert any(name.startswith("shards/__1") for name in manifest["files"]) is (how == "fsdp")


def other_model(out):
    with pytest.raises(CheckpointError, match="the shards lack model.transform.one.couple.conditioner.layers.2.weight"):
        train(exact_flow, out, parallel="fsdp", steps=8)


def test_shards_of_another_model_are_refused(tmp_path):
    together(noisy_part, tmp_path / "run", "fsdp", 4, folder=tmp_path)
    together(other_model, tmp_path / "run", folder=tmp_path)


def test_a_damaged_shard_is_passed_over(tmp_path, capsys):
    together(noisy_part, tmp_path / "run", "fsdp", 8, folder=tmp_path)
    shard = tmp_path / "run" / "checkpoints" / "step-000000008" / "shards" / "__1_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])
    refused = []
    assert [found.step for found in checkpoints.newest(tmp_path / "run" / "checkpoints", refused.append)] == [4]
    assert "shards/__1_0.distcp has" in refused[0]


def one_fails(out):
    """A process that cannot write must not leave the other waiting."""
    with processes("cpu") as ours, pytest.raises(CheckpointError, match="no room"):
        if ours.first:
            checkpoints._write_tensors = lambda *args: (_ for _ in ()).throw(OSError("no room"))
        train(noisy_flow, out, steps=4)


def test_if_one_process_fails_to_write_all_stop(tmp_path):
    together(one_fails, tmp_path / "run", folder=tmp_path)


def not_finite(out, how):
    """The NaN is in the share of the second process, in its second part."""
    x = vectors()
    x[order(200, 16, 16, seed=0)[13], 2] = math.nan
    with processes("cpu"), pytest.raises(fk.DomainError, match=r"step 1: .*: transform.one.norm: x is nan in example"):
        made = Settings(steps=5, batch=16, warmup=0, init_batch=0, accumulate=2, parallel=how)
        fit(exact_flow(), x, made, out=out, progress=False)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_all_processes_stop_at_a_loss_that_is_not_finite(tmp_path, how):
    together(not_finite, tmp_path / "run", how, folder=tmp_path)
    assert (tmp_path / "run" / "checkpoints" / "step-000000001").is_dir()


def signalled(out):
    """SIGTERM comes to the second process alone."""
    with processes("cpu") as ours:

        class Interrupting(torch.optim.Adam):
            def step(self, *args, **kwargs):
                if ours.rank == 1 and self.param_groups[0]["lr"] == 0.01:
                    os.kill(os.getpid(), signal.SIGTERM)
                return super().step(*args, **kwargs)

        stopped = train(exact_flow, out, warmup=4, given={"optimizer": Interrupting})
        assert (stopped.step, stopped.stopped_by) == (5, signal.SIGTERM)


def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path):
    together(signalled, tmp_path / "run", folder=tmp_path)
    assert (tmp_path / "run" / "checkpoints" / "step-000000005").is_dir()


def small_disk(out):
    """Like a full disk, by the kernel: no file may be larger."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    with pytest.raises(CheckpointError, match="step-000000002 was not written: .*File too large"):
        train(exact_flow, out, parallel="fsdp")


def test_shards_that_cannot_be_written_are_told_on_all(tmp_path):
    together(small_disk, tmp_path / "run", folder=tmp_path)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def unread():
    """A parameter that no loss reads, as attention-free nets of Flow++ have one."""
    flow = exact_flow()
    flow.transform.one.couple.conditioner.spare = torch.nn.Parameter(torch.zeros(3))
    return flow


def unread_part(out, how):
    train(lambda seed: unread(), out, parallel=how, steps=3)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_parameters_that_no_loss_reads_are_no_trouble(tmp_path, how):
    together(unread_part, tmp_path / "run", how, folder=tmp_path)
    together(unread_part, tmp_path / "run", how, folder=tmp_path)
    assert len(rows(tmp_path / "run")) == 3


def test_sharding_wants_a_launcher():
    with pytest.raises(ValueError, match="parallel is 'fsdp', which wants a launcher: torchrun"):
        train(exact_flow, None, parallel="fsdp", steps=1)


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(ValueError, match=f"^device is '{device}': .") as found, processes(device):
        pass
    assert "\n" not in str(found.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="^device is 'cuda': "), processes("cuda"):
        pass


def test_workers_find_a_failure(tmp_path):
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        workers.run(divmod, 1, 0, folder=tmp_path)
