"""Scores a flow on a whole split, and keeps what a reader of the figure must know."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from flowkit import metrics
from flowkit.arguments import whole as whole_number
from flowkit.distribution import Distribution
from flowkit.files import write_whole
from flowkit.flow import Flow
from flowkit.progress import progress_bar
from flowkit.surjections import UniformDequantizer, VariationalDequantizer
from flowkit.train.data.images import as_dataset, fetch, inputs
from flowkit.train.parallel import Processes, whole
from flowkit.transform import Chain
from flowkit.zoo.files import WeightsError, state_sha256

__all__ = ["Comparison", "Evaluation", "compare", "evaluate"]


class Events(Protocol):
    """What can be scored beside tensors: what has a length, and items that are events or pairs of event and context."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True)
class Evaluation:
    """The card of one evaluation: what was scored, how, by which code, and the figures.

    Attributes:
        model: name of the model.
        parameters: how many it has.
        state_sha256: over its state dict, so that the card belongs to these weights and no others.
        steps: of training; None if unknown.
        ema: decay of the averaged weights that were scored; None if they were not averaged, or it is unknown.
        data: name of the data set.
        split: which part of it.
        images: how many were scored, which is all of the split.
        data_sha256: over shape and values of all of them, in order.
        shape: of one.
        draws: importance samples per image; 1 for an exact flow.
        exact: whether the figures are likelihoods themselves and not bounds.
        dtype: of the arithmetic. Sums are float64.
        device: "cpu" or "cuda".
        batch: images scored together; with `seed` it fixes the noise.
        seed: of the noise.
        bits_per_dim: mean over the images, with `draws` importance samples each: an upper bound in expectation.
        standard_error: of `bits_per_dim`, over the images.
        bits_per_dim_single: the same of single samples, the mean over all draws.
        single_standard_error: of `bits_per_dim_single`.
        bits_per_dim_uniform: the same of single samples, with uniform noise in place of the learned one.
        uniform_standard_error: of `bits_per_dim_uniform`.
        seconds: that it took.
        flowkit: version.
        commit: of a source checkout, "+changes" if files of the package differ from it; None without one.
        torch: version.
    """

    model: str
    parameters: int
    state_sha256: str
    steps: int | None
    ema: float | None
    data: str
    split: str
    images: int
    data_sha256: str
    shape: tuple[int, ...]
    draws: int
    exact: bool
    dtype: str
    device: str
    batch: int
    seed: int
    bits_per_dim: float
    standard_error: float
    bits_per_dim_single: float
    single_standard_error: float
    bits_per_dim_uniform: float | None
    uniform_standard_error: float | None
    seconds: float
    flowkit: str
    commit: str | None
    torch: str

    @staticmethod
    def of(card: Mapping[str, Any] | None) -> Evaluation:
        """The evaluation that a parsed card holds.

        Raises:
            WeightsError: if a field is missing, unknown, or no evaluation is there, which is None on a model's card.
        """
        names = {field.name for field in fields(Evaluation)}
        if card is None:
            raise WeightsError("Evaluation: the card has no evaluation: nothing was held out, or it was not scored")
        if not isinstance(card, Mapping) or names != card.keys():
            came = card.keys() if isinstance(card, Mapping) else set()
            what = ", ".join(sorted(names ^ came))
            raise WeightsError(f"Evaluation: the card is damaged or of another release: it differs in {what}")
        return Evaluation(**{**card, "shape": tuple(card["shape"])})

    @staticmethod
    def read(path: str | Path) -> Evaluation:
        """The evaluation in a file, alone or in a model's card.

        Raises:
            WeightsError: if it holds none.
            OSError: if it cannot be read.
        """
        try:
            card = json.loads(Path(path).read_bytes())
        except ValueError as error:
            raise WeightsError(f"{path}: the card is damaged: {error}") from None
        if isinstance(card, dict) and "evaluation" in card:
            card = card["evaluation"]
        try:
            return Evaluation.of(card)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None

    def write(self, path: str | Path) -> None:
        """Into a JSON file, whole or not at all.

        Raises:
            OSError: if it cannot be written.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(path), (json.dumps(asdict(self), indent=2, allow_nan=False) + "\n").encode())

    def __str__(self) -> str:
        lines = [f"{self.model} on {self.data}, {self.split}: all {self.images} images"]
        kind = "exact" if self.exact else f"{self.draws} importance sample{'s' if self.draws > 1 else ''} each"
        if self.bits_per_dim_uniform is not None:
            lines.append(
                f"  {self.bits_per_dim_uniform:.4f} ± {self.uniform_standard_error:.4f} bits/dim, "
                "single samples of uniform noise"
            )
        if self.draws > 1:
            lines.append(
                f"  {self.bits_per_dim_single:.4f} ± {self.single_standard_error:.4f} bits/dim, single samples"
            )
        lines.append(f"  {self.bits_per_dim:.4f} ± {self.standard_error:.4f} bits/dim, {kind}")
        return "\n".join(lines)


# What must agree before two figures can stand beside each other.
PROTOCOL = ("data", "split", "images", "data_sha256", "shape", "dtype")


class Comparison(NamedTuple):
    """How far apart two evaluations are.

    Attributes:
        difference: bits/dim of the first less those of the second: below zero, the first is better.
        standard_error: of the difference, as if the two had been scored on different images. On the same images, which
            they were, it is smaller if the images that are hard for one are hard for the other.
    """

    difference: float
    standard_error: float


# Torch takes seeds below 2^64; the upper half is left to what processes and passes add to a seed.
SEEDS = 2**63


def check_seed(name: str, seed: Any) -> None:
    """Refuse a seed that no generator takes.

    Raises:
        ValueError: naming it.
    """
    number = whole_number(seed)
    if number is None or not 0 <= number < SEEDS:
        raise ValueError(f"{name} is {seed!r}, wanted a whole number from 0 to 2^63 - 1")


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """The difference of two evaluations that were measured alike.

    Alike are data, split, images and their hash, shape, dtype, and draws unless one of the flows is exact. Seeds, batch
    and device only choose the noise.

    Raises:
        ValueError: if they were not, naming what differs.

    Reference:
        Theis, van den Oord, Bethge, "A note on the evaluation of generative models", 2016,
        https://arxiv.org/abs/1511.01844.

    >>> import torch, flowkit as fk
    >>> x = torch.randint(4, (50, 2), generator=torch.Generator().manual_seed(0))
    >>> flow = fk.Flow(fk.UniformDequantizer(levels=4), fk.Uniform((2,)))
    >>> card = evaluate(flow, x, data_name="toy", split="all")
    >>> compare(card, card).difference
    0.0
    >>> compare(card, evaluate(flow, x, data_name="toy", split="all", draws=2))
    Traceback (most recent call last):
        ...
    ValueError: compare: not measured alike: draws is 1 and 2
    """
    _check_alike(asdict(first), second)
    return Comparison(first.bits_per_dim - second.bits_per_dim, math.hypot(first.standard_error, second.standard_error))


def _check_alike(first: Mapping[str, Any], other: Evaluation) -> None:
    """What must agree, does.

    Raises:
        ValueError: if not, naming what differs.
    """
    second = asdict(other)
    names = PROTOCOL if first["exact"] or second["exact"] else (*PROTOCOL, "draws")
    unlike = [name for name in names if first[name] != second[name]]
    if unlike:
        found = "; ".join(f"{name} is {first[name]!r} and {second[name]!r}" for name in unlike)
        raise ValueError(f"compare: not measured alike: {found}")


def evaluate(
    flow: Distribution,
    data: Tensor | Events,
    *,
    data_name: str,
    split: str,
    context: Tensor | None = None,
    draws: int = 1,
    batch: int = 64,
    seed: int = 0,
    uniform: bool = False,
    dtype: torch.dtype | None = None,
    model: str = "unnamed",
    steps: int | None = None,
    ema: float | None = None,
    against: Evaluation | None = None,
    scores: str | Path | None = None,
    progress: bool = False,
    ours: Processes | None = None,
) -> Evaluation:
    """Score every image of `data`, in eval mode, and say how it was done.

    For images x_1 ... x_N of D elements and K draws of the noise, `bits_per_dim` is the mean over n of
    `-log(1/K sum_k exp(l_nk)) / (D log 2)`, and `bits_per_dim_single` that of `-(1/K) sum_k l_nk / (D log 2)`, where l
    is `flow.log_prob`; the standard errors are the deviations over n divided by sqrt(N). Sums are float64. The paper's
    protocol is draws=4096.

    With `uniform`, the main flow is scored under uniform noise as well, so that the card shows the way from uniform to
    variational to importance-weighted: what the learned noise is worth to this main flow, which was trained with it.
    A flow trained with uniform noise would do better under it.

    Args:
        flow: on the device on which to score.
        data: (N, *event), or items that are events or pairs of an event and its context; of a flow that takes no
            context, the event of a pair is taken. Nothing is left out.
        data_name, split: what the card calls them.
        context: (N, *context) of a conditional flow, in the order of `data`, if `data` has none in it.
        draws: importance samples per image, K; an exact flow takes one.
        batch: images scored together. Each batch has noise of its own, fixed by `seed` and its number.
        seed: of the noise.
        uniform: whether to score uniform noise too, if the flow has a variational dequantizer.
        dtype: of the arithmetic; a copy of the flow is cast to it. The flow's own if not given.
        model, steps, ema: what the card says of the flow.
        against: a card that the result is to be compared with: refused before the work if it was measured unlike.
        scores: a file that keeps the scores of the batches that are done. If it is there, they are not scored again; it
            must be of the same flow, data and protocol.
        progress: whether to show a bar, if tqdm is installed.
        ours: the processes that share the work batch by batch; all of them call this, and get the card that one
            process alone would get. Without `scores`.

    Raises:
        ValueError: for fewer than 2 images, settings below 1, a seed that no generator takes, a context that is
            missing, too long, too short or not taken, `uniform` and a flow whose noise is not variational, a score
            that is not finite, `against` a card of another protocol, or `scores` that is a folder, or belongs to
            something else.
        RuntimeError: if images are left without a score, because the processes were not given the same data.

    Reference:
        Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders", 2016, https://arxiv.org/abs/1509.00519.
        Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, https://arxiv.org/abs/1902.00275, section 4.

    >>> import torch, flowkit as fk
    >>> flow = fk.Flow(fk.UniformDequantizer(levels=4), fk.Uniform((3,)))
    >>> card = evaluate(flow, torch.randint(4, (10, 3)), data_name="toy", split="all", draws=3)
    >>> card.images, card.draws, round(card.bits_per_dim, 6)
    (10, 3, 2.0)
    """
    started = time.monotonic()
    for name, count in (("draws", draws), ("batch", batch)):
        if count < 1:
            raise ValueError(f"evaluate: {name} is {count}, wanted at least 1")
    check_seed("evaluate: seed", seed)
    if len(data) < 2:
        raise ValueError(f"evaluate: data has {len(data)} images, wanted at least 2: one has no standard error")
    if scores is not None and Path(scores).is_dir():
        raise ValueError(f"evaluate: scores is {str(scores)!r}, a folder; wanted the path of a file")
    if scores is not None and ours is not None and ours.world > 1:
        raise ValueError(f"evaluate: scores are kept by one process alone, and there are {ours.world}")
    images = as_dataset(_with_context(flow, data, context))  # type: ignore[arg-type]
    draws = 1 if flow.exact else draws
    scored = flow if dtype is None else copy.deepcopy(flow).to(dtype)
    under_uniform = _with_uniform_noise(scored) if uniform else None
    like = next((tensor for tensor in [*scored.parameters(), *scored.buffers()] if tensor.is_floating_point()), None)
    device = torch.device("cpu") if like is None else like.device
    ours = Processes(0, 1, device) if ours is None else ours
    hashed = data_sha256(images, flow.context_ndim is not None, batch) if ours.first else None
    digest, shape = ours.gather(hashed)[0]

    about = {
        "model": model,
        "parameters": sum(parameter.numel() for parameter in scored.parameters()),
        "state_sha256": state_sha256({key: whole(value) for key, value in scored.state_dict().items()}),
        "steps": steps,
        "ema": ema,
        "data": data_name,
        "split": split,
        "images": len(data),
        "data_sha256": digest,
        "shape": shape,
        "draws": draws,
        "exact": flow.exact,
        "dtype": _arithmetic(torch.get_default_dtype() if like is None else like.dtype, device),
        "device": device.type,
        "batch": batch,
        "seed": seed,
    }
    if against is not None:
        _check_alike(about, against)
    file = None if scores is None else Path(scores)
    found, spent = _read_scores(file, about, uniform)
    passes = draws + uniform
    count = math.ceil(len(data) / batch)
    with (
        torch.no_grad(),
        _in_eval_mode(scored),
        progress_bar(len(data) * passes, f"scoring with {model}", shown=progress and ours.first, unit="pass") as bar,
    ):
        saved = time.monotonic()
        try:
            # Batches go round the processes. All call the flow equally often, as FSDP wants: in the last round, who
            # has no batch of its own scores the last one too.
            for first in range(0, count, ours.world):
                number = min(first + ours.rank, count - 1)
                rows = slice(number * batch, min((number + 1) * batch, len(data)))
                size = min((first + ours.world) * batch, len(data)) - first * batch  # of all processes
                if not found["weighted"][rows].isnan().any() and ours.world == 1:
                    bar.update(size * passes)
                    continue
                x = inputs(fetch(images, list(range(rows.start, rows.stop))), flow, device)
                seeds = np.random.SeedSequence((seed, number)).generate_state(2)
                generator = torch.Generator(device).manual_seed(int(seeds[0]))
                pair = metrics.bounds(scored, *x, draws=draws, generator=generator, each=partial(bar.update, size))
                new = dict(zip(("single", "weighted"), pair, strict=True))
                if under_uniform is not None:
                    generator.manual_seed(int(seeds[1]))
                    new["uniform"] = under_uniform.log_prob(*x, generator=generator).double()
                    bar.update(size)
                for fault in ours.gather(_fault(new, rows.start)):
                    if fault is not None:
                        raise ValueError(f"evaluate: {fault}")
                for name, value in new.items():
                    found[name][rows] = value.cpu()
                if file is not None and time.monotonic() - saved > 10:
                    _write_scores(file, about, found, spent + time.monotonic() - started)
                    saved = time.monotonic()
        finally:
            if file is not None:
                _write_scores(file, about, found, spent + time.monotonic() - started)
    for other in ours.gather(found):
        found = {name: torch.where(score.isnan(), other[name], score) for name, score in found.items()}

    figures: dict[str, float | None] = {"bits_per_dim_uniform": None, "uniform_standard_error": None}
    for name, score in found.items():
        if len(score) != len(data) or score.isnan().any():  # never: every batch was scored
            raise RuntimeError(f"evaluate: {int(score.isnan().sum())} of {len(data)} images have no score")
        bits = -score / (math.prod(shape) * math.log(2))
        mean, error = {
            "weighted": ("bits_per_dim", "standard_error"),
            "single": ("bits_per_dim_single", "single_standard_error"),
            "uniform": ("bits_per_dim_uniform", "uniform_standard_error"),
        }[name]
        figures |= {mean: bits.mean().item(), error: (bits.std() / len(bits) ** 0.5).item()}
    return Evaluation.of(
        {**about, **figures, "seconds": round(spent + time.monotonic() - started, 1), **code_version()}
    )


def code_version() -> dict[str, str | None]:
    """The versions that a card states: flowkit, the commit of a source checkout, torch."""
    # At call time all of the package is there; an import at the top would go in a circle.
    package = sys.modules[__name__.partition(".")[0]]
    return {"flowkit": package.__version__, "commit": _commit(), "torch": str(torch.__version__)}


def _commit() -> str | None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "flowkit")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _with_context(flow: Distribution, data: Tensor | Events, context: Tensor | None) -> Tensor | Events:
    """The events, and the contexts if they come apart, as pairs.

    Raises:
        ValueError: if they do not belong together, or the flow takes none.
    """
    if context is None:
        return data
    if flow.context_ndim is None:
        raise ValueError("evaluate: context is given, but the flow takes none")
    if not isinstance(data, Tensor) or len(context) != len(data):
        length = f"{len(data)} events" if isinstance(data, Tensor) else f"a {type(data).__name__}"
        raise ValueError(
            f"evaluate: context has length {len(context)} and data is {length}; wanted two tensors of one length, or a "
            "dataset of pairs alone"
        )
    return TensorDataset(data, context)


def _with_uniform_noise(flow: Distribution) -> Flow:
    """The same main flow with uniform noise; all other parts are shared.

    Raises:
        ValueError: if its noise is not variational.
    """
    chain = flow.transform if isinstance(flow, Flow) else None
    if isinstance(flow, Flow) and isinstance(chain, Chain):
        for name, part in chain.named_children():
            if isinstance(part, VariationalDequantizer):
                like = next(flow.parameters())
                uniform = UniformDequantizer(part.levels).to(dtype=like.dtype, device=like.device)
                return Flow(chain.replace(**{name: uniform}), flow.base).eval()
    raise ValueError("evaluate: uniform is True, but no part of the flow's chain is a VariationalDequantizer")


def _arithmetic(dtype: torch.dtype, device: torch.device) -> str:
    """The dtype, and what makes products coarser than it."""
    said = str(dtype).removeprefix("torch.")
    if torch.is_autocast_enabled(device.type):
        said += f", autocast {str(torch.get_autocast_dtype(device.type)).removeprefix('torch.')}"
    if torch.get_float32_matmul_precision() != "highest" and dtype == torch.float32:
        said += f", matmul {torch.get_float32_matmul_precision()}"
    return said


def data_sha256(images: Dataset[Any], conditional: bool = False, batch: int = 64) -> tuple[str, tuple[int, ...]]:
    """SHA-256 over shape and values, the same for every integer dtype and for every floating one; the shape of one.

    That of the contexts of a conditional flow goes in after the images; labels that nobody reads do not.
    """
    count: int = len(images)  # type: ignore[arg-type]
    digests, shape = [hashlib.sha256() for _ in range(1 + conditional)], ()
    for start in range(0, count, batch):
        items = fetch(images, list(range(start, min(start + batch, count))))
        values = list(items) if isinstance(items, tuple) else [items]
        shape = tuple(values[0].shape[1:])
        for digest, x in zip(digests, values, strict=False):
            kind = "float64" if x.is_floating_point() else "int64"
            if not start:
                digest.update(f"{kind} {(count, *x.shape[1:])}\n".encode())
            wide = x.to(getattr(torch, kind)).cpu().contiguous().numpy()
            digest.update(wide.astype(wide.dtype.newbyteorder("<"), copy=False).tobytes())
    for context in digests[1:]:
        digests[0].update(context.digest())
    return digests[0].hexdigest(), shape


def _fault(values: Mapping[str, Tensor], start: int) -> str | None:
    """The first score that is not finite, in words."""
    for name, value in values.items():
        if not value.isfinite().all():
            first = int((~value.isfinite()).nonzero()[0])
            return f"image {start + first} has a log-probability of {value[first].item()} ({name})"
    return None


@contextmanager
def _in_eval_mode(flow: nn.Module) -> Iterator[None]:
    """Eval mode, and every module's own mode again afterwards."""
    modes = [(module, module.training) for module in flow.modules()]
    flow.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _read_scores(file: Path | None, about: dict[str, Any], uniform: bool) -> tuple[dict[str, Tensor], float]:
    """The scores so far, NaN where there are none yet, and the seconds that they took.

    Raises:
        ValueError: if the file holds others.
    """
    names = ["single", "weighted", *(["uniform"] if uniform else [])]
    if file is None or not file.exists():
        return {name: torch.full((about["images"],), math.nan, dtype=torch.float64) for name in names}, 0.0
    try:
        with safe_open(file, "pt") as opened:
            kept = json.loads((opened.metadata() or {}).get("flowkit.evaluation", "{}"))
            found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"evaluate: {file} holds no scores ({error}); remove it to begin anew") from None
    spent = float(kept.pop("seconds", 0.0))
    now = json.loads(json.dumps(about))
    unlike = [name for name in now if kept.get(name) != now[name]]
    if unlike or sorted(found) != sorted(names):
        what = ", ".join(unlike) or "whether uniform noise is scored"
        raise ValueError(f"evaluate: the scores in {file} are of another evaluation: it differs in {what}")
    return found, spent


def _write_scores(file: Path, about: dict[str, Any], found: dict[str, Tensor], spent: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"flowkit.evaluation": json.dumps({**about, "seconds": spent})}
    write_whole(file, save_safetensors(found, metadata))
