"""The training loop. It is one function, `fit`, to be read from top to bottom, and copied where a run needs another."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from flowkit.debugging import validation
from flowkit.distribution import Distribution
from flowkit.errors import DomainError
from flowkit.initialization import initialize, is_initialized
from flowkit.train import checkpoints, schedules
from flowkit.train.checkpoints import CheckpointError
from flowkit.train.data.images import as_dataset, collate, fetch, inputs
from flowkit.train.data.shuffling import Order, order
from flowkit.train.evaluation import Evaluation, check_seed, data_sha256, evaluate
from flowkit.train.parallel import Processes, nets, processes, unsynchronized, whole
from flowkit.train.records import Records

__all__ = ["Settings", "Trained", "fit"]

_MOST_SKIPPED = 100  # steps in a row: what does not recover by then never does


@dataclass(frozen=True)
class Settings:
    """How to train. The defaults are those of Flow++ where the paper has one.

    Attributes:
        steps: optimizer steps in all.
        batch: images of a step, over all processes and accumulated parts.
        rate: peak of the learning rate.
        warmup: steps on which the rate rises linearly.
        schedule: what the rate does then: "constant", "linear" or "cosine" (to 0 at the last step), or "exponential".
        hold: steps before the schedule leaves the peak.
        decay: factor of each step of "exponential".
        floor: the rate at which a schedule stops falling.
        clip: largest norm of the gradient of the loss in nats per image; 0 for no clip.
        ema: decay of the moving average of the weights, which is scored, sampled from and kept.
        ema_warmup: whether the decay of update n is at most (1 + n) / (10 + n), so that the weights of the first steps
            are forgotten early: a constant decay leaves the initial ones a share of ema^steps.
        accumulate: parts that each process splits its share of a batch into.
        init_batch: images that the parts set themselves from before the first step, unless `flowkit.initialize`, an
            earlier `fit` or `flowkit.zoo` has set them; 0 after a `load_state_dict` of your own.
        seed: of the order of images, of noise and of dropout.
        nonfinite: at a loss or gradient that is not finite, "stop" with the layer named, or "skip" the step and count;
            a hundred of them in a row stop the run in any case.
        precision: "float32", or "bfloat16" for the nets by autocast; maps and log-terms stay in float32.
        channels_last: whether the nets' weights lie channels last, which is faster on most hardware.
        compile: whether to run `torch.compile` on the loss.
        parallel: how processes share the work: "ddp", or "fsdp" to shard weights too.
        device: "auto", or a device of torch.
        workers: processes that read data; 0 to read in this one.
        log_every: steps between rows of the log.
        score_every: steps between scores on held-out images, each with a checkpoint; 0 for one at the end alone.
        score_draws: importance samples of each held-out image in these scores.
        final_draws: the same at the end.
        sample_every: steps between pictures of samples; 0 for none.
        samples: images in such a picture.
        save_every: steps between checkpoints; one is written at the end in any case.
        keep: checkpoints to keep, besides the best by single samples.
        tensorboard: whether to write events for TensorBoard.

    Raises:
        ValueError: for a value out of its range, named.
    """

    steps: int
    batch: int = 64
    rate: float = 3e-4
    warmup: int = 2000
    schedule: Literal["constant", "linear", "cosine", "exponential"] = "constant"
    hold: int = 0
    decay: float = 0.99995
    floor: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    ema_warmup: bool = False
    accumulate: int = 1
    init_batch: int = 128
    seed: int = 0
    nonfinite: Literal["stop", "skip"] = "stop"
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    device: str = "auto"
    workers: int = 0
    log_every: int = 50
    score_every: int = 0
    score_draws: int = 1
    final_draws: int = 1
    sample_every: int = 0
    samples: int = 64
    save_every: int = 1000
    keep: int = 2
    tensorboard: bool = False

    def __post_init__(self) -> None:
        at_least = dict.fromkeys(("steps", "batch", "accumulate", "log_every", "score_draws", "final_draws"), 1)
        at_least |= dict.fromkeys(("samples", "save_every", "keep"), 1)
        at_least |= dict.fromkeys(("warmup", "hold", "init_batch", "workers", "score_every", "sample_every", "seed"), 0)
        kinds = {"int": int, "float": (int, float), "bool": bool, "str": str}
        for field in fields(self):
            value, kind = getattr(self, field.name), kinds.get(str(field.type), str)
            if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):  # type: ignore[arg-type]
                raise ValueError(f"{field.name} is {value!r}, wanted {'a text' if kind is str else field.type}")
            if field.name in at_least and value < at_least[field.name]:
                raise ValueError(f"{field.name} is {value}, wanted at least {at_least[field.name]}")
        allowed = {"schedule": schedules.SCHEDULES, "nonfinite": ("stop", "skip"), "parallel": ("ddp", "fsdp")}
        allowed |= {"precision": ("float32", "bfloat16")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}, wanted one of {', '.join(values)}")
        ranges = {"rate": (0, math.inf), "decay": (0, 1), "floor": (0, math.inf), "clip": (0, math.inf), "ema": (0, 1)}
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted from {low} to {high}")
        check_seed("seed", self.seed)

    def rates(self) -> schedules.Schedule:
        """The learning rate as a function of the step.

        >>> rates = Settings(steps=100, rate=1.0, warmup=10, schedule="linear", hold=50).rates()
        >>> rates(0), rates(9), rates(49), rates(75)
        (0.1, 1.0, 1.0, 0.5)
        """
        made: Mapping[str, Callable[[], schedules.Schedule]] = {
            "constant": lambda: schedules.constant(self.rate),
            "linear": lambda: schedules.linear(self.rate, steps=self.steps, hold=self.hold, floor=self.floor),
            "cosine": lambda: schedules.cosine(self.rate, steps=self.steps, hold=self.hold, floor=self.floor),
            "exponential": lambda: schedules.exponential(self.rate, hold=self.hold, decay=self.decay, floor=self.floor),
        }
        return schedules.warmed_up(made[self.schedule](), self.warmup)


@dataclass(frozen=True)
class Trained:
    """What `fit` gives back.

    Attributes:
        flow: the moving average of the weights, in eval mode.
        step: how many steps are done.
        stopped_by: the signal that ended it early; None if it ran to the end.
        evaluation: of the held-out images, the last one; None without any.
        seconds: of training, over all stretches.
        skipped: steps left out because their loss was not finite.
    """

    flow: Distribution
    step: int
    stopped_by: signal.Signals | None
    evaluation: Evaluation | None
    seconds: float
    skipped: int


def fit(
    flow: Distribution,
    images: Tensor | Dataset[Any],
    settings: Settings,
    *,
    held_out: Tensor | Dataset[Any] | None = None,
    out: str | Path | None = None,
    levels: int = 256,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = torch.optim.Adam,
    facts: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Trained:
    """Train `flow` on `images`; alone, or as one of the processes that `torchrun` starts.

    The same call with the same `out` goes on from the newest checkpoint there that is whole. On one CPU process it
    then takes the very steps that it would have taken without the interruption, to the bit. SIGTERM and Ctrl-C end it
    with a checkpoint. It seeds the global generators.

    Args:
        flow: a flow as built, on any device; it is trained in place. A part that sets itself from data does so here.
        images: what to train on: a tensor, or a dataset with a length. Pairs of an image and a context if the flow
            is conditional; of a flow that is not, the image of a pair is taken.
        settings: how.
        held_out: images to score on, at least 2.
        out: folder for checkpoints, logs and pictures; nothing is written without one.
        levels: what counts as white in pictures is levels - 1.
        optimizer: makes the optimizer of the parameters; its rate is set at every step.
        facts: what the checkpoints say they are of, in JSON.
        progress: whether to show a bar.

    Returns:
        The averaged flow, and how it went.

    Raises:
        DomainError: at a loss or gradient that is not finite, naming the layer, after a checkpoint.
        CheckpointError: if there are checkpoints and none can be gone on from, or if one cannot be written; if another
            process trains in `out`, or the run there had other images.
        ImportError: if pictures are asked for without matplotlib, or a bar or events without what draws them.
        ValueError: if batch and processes do not fit, or a held-out image has no finite score.
        KeyboardInterrupt: at a second Ctrl-C, which does not wait for the end of the step.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, appendix B, https://arxiv.org/abs/1902.00275.

    >>> import flowkit as fk
    >>> flow = fk.Flow(fk.Chain(fk.UniformDequantizer(levels=4), fk.ActNorm((3,))), fk.Normal((3,)))
    >>> images = torch.randint(4, (100, 3))
    >>> trained = fit(flow, images, Settings(steps=20, batch=10, rate=0.01, warmup=0), progress=False)
    >>> trained.step, trained.flow.training
    (20, False)
    """
    images = as_dataset(images)
    held_out = None if held_out is None else as_dataset(held_out, "held_out")
    if held_out is not None and len(held_out) < 2:  # type: ignore[arg-type]
        raise ValueError(f"fit: held_out has {len(held_out)} images, wanted at least 2")  # type: ignore[arg-type]
    out = None if out is None else Path(out)
    rates = settings.rates()
    with ExitStack() as stack:
        ours = stack.enter_context(processes(settings.device))
        signals = stack.enter_context(_signals())
        torch.manual_seed(settings.seed + 1_000_003 * ours.rank)
        flow.to(ours.device).train()
        if settings.channels_last:
            _channels_last(flow)

        # Parts set themselves from data before anything wraps the flow. Every process looks at the same images with
        # the same noise; the first one's values then overwrite the others', so that all agree to the bit.
        count = len(images)  # type: ignore[arg-type]
        if count < 1:
            raise ValueError("fit: there are no images to train on")
        if out is not None and ours.first:
            stack.enter_context(_alone(out))
        chosen = order(count, 0, min(max(settings.init_batch, 2), count), seed=settings.seed)
        first = inputs(fetch(images, chosen.tolist()), flow, ours.device)
        resumes = any(ours.gather(ours.first and out is not None and checkpoints.tidy(out / "checkpoints")))
        if settings.sample_every and out is not None:
            _check_pictures(flow, conditional=len(first) > 1)
        if settings.init_batch and not resumes and not is_initialized(flow):
            with torch.random.fork_rng([ours.device] if ours.device.type == "cuda" else []):
                torch.manual_seed(settings.seed)  # for dropout
                initialize(flow, *first, generator=torch.Generator(ours.device).manual_seed(settings.seed))
        ours.broadcast(flow)

        # The moving average starts at these values, and counts them as its first.
        averaged = AveragedModel(flow, multi_avg_fn=_average(settings))
        averaged.n_averaged.fill_(1)
        shadow: Any = averaged.module.eval()
        model = ours.wrap(flow, settings.parallel, [value[:2] for value in first])
        if settings.parallel == "fsdp":
            ours.wrap(shadow, "fsdp", [])
        adam = optimizer(flow.parameters())
        if settings.compile:
            # On a CPU, noise that the compiler makes is slow, and so is the loop that it is made in.
            model.compile(options={"fallback_random": ours.device.type == "cpu"})

        state: dict[str, Any] = {"step": 0, "seen": 0, "skipped": 0, "seconds": 0.0, "losses": 0.0, "norms": 0.0}
        state |= {"counted": 0, "evaluation": None, "row": None}
        of = {"settings": asdict(settings), "images": count, "optimizer": _kinds(adam), **(facts or {})}
        if resumes:
            state |= _resume(out / "checkpoints", flow, averaged, adam, of, ours)  # type: ignore[operator]
        loader = _loader(images, settings, ours, start=state["seen"])
        if ours.first and out is not None:
            out.mkdir(parents=True, exist_ok=True)
        records = Records(
            out,
            start=state["step"],
            last=state["row"],
            steps=settings.steps,
            tensorboard=settings.tensorboard,
            progress=progress,
            writes=ours.first,
        )
        stack.callback(records.close)
        dims = math.prod(first[0].shape[first[0].ndim - flow.event_ndim :])
        autocast = torch.autocast(ours.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")

        def scored() -> bool:
            return state["evaluation"] is not None and state["evaluation"]["steps"] == state["step"]

        def scored_at_the_end() -> bool:
            """Whether the last score is that of the end of this run: of these images, with as many draws."""
            if held_out is None or not scored() or state["evaluation"]["draws"] != settings.final_draws:
                return False
            return state["evaluation"]["data_sha256"] == data_sha256(held_out, len(first) > 1)[0]

        def save() -> None:
            if out is not None:
                _check_weights(flow, shadow, state["step"], out, ours)
                checkpoints.save(
                    out / "checkpoints",
                    state["step"],
                    flow,
                    averaged.module,
                    adam,
                    {**state, "averages": int(averaged.n_averaged)},
                    of,
                    ours,
                    keep=settings.keep,
                    # Unlike draws do not compare, and there may be more of them at the end.
                    score=state["evaluation"]["bits_per_dim_single"] if scored() else None,
                )

        def score(draws: int) -> tuple[float, float]:
            about: dict[str, Any] = {"data_name": "unnamed", "split": "held-out", "draws": draws}
            with signals.at_once():
                card = evaluate(shadow, held_out, **about, steps=state["step"], ema=settings.ema, ours=ours)  # type: ignore[arg-type]
            state["evaluation"] = asdict(card)
            return card.bits_per_dim, card.standard_error

        saved_at, stopped_by = state["step"] if resumes else None, None
        clock, in_a_row = time.monotonic(), 0
        before: _Before | None = None  # while a step is under way
        try:
            while state["step"] < settings.steps:
                for group in adam.param_groups:
                    group["lr"] = rates(state["step"])
                before = _Before(flow, ours.device)
                batches = [inputs(next(loader), flow, ours.device) for _ in range(settings.accumulate)]
                loss = torch.zeros((), device=ours.device)
                for part, batch in enumerate(batches):
                    with unsynchronized(model, part < settings.accumulate - 1):
                        with autocast:
                            # Per image, as the paper's clip wants it.
                            nats = -model(*batch).mean() / settings.accumulate
                        nats.backward()
                    loss += nats.detach()
                norm = whole(nn.utils.clip_grad_norm_(flow.parameters(), settings.clip or math.inf))

                # What all processes must agree on: the loss, whether the step counts, whether to go on.
                total, stop = ours.total([loss.item(), float(signals.came is not None)])
                loss_of_all, finite = total / ours.world, math.isfinite(total) and bool(norm.isfinite())
                if finite:
                    adam.step()
                    averaged.update_parameters(flow)
                    state["losses"] += loss_of_all
                    state["norms"] += norm.item()
                    state["counted"] += 1
                    in_a_row = 0
                else:
                    before.restore()
                    in_a_row += 1
                    if settings.nonfinite == "stop" or in_a_row == _MOST_SKIPPED:
                        with suppress(DomainError):  # of the weights; the layer tells more
                            save()
                        saved_at = state["step"]
                        raise DomainError(_what_is_not_finite(flow, batches, autocast, before, state["step"], ours))
                adam.zero_grad()
                state["skipped"] += not finite
                state["step"] += 1
                state["seen"] += settings.batch
                state["seconds"] += time.monotonic() - clock
                pace, before = settings.batch / max(time.monotonic() - clock, 1e-9), None

                done, end = state["step"], state["step"] == settings.steps
                records.step(loss_of_all / (dims * math.log(2)), pace)
                row: dict[str, Any] = {}
                if done % settings.log_every == 0 or end:
                    if state["counted"]:
                        nats_of_image = state["losses"] / state["counted"]
                        row |= {"loss": nats_of_image, "bits_per_dim": nats_of_image / (dims * math.log(2))}
                        row |= {"gradient_norm": state["norms"] / state["counted"]}
                    row |= {"rate": rates(done - 1), "skipped": state["skipped"]}
                    row |= {"images_per_second": round(pace, 1), "seconds": round(state["seconds"], 1)}
                    state |= {"losses": 0.0, "norms": 0.0, "counted": 0, "row": {"step": done, **row}}
                scores = held_out is not None and bool(
                    end or (settings.score_every and done % settings.score_every == 0)
                )
                if scores and not stop:
                    save()  # scoring may take long, and a signal ends it at once
                    saved_at = done
                    draws = settings.final_draws if end else settings.score_draws
                    mean, error = score(draws)
                    row |= {"held_out_bits_per_dim": mean, "held_out_standard_error": error}
                    state["row"] = {"step": done, **row}
                    records.say(f"step {done}: {mean:.4f} ± {error:.4f} bits/dim held out, {draws} draws")
                if row:
                    records.row({"step": done, **row})
                if settings.sample_every and (done % settings.sample_every == 0 or end):
                    noise = torch.Generator(ours.device).manual_seed(settings.seed)
                    records.samples(shadow.sample((settings.samples,), generator=noise).cpu(), levels, done)
                    records.curves()
                if done % settings.save_every == 0 or end or stop or scores:
                    save()
                    saved_at = done
                if stop:
                    signals.broke_off = scores
                    stopped_by = next(number for number in ours.gather(signals.came) if number is not None)
                    break
                clock = time.monotonic()
            if held_out is not None and stopped_by is None and not scored_at_the_end():  # finished before
                score(settings.final_draws)
                saved_at = None
            if saved_at is None:
                save()
        except _AtOnce:
            stopped_by = signals.came
        except Exception as problem:
            # The steps that are done are worth more than where it failed. Alone: others may wait elsewhere.
            if before is not None:
                before.restore()
            if saved_at != state["step"] and ours.world == 1 and not isinstance(problem, CheckpointError):
                with suppress(Exception):
                    save()
            raise
        return Trained(
            flow=shadow,
            step=state["step"],
            stopped_by=stopped_by if state["step"] < settings.steps or signals.broke_off else None,
            evaluation=None if state["evaluation"] is None else Evaluation.of(state["evaluation"]),
            seconds=state["seconds"],
            skipped=state["skipped"],
        )


# ------------------------------------------------------------------------------------------------------------ helpers


def _average(settings: Settings) -> Callable[[Any, Any, Any], None]:
    """The moving average that `AveragedModel` calls with its values, the new ones, and their number so far."""
    if not settings.ema_warmup:
        return get_ema_multi_avg_fn(settings.ema)

    def update(averaged: Any, current: Any, count: Tensor) -> None:
        n = float(count)
        get_ema_multi_avg_fn(min(settings.ema, (1 + n) / (10 + n)))(averaged, current, count)

    return update


def _loader(images: Dataset[Any], settings: Settings, ours: Processes, start: int) -> Iterator[Any]:
    """The parts of this process, step after step, from the place `start` in the stream of images."""
    count = len(images)  # type: ignore[arg-type]
    loader = DataLoader(
        images,
        batch_sampler=Order(
            count,
            batch=settings.batch,
            seed=settings.seed,
            start=start,
            rank=ours.rank,
            world=ours.world,
            parts=settings.accumulate,
        ),
        collate_fn=collate,
        num_workers=settings.workers,
        pin_memory=ours.device.type == "cuda",
        generator=torch.Generator().manual_seed(settings.seed),  # for workers; not the global one
    )
    return iter(loader)


class _Before:
    """What a loss moves even if no step is taken: random states, and the running averages of norms."""

    def __init__(self, flow: nn.Module, device: torch.device) -> None:
        self.random, self.device = checkpoints.random_state(device), device
        self.buffers = [(buffer, buffer.clone()) for buffer in flow.buffers()]

    def restore(self) -> None:
        checkpoints.set_random_state(self.random, self.device)
        for buffer, value in self.buffers:
            buffer.copy_(value)


def _channels_last(flow: nn.Module) -> None:
    """Lay the kernels of the nets out channels last. The maps' own parameters stay: their dims are a pair's."""
    for net in nets(flow):
        for parameter in net.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _resume(
    folder: Path,
    flow: Distribution,
    averaged: AveragedModel,
    adam: torch.optim.Optimizer,
    of: Mapping[str, Any],
    ours: Processes,
) -> dict[str, Any]:
    """Go on from the newest checkpoint that is whole and of this model; its state.

    Raises:
        CheckpointError: if there is none, with all the reasons; if the newest is one of other images.
    """
    reasons: list[str] = []
    for found in checkpoints.newest(folder, reasons.append):
        then = found.manifest["of"]
        if then.get("images", of["images"]) != of["images"]:
            raise CheckpointError(
                f"{found.path}: the run was trained on {then['images']} images, and is given {of['images']}; "
                "with another `out` it begins anew"
            )
        try:
            if not set(then.get("optimizer", of["optimizer"])) & set(of["optimizer"]):
                theirs, mine = then["optimizer"][0], of["optimizer"][0]
                raise CheckpointError(f"{found.path.name}: the optimizer is {theirs}, and that of this run {mine}")
            state = found.restore(flow, averaged.module, adam, ours)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        averaged.n_averaged.fill_(state.pop("averages"))
        if ours.first:
            for reason in reasons:
                print(f"passed over: {reason}")
            print(f"going on from step {found.step}, {found.path}")
        return state
    raise CheckpointError(f"{folder}: no checkpoint to go on from; " + "; ".join(reasons))


def _kinds(optimizer: torch.optim.Optimizer) -> list[str]:
    """Its class, and those it derives from: one of them in common makes the state one of the same kind."""
    return [kind.__name__ for kind in type(optimizer).__mro__ if issubclass(kind, torch.optim.Optimizer)][:-1]


def _what_is_not_finite(
    flow: Distribution, batches: list[list[Tensor]], autocast: Any, before: _Before, step: int, ours: Processes
) -> str:
    """Run the step again under `validation`, with the same noise, to find the layer; else name the gradient."""
    found = None
    before.restore()
    with torch.no_grad(), autocast:
        for batch in batches:
            # Shards come together first: a process that stops at a layer must not keep the others waiting in it.
            for part in flow.modules():
                unshard: Any = getattr(part, "unshard", None)
                if unshard is not None:
                    unshard()
            try:
                with validation(flow):
                    flow(*batch)
            except DomainError as error:
                found = found or str(error)
    every = ours.gather(found)
    if not any(every):
        for name, parameter in flow.named_parameters():
            if parameter.grad is not None and not whole(parameter.grad).isfinite().all():
                every = [f"the gradient of {name} is not finite"]
                break
    told = next((text for text in every if text is not None), "no layer found on a second run")
    return f"step {step}: the loss or its gradient is not finite: {told}"


class _AtOnce(BaseException):
    """A signal that does not wait for the end of a step."""


class _Signals:
    """The first SIGTERM or SIGINT that came."""

    def __init__(self) -> None:
        self.came: signal.Signals | None = None
        self.waits = True  # for the end of a step
        self.broke_off = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, a signal breaks off what runs, with `_AtOnce`; so does one that came shortly before."""
        self.waits = False
        try:
            if self.came is not None:
                raise _AtOnce
            yield
        except _AtOnce:
            self.broke_off = True
            raise
        finally:
            self.waits = True


