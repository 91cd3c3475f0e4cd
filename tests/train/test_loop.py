"""The loop: what is minimized, clipped, averaged, scheduled, skipped, logged."""

import csv
import json
import math
from dataclasses import replace

import pytest
import torch

import flowkit as fk
from flowkit.train import Settings, data, evaluate, fit, read_log, schedules
from flowkit.train.config import available, recipe
from tests.train.workers import exact_flow, integers, noisy_flow, vectors


class Line(fk.Distribution):
    """log_prob = slope * sum(x): its gradient is the same at every step."""

    event_shape = torch.Size((2,))

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(0.5))

    def log_prob(self, x, context=None, *, generator=None):
        return self.slope * x.sum(-1)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def quiet(flow, images, *, given=None, **settings):
    made = {"steps": 1, "batch": 10, "rate": 0.01, "warmup": 0, "init_batch": 100, **settings}
    return fit(flow, images, Settings(**made), progress=False, **(given or {}))


def test_the_average_has_its_closed_form():
    """The values before the first step count as its first; the gradient is -1 at every step."""
    trained = quiet(Line(), torch.full((20, 2), 0.5), steps=7, rate=0.1, clip=0.0, ema=0.9, given={"optimizer": sgd})
    expected = slope = 0.5
    for _ in range(7):
        slope += 0.1
        expected = 0.9 * expected + 0.1 * slope
    assert trained.flow.slope.item() == pytest.approx(expected, abs=1e-6)


def test_the_average_starts_at_the_initialized_values():
    flow = exact_flow()
    start = flow.state_dict()["transform.one.norm.gain"].clone()
    trained = quiet(flow, vectors(), rate=0.0)
    average, raw = trained.flow.state_dict(), flow.state_dict()
    assert all(torch.equal(average[key], raw[key]) for key in raw)
    assert not torch.equal(raw["transform.one.norm.gain"], start), "nothing was initialized"


def test_the_clip_is_on_nats_per_image():
    """The step of plain gradient descent at rate 1 is as long as the clip, and the logged norm is that of nats."""
    x = vectors(100)
    flow = exact_flow()
    fk.initialize(flow, x)
    start = torch.nn.utils.parameters_to_vector(flow.parameters()).detach().clone()
    order = data.order(100, 0, 10, seed=0)
    loss = -flow(x[order]).mean()
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(flow.parameters()))]).norm().item()
    assert norm > 0.1
    trained = quiet(flow, x, init_batch=0, rate=1.0, clip=0.05, ema=0.0, given={"optimizer": sgd})
    moved = torch.nn.utils.parameters_to_vector(trained.flow.parameters()).detach() - start
    assert moved.norm().item() == pytest.approx(0.05, rel=1e-4)