@contextmanager
def _signals() -> Iterator[_Signals]:
    """Note SIGTERM and Ctrl-C instead of dying of them; a second Ctrl-C interrupts at once."""
    noted = _Signals()

    def note(number: int, frame: object) -> None:
        if noted.came is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        noted.came = signal.Signals(number)
        if not noted.waits:
            raise _AtOnce

    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield noted
        return
    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield noted
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder.

    Raises:
        CheckpointError: if one is there.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CheckpointError(f"{out}: another process is training there") from None
    try:
        yield
    finally:
        lock.release()


def _check_pictures(flow: Distribution, *, conditional: bool) -> None:
    """Refuse to promise pictures of samples that are none, before there are steps to lose.

    Raises:
        ValueError: for a conditional flow, and for what is no image.
        ImportError: without matplotlib.
    """
    shape = None if conditional else tuple(flow.event_shape)
    if shape is None or len(shape) != 3 or shape[0] not in (1, 3):
        what = "a conditional flow" if shape is None else f"a flow of {shape}"
        raise ValueError(f"sample_every: pictures are of images of 1 or 3 channels, and this is {what}; wanted 0")
    if find_spec("matplotlib") is None:
        raise ImportError("sample_every: pictures need matplotlib: pip install matplotlib; 0 for none")


def _check_weights(flow: nn.Module, averaged: nn.Module, step: int, out: Path, ours: Processes) -> None:
    """Refuse to put weights that are lost in the place of good ones.

    Raises:
        DomainError: on every process, naming what is not finite.
    """
    every = {name: value for name, value in flow.named_parameters()}
    every |= {f"the average of {name}": value for name, value in averaged.named_parameters()}
    mine = [value.to_local() if hasattr(value, "to_local") else value for value in every.values()]
    counts = ours.total([0.0 if value.isfinite().all() else 1.0 for value in mine])
    name = next((name for name, count in zip(every, counts, strict=True) if count), None)
    if name is not None:
        raise DomainError(
            f"after step {step} {name} is not finite; no checkpoint was written of it, and those before it in "
            f"{out / 'checkpoints'} are good"
        )