def test_the_log_says_nats_and_bits(tmp_path):
    x = vectors(100)
    flow = exact_flow()
    fk.initialize(flow, x)
    loss = -flow(x[data.order(100, 0, 10, seed=0)]).mean()
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(flow.parameters()))]).norm().item()
    quiet(flow, x, init_batch=0, log_every=1, given={"out": tmp_path, "held_out": x[:30]})
    (row,) = read_log(tmp_path / "log.jsonl")
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert row["bits_per_dim"] == pytest.approx(loss.item() / (6 * math.log(2)), rel=1e-6)
    assert row["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    (line,) = csv.DictReader((tmp_path / "log.csv").open())
    assert {key: json.loads(value) for key, value in line.items()} == row


def test_accumulated_parts_give_the_same_gradient():
    whole, parts = exact_flow(), exact_flow()
    quiet(whole, vectors(), batch=24, steps=5, ema=0.0)
    quiet(parts, vectors(), batch=24, steps=5, ema=0.0, accumulate=3)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def small():
    """A Flow++ of two couplings."""
    sizes = {"filters": 8, "blocks": 1, "dropout": 0.0, "layout": (("columns", 1),), "dequant_couplings": 1}
    return fk.zoo.flowpp(config="digits", **sizes)


@pytest.mark.parametrize("options", [{"precision": "bfloat16"}, {"channels_last": True}, {"workers": 1}])
def test_options_that_change_the_arithmetic_alone(options):
    plain, other = small(), small()
    other.load_state_dict(plain.state_dict())
    images, _ = data.digits()
    settings = {"steps": 2, "batch": 8, "init_batch": 64, "ema": 0.0, "rate": 1e-4}
    one = quiet(plain, images, given={"held_out": images[:20]}, **settings)
    two = quiet(other, images, given={"held_out": images[:20]}, **settings, **options)
    assert two.evaluation.bits_per_dim == pytest.approx(one.evaluation.bits_per_dim, abs=0.02)
    step = other.transform["columns1"][1]
    assert step.norm.gain.is_contiguous()
    assert step.couple.conditioner.exit.weight.is_contiguous() is ("channels_last" not in options)
    if "precision" in options:
        assert two.evaluation.bits_per_dim != one.evaluation.bits_per_dim


@pytest.mark.thorough
def test_compile_takes_the_same_steps():
    plain, compiled = exact_flow(), exact_flow()
    quiet(plain, vectors(), steps=5)
    quiet(compiled, vectors(), steps=5, compile=True)
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def with_nan():
    x = vectors(100)
    x[data.order(100, 0, 30, seed=0)[25], 3] = math.nan  # seen at the third step of ten
    return x


def test_a_loss_that_is_not_finite_stops_with_the_layer_named(tmp_path):
    with pytest.raises(
        fk.DomainError, match=r"step 2: the loss .* not finite: transform.one.norm: x is nan in example"
    ):
        quiet(exact_flow(), with_nan(), steps=5, init_batch=0, given={"out": tmp_path})
    assert (tmp_path / "checkpoints" / "step-000000002").is_dir(), "what was reached is lost"


def test_a_gradient_that_is_not_finite_stops_with_the_parameter_named():
    class Root(Line):
        def log_prob(self, x, context=None, *, generator=None):
            return (self.slope - 0.5).abs().sqrt() * x.sum(-1)

    with pytest.raises(fk.DomainError, match="the gradient of slope is not finite"):
        quiet(Root(), torch.ones(20, 2))


def test_or_the_step_is_skipped_and_counted(tmp_path):
    flow = exact_flow()
    x = with_nan()
    trained = quiet(flow, x, steps=5, init_batch=0, nonfinite="skip", log_every=1, given={"out": tmp_path})
    assert (trained.step, trained.skipped) == (5, 1)
    assert [row["skipped"] for row in read_log(tmp_path / "log.jsonl")] == [0, 0, 1, 1, 1]
    assert all(parameter.isfinite().all() for parameter in flow.parameters())
    assert "loss" not in json.loads((tmp_path / "log.jsonl").read_text().splitlines()[2])


def test_a_step_that_is_skipped_leaves_no_trace_in_running_averages():
    flow = fk.Flow(fk.Chain(norm=fk.BatchNorm((6,))), fk.Normal((6,)))
    quiet(flow, with_nan(), steps=5, init_batch=0, nonfinite="skip")
    assert flow.transform["norm"].running_mean.isfinite().all()


def test_the_evaluation_is_that_of_the_averaged_weights():
    x = integers(37)
    trained = quiet(noisy_flow(), integers(), steps=3, final_draws=3, given={"held_out": x})
    wanted = evaluate(trained.flow, x, data_name="unnamed", split="held-out", draws=3, steps=3, ema=0.999)
    assert replace(trained.evaluation, seconds=0) == replace(wanted, seconds=0)


def test_one_held_out_image_has_no_standard_error():
    with pytest.raises(ValueError, match="held_out has 1 images, wanted at least 2"):
        quiet(noisy_flow(), integers(), given={"held_out": integers(1)})


def test_a_held_out_score_that_is_none_stops_with_a_checkpoint(tmp_path):
    x = vectors(20)
    x[7] = math.nan
    with pytest.raises(ValueError, match="image 7 has a log-probability of nan"):
        quiet(exact_flow(), vectors(), steps=2, given={"held_out": x, "out": tmp_path})
    assert (tmp_path / "checkpoints" / "step-000000002").is_dir()


def test_what_is_trained_already_keeps_what_it_set_from_data():
    flow = noisy_flow()
    fk.initialize(flow, integers())
    gain = flow.transform.one.norm.gain.clone()
    other = integers() // 4  # on which the norms would set themselves otherwise
    trained = quiet(flow, other, steps=1, rate=0.0)
    assert torch.equal(trained.flow.transform.one.norm.gain, gain)
    again = quiet(trained.flow, other, steps=1, rate=0.0)
    assert torch.equal(again.flow.transform.one.norm.gain, gain)
    fresh = quiet(noisy_flow(), other, steps=1, rate=0.0)
    assert not torch.equal(fresh.flow.transform.one.norm.gain, gain)


def test_pictures_are_promised_only_of_images(tmp_path):
    with pytest.raises(ValueError, match=r"sample_every: .* this is a flow of \(6,\)"):
        quiet(exact_flow(), vectors(), steps=2, sample_every=1, given={"out": tmp_path})


def test_there_are_images():
    with pytest.raises(ValueError, match="there are no images"):
        quiet(exact_flow(), vectors(0))


def test_a_finished_run_is_scored_when_images_come(tmp_path):
    quiet(exact_flow(), vectors(), steps=2, given={"out": tmp_path})
    first = quiet(exact_flow(), vectors(), steps=2, given={"out": tmp_path, "held_out": vectors(20)})
    again = quiet(exact_flow(), vectors(), steps=2, given={"out": tmp_path, "held_out": vectors(20)})
    assert first.evaluation == again.evaluation and first.evaluation.steps == 2


def test_a_warmed_up_average_has_its_closed_form():
    """Update n has a decay of (1 + n) / (10 + n), until that exceeds the constant one."""
    settings = {"steps": 30, "rate": 0.1, "clip": 0.0, "ema": 0.6, "ema_warmup": True}
    trained = quiet(Line(), torch.full((20, 2), 0.5), **settings, given={"optimizer": sgd})
    expected = slope = 0.5
    for n in range(1, 31):
        slope += 0.1
        decay = min(0.6, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * slope
    assert trained.flow.slope.item() == pytest.approx(expected, abs=1e-5)


def test_a_conditional_flow_gets_its_context():
    net = fk.nets.MLP((3,), (3, 2), hidden=(8,), context=2)
    flow = fk.Flow(fk.Chain(fk.AffineCoupling(net, dim=-1)), fk.Normal((6,)), context_ndim=1)
    pairs = torch.utils.data.TensorDataset(vectors(), torch.randn(200, 2))
    assert quiet(flow, pairs, steps=3, given={"held_out": pairs}).step == 3
    with pytest.raises(ValueError, match="conditional, but the images come without a context"):
        quiet(flow, vectors())


def test_pictures_and_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    images, _ = data.digits()
    quiet(small(), images, sample_every=1, samples=4, tensorboard=True, given={"out": tmp_path, "levels": 17})
    for name in ("samples-000000001.png", "curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").iterdir())


def test_the_bar_tells_bits_pace_and_time_left(capsys):
    fit(exact_flow(), vectors(), Settings(steps=3, batch=8, warmup=0), progress=True)
    bar = capsys.readouterr().err
    assert "3/3" in bar
    assert "bits/dim" in bar
    assert "images/s" in bar
    assert "<" in bar  # elapsed < left


WRONG = {
    "steps is 0, wanted at least 1": {"steps": 0},
    "steps is 1.5, wanted int": {"steps": 1.5},
    "steps is True, wanted int": {"steps": True},
    "ema is 1.5, wanted from 0 to 1": {"steps": 1, "ema": 1.5},
    "rate is nan, wanted from 0": {"steps": 1, "rate": math.nan},
    "schedule is 'steps', wanted one of constant, linear": {"steps": 1, "schedule": "steps"},
    "compile is 1, wanted bool": {"steps": 1, "compile": 1},
}


@pytest.mark.parametrize("reason", WRONG)
def test_wrong_settings_are_refused(reason):
    with pytest.raises(ValueError, match=reason.replace(".", r"\.")):
        Settings(**WRONG[reason])


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="batch is 10, wanted a multiple of 3"):
        quiet(exact_flow(), vectors(), accumulate=3)


@pytest.mark.parametrize("name", available())
def test_published_rates_are_sane_at_every_step(name):
    """Finite, at least 0, without jumps; the reference has gaps and a negative stretch."""
    settings = recipe(name).train
    rate = settings.rates()
    values = torch.tensor([rate(step) for step in range(300_001)], dtype=torch.float64)
    assert values.isfinite().all()
    assert values.min() >= 0
    assert values[0] == pytest.approx(settings.rate / settings.warmup)
    assert values.max() == pytest.approx(settings.rate)
    assert (values.diff().abs() <= settings.rate / min(settings.warmup, 2000) + 1e-12).all()


def test_the_published_decay_ends_where_the_reference_does():
    """ImageNet 32: 24,075 decays after step 50,000, to 3e-4."""
    rate = schedules.exponential(9.998e-4, hold=50_000, decay=0.99995, floor=3e-4)
    assert rate(50_000 + 24_074) > 3e-4
    assert rate(50_000 + 24_076) == 3e-4
