"""What a flow is made of and what each layer does and costs, as a table."""

from __future__ import annotations

import functools
import math
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.distribution import Distribution
from flowkit.functional.rootfind import Solve, recorded_solves
from flowkit.interception import intercepted
from flowkit.layers import Layer, layers
from flowkit.tables import markdown_table, text_table
from flowkit.transform import Transform

__all__ = ["Row", "Summary", "summarize"]


@dataclass(frozen=True)
class Row:
    """One layer of a summary. What was not measured, or does not exist, is None.

    Attributes:
        path: as `flow.get_submodule` takes it; "" for the whole flow.
        kind: class, that of its map in brackets, `.inv` if it is built in turned round.
        depth: in how many layers it stands; figures of a layer contain those of the layers that stand in it.
        in_shape, out_shape: event on the way from data to latent, before and after the layer.
        parameters: numbers in its parameters.
        own_parameters: those that belong to no layer in it, and to none listed before. They add up to the whole.
        trainable: those of `parameters` that require a gradient.
        log_term: mean over the examples of its share of the log-likelihood, in nats.
        log_term_deviation: standard deviation of that over the examples.
        bits_per_dim: its share of `flowkit.metrics.bits_per_dim`: -log_term / (D log 2), D elements in an event.
        forward_ms, inverse_ms: time from data to latent and back, for the whole batch, in the fastest of some runs.
        iterations: the mean number of iterations of an element whose inverse is found by a search.
        most_iterations: the largest such number.
        saved_bytes: memory held for the backward pass, per example, without parameters, buffers and data. What
            several layers save is counted for the first.
    """

    path: str
    kind: str
    depth: int
    in_shape: tuple[int, ...] | None = None
    out_shape: tuple[int, ...] | None = None
    parameters: int = 0
    own_parameters: int = 0
    trainable: int = 0
    log_term: float | None = None
    log_term_deviation: float | None = None
    bits_per_dim: float | None = None
    forward_ms: float | None = None
    inverse_ms: float | None = None
    iterations: float | None = None
    most_iterations: int | None = None
    saved_bytes: float | None = None


@dataclass(frozen=True)
class Summary:
    """The table that `Flow.summary` gives; `print` it, or read `rows`.

    Attributes:
        rows: one for each layer, in the order in which data pass them; parts come after the layer they stand in.
        total: the whole flow: its log_prob, the time of log_prob and of from_latent, the memory it saves.
        heading: one line on the flow.
        notes: what the figures mean and how they were taken.
    """

    rows: tuple[Row, ...]
    total: Row
    heading: str
    notes: tuple[str, ...]

    def __getitem__(self, path: str) -> Row:
        """The row of a layer by its path.

        Raises:
            KeyError: if there is none.
        """
        for row in self.rows:
            if row.path == path:
                return row
        raise KeyError(f"no layer {path!r}; there are {', '.join(row.path for row in self.rows)}")

    def to_markdown(self) -> str:
        """The table in Markdown, with full paths and all columns that have an entry."""
        columns = [column for column in _COLUMNS if any(column.entry(row) for row in [*self.rows, self.total])]
        table = [
            [f"`{row.path}`" if row.path else "total", row.kind, *(column.entry(row) for column in columns)]
            for row in [*self.rows, self.total]
        ]
        return markdown_table(["layer", "kind", *(column.heading for column in columns)], table, left=2)

    def __str__(self) -> str:
        everything = [*self.rows, self.total]
        columns = [column for column in _COLUMNS if any(column.entry(row) for row in everything)]
        # In a terminal, room is kept for names: the next line has the shape that leaves, and own parameters add up.
        measured = self.total.log_term is not None
        for heading, redundant in (
            ("out", measured or all(row.out_shape in (row.in_shape, None) for row in self.rows)),
            ("trainable", all(row.trainable == row.parameters for row in everything)),
            ("own", measured),
        ):
            columns = [column for column in columns if not (redundant and column.heading == heading)]
        table: list[list[str]] = []
        for row in everything:
            label = f"{'  ' * row.depth}{row.path.rpartition('.')[2]} {row.kind}" if row.path else "total"
            table.append([label, *(column.entry(row) for column in columns)])
        table.insert(-1, [])
        text = text_table(["layer", *(column.heading for column in columns)], table, left=1, width=_WIDTH)
        return "\n".join([self.heading, "", text, "", *self.notes])


_WIDTH = 120


@dataclass(frozen=True)
class _Column:
    heading: str
    entry: Callable[[Row], str]


def _shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else "×".join(map(str, shape)) or "()"


def _number(value: float | None, places: int) -> str:
    return "" if value is None else f"{round(value, places) + 0.0:.{places}f}"  # no minus before a zero


def _spread(row: Row) -> str:
    if row.log_term is None:
        return ""
    return f"{_short(row.log_term, 4)} ± {_short(row.log_term_deviation or 0.0, 3)}"


def _short(value: float, digits: int) -> str:
    """A few digits, but no powers of ten as long as a reader need not count zeros."""
    return f"{value:.0f}" if 10**digits <= abs(value) < 1e7 else f"{value:.{digits}g}"


def _bytes(count: float | None) -> str:
    if count is None:
        return ""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{_short(count, 3)} {unit}"
        count /= 1024
    return f"{_short(count, 3)} GiB"


def _iterations(row: Row) -> str:
    return "" if row.iterations is None else f"{row.iterations:.1f} ≤ {row.most_iterations}"


_COLUMNS = (
    _Column("in", lambda row: _shape(row.in_shape)),
    _Column("out", lambda row: _shape(row.out_shape)),
    _Column("parameters", lambda row: f"{row.parameters:,}" if row.parameters or not row.path else ""),
    _Column("own", lambda row: f"{row.own_parameters:,}" if row.own_parameters else ""),
    _Column("trainable", lambda row: f"{row.trainable:,}" if row.parameters else ""),
    _Column("log-term", _spread),
    _Column("bits/dim", lambda row: _number(row.bits_per_dim, 3)),
    _Column("fwd ms", lambda row: _number(row.forward_ms, 2)),
    _Column("inv ms", lambda row: _number(row.inverse_ms, 2)),
    _Column("iterations", _iterations),
    _Column("saved", lambda row: _bytes(row.saved_bytes)),
)


def summarize(
    flow: Distribution,
    trace: Callable[[Callable[[], Any]], torch.Size],
    *,
    log_prob: Callable[[], Tensor] | None = None,
    to_latent: Callable[[], Tensor] | None = None,
    from_latent: Callable[[Tensor], Any] | None = None,
    data: Sequence[Tensor] = (),
    repeats: int = 5,
) -> Summary:
    """The summary of a flow; users call `Flow.summary`.

    Args:
        flow: its layers are listed.
        trace: runs it from latent to data on fake tensors with one batch dim, and gives the shape of one x; what it is
            given opens a context around the run.
        log_prob, to_latent, from_latent: run it on data, and back on latents; None for shapes and parameters alone.
        data: what the caller holds anyway, and no memory of the backward pass.
        repeats: runs, of which the fastest gives the times.

    Raises:
        ValueError: if there is no example in the data.
    """
    every = layers(flow)
    rows = dict(zip(every, _counted(every), strict=True))
    shapes: dict[Layer, tuple[Any, Any]] = {}
    event = trace(lambda: _watched(every, _Shapes(shapes)))
    for layer, (before, after) in shapes.items():
        rows[layer] = replace(rows[layer], in_shape=before, out_shape=after)
    for layer in every:
        if isinstance(layer.inner, Distribution) and isinstance(getattr(layer.inner, "event_shape", None), torch.Size):
            rows[layer] = replace(rows[layer], in_shape=tuple(layer.inner.event_shape))
    parameters = list(flow.parameters())
    total = Row(
        path="",
        kind=type(flow).__name__,
        depth=0,
        in_shape=tuple(event),
        parameters=sum(p.numel() for p in parameters),
        own_parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
    )
    notes = ["A layer's figures contain those of the layers in it."]
    if log_prob is not None and to_latent is not None and from_latent is not None:
        device = next((t.device for t in [*data, *parameters]), torch.device("cpu"))
        kept = {name: buffer.clone() for name, buffer in flow.named_buffers()}
        try:
            with torch.no_grad():
                z = to_latent()
            held = [*data, *flow.parameters(), *flow.buffers()]
            back = functools.partial(from_latent, z)
            measured = _measured(every, log_prob, back, held, repeats, device)
        finally:
            with torch.no_grad():  # a batch norm moves its averages
                for name, buffer in flow.named_buffers():
                    buffer.copy_(kept[name])
        dims = max(math.prod(event), 1)
        for layer in every:
            rows[layer] = measured.fill(rows[layer], layer, dims)
        total = measured.fill(total, None, dims)
        size = measured.examples
        example = "1 example" if size == 1 else f"{size:,} examples"
        count = torch.get_num_threads()
        threads = f", {count} thread{'s' * (count > 1)}" if device.type == "cpu" else ""
        notes += [
            f"log-term: share of log_prob in nats, mean ± deviation over {example}; bits/dim: -log-term / (D log 2), "
            f"D = {dims:,}.",
            f"ms: time of log_prob and of from_latent for all {example}, in the fastest of {repeats} runs "
            f"({device}{threads}).",
            "saved: memory held for backward per example, without parameters and data.",
        ]
        if any(row.iterations is not None for row in rows.values()):
            notes.append("iterations: of the search by which an element is inverted, mean and most.")
    heading = f"{total.kind} over events {tuple(event)}; log_prob is {'exact' if flow.exact else 'a lower bound'}"
    return Summary(tuple(rows[layer] for layer in every), total, heading, tuple(notes))


def _counted(every: Sequence[Layer]) -> Iterator[Row]:
    """The rows with their parameters."""
    inside: dict[Layer, set[nn.Parameter]] = defaultdict(set)
    for layer in every:
        if layer.parent is not None:
            inside[layer.parent] |= set(layer.inner.parameters())
    listed: set[nn.Parameter] = set()
    for layer in every:
        parameters = set(layer.inner.parameters())
        own = parameters - inside[layer] - listed
        listed |= own
        yield Row(
            path=layer.path,
            kind=layer.kind,
            depth=layer.depth,
            parameters=sum(p.numel() for p in parameters),
            own_parameters=sum(p.numel() for p in own),
            trainable=sum(p.numel() for p in parameters if p.requires_grad),
        )


# ---------------------------------------------------------------------------------------------------------------------
# Watching layers run


class _Watch:
    """What is told that a layer begins and ends; `stack` has the layers that are running, the innermost last."""

    stack: list[Layer]

    def begin(self, layer: Layer, value: Any, inverse: bool) -> None: ...

    def end(self, layer: Layer, value: Any, result: Any, inverse: bool) -> None: ...


@contextmanager
def _watched(every: Sequence[Layer], watch: _Watch) -> Iterator[None]:
    """While the context lasts, `watch` is told of layers that run in the layer they stand in.

    A part that is built in twice runs in another one's place as well; that time is this other one's.
    """
    by_module = {layer.module: layer for layer in every}
    watch.stack = []
    entered: list[bool] = []

    def before(module: nn.Module, args: tuple[Any, ...], inverse: bool) -> None:
        layer = by_module[module]
        mine = not watch.stack or watch.stack[-1] in layer.ancestors
        entered.append(mine)
        if mine:
            watch.stack.append(layer)
            watch.begin(layer, args[0] if args else None, inverse)

    def after(module: nn.Module, args: tuple[Any, ...], result: Any, inverse: bool) -> None:
        if entered.pop():
            watch.end(watch.stack[-1], args[0] if args else None, result, inverse)
            watch.stack.pop()

    densities = [layer.module for layer in every if isinstance(layer.module, Distribution)]
    others = [layer.module for layer in every if not isinstance(layer.module, Distribution)]
    with ExitStack() as stack:
        stack.enter_context(intercepted(others, before, after))
        stack.enter_context(intercepted(densities, before, after, ("log_prob", "sample_and_log_prob")))
        yield


class _Shapes(_Watch):
    """Shapes of what enters and leaves each layer, on the way from data to latent."""

    def __init__(self, shapes: dict[Layer, tuple[Any, Any]]) -> None:
        self.shapes = shapes

    def end(self, layer: Layer, value: Any, result: Any, inverse: bool) -> None:
        if isinstance(layer.inner, Distribution):
            return
        result = result[0] if isinstance(result, tuple) else result
        if isinstance(value, Tensor) and isinstance(result, Tensor):
            pair = tuple(value.shape[1:]), tuple(result.shape[1:])
            self.shapes.setdefault(layer, pair[::-1] if inverse != layer.turned else pair)


class _Terms(_Watch):
    """Log-terms of the layers, in a run of log_prob; one for each example."""

    def __init__(self) -> None:
        self.terms: dict[Layer | None, list[Tensor]] = defaultdict(list)

    def end(self, layer: Layer, value: Any, result: Any, inverse: bool) -> None:
        if isinstance(layer.module, Transform):
            term = result[1]
        elif isinstance(layer.module, Distribution) and layer.parent is None:
            term = result
        else:
            return  # what the density of another layer is worth, this layer says
        self.terms[layer].append(term.detach())


class _Clock(_Watch):
    """Seconds in each layer, in one run."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[Layer | None, float] = defaultdict(float)
        self._starts: list[float] = []

    def now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def begin(self, layer: Layer, value: Any, inverse: bool) -> None:
        self._starts.append(self.now())

    def end(self, layer: Layer, value: Any, result: Any, inverse: bool) -> None:
        self.seconds[layer] += self.now() - self._starts.pop()


class _Searches(_Watch):
    """Iterations of the searches in each layer, in one run."""

    def __init__(self, solves: list[Solve]) -> None:
        self.solves = solves
        self.iterations: dict[Layer, list[Tensor]] = defaultdict(list)
        self._starts: list[int] = []

    def begin(self, layer: Layer, value: Any, inverse: bool) -> None:
        self._starts.append(len(self.solves))

    def end(self, layer: Layer, value: Any, result: Any, inverse: bool) -> None:
        self.iterations[layer] += [solve.iterations for solve in self.solves[self._starts.pop() :]]


class _Held:
    """A tensor that is saved for backward; gone when the graph lets it go."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _Saved(_Watch):
    """Tensors that autograd saves while a layer runs."""

    def __init__(self) -> None:
        self.held: list[tuple[Layer | None, weakref.ref[_Held]]] = []

    def pack(self, tensor: Tensor) -> _Held:
        held = _Held(tensor)
        self.held.append((self.stack[-1] if self.stack else None, weakref.ref(held)))
        return held

    def sizes(self, ignored: Sequence[Tensor]) -> dict[Layer | None, int]:
        """Bytes of distinct storages still held, for every layer with those that stand in it; None for all."""
        seen = {_storage(tensor) for tensor in ignored}
        sizes: dict[Layer | None, int] = defaultdict(int)
        for layer, reference in self.held:
            held = reference()
            if held is None or held.tensor.layout != torch.strided or _storage(held.tensor) in seen:
                continue
            seen.add(_storage(held.tensor))
            count = held.tensor.untyped_storage().nbytes()
            sizes[None] += count
            for holder in [] if layer is None else [layer, *layer.ancestors]:
                sizes[holder] += count
        return sizes


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@dataclass
class _Measured:
    examples: int = 1
    terms: dict[Layer | None, Tensor] = field(default_factory=dict)
    forward: dict[Layer | None, float] = field(default_factory=dict)
    inverse: dict[Layer | None, float] = field(default_factory=dict)
    iterations: dict[Layer, list[Tensor]] = field(default_factory=dict)
    saved: dict[Layer | None, int] = field(default_factory=dict)

    def fill(self, row: Row, layer: Layer | None, dims: int) -> Row:
        """The row with what was measured."""
        if layer in self.terms:
            term = self.terms[layer].double()
            mean = term.mean().item()
            row = replace(
                row,
                log_term=mean,
                log_term_deviation=term.std(correction=0).item(),
                bits_per_dim=-mean / (dims * math.log(2)),
            )
        counts = [] if layer is None else self.iterations.get(layer, [])
        if counts:
            joined = torch.cat(counts)
            row = replace(row, iterations=joined.double().mean().item(), most_iterations=int(joined.max()))
        forward, inverse = (1e3 * times[layer] if layer in times else None for times in (self.forward, self.inverse))
        saved = self.saved.get(layer, 0) / self.examples
        return replace(row, forward_ms=forward, inverse_ms=inverse, saved_bytes=saved)


def _measured(
    every: Sequence[Layer],
    log_prob: Callable[[], Tensor],
    from_latent: Callable[[], Any],
    ignored: Sequence[Tensor],
    repeats: int,
    device: torch.device,
) -> _Measured:
    saved = _Saved()
    with (
        torch.enable_grad(),
        _watched(every, saved),
        torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda held: held.tensor),
    ):
        total = log_prob()  # holds the graph, and with it what is saved
    if not total.numel():
        raise ValueError("summary: the data hold no example")
    sizes = saved.sizes(ignored)
    total = total.detach()
    examples = total.numel()
    with torch.no_grad():
        terms = _Terms()
        with _watched(every, terms):
            terms.terms[None] = [log_prob()]
        with recorded_solves() as solves:
            searches = _Searches(solves)
            with _watched(every, searches):
                log_prob()
                from_latent()
        forward, inverse = (_timed(every, run, repeats, device) for run in (log_prob, from_latent))
    summed = {layer: sum(t.reshape(examples, -1).sum(1) for t in several) for layer, several in terms.terms.items()}
    return _Measured(examples, summed, forward, inverse, searches.iterations, sizes)  # type: ignore[arg-type]


def _timed(
    every: Sequence[Layer], run: Callable[[], Any], repeats: int, device: torch.device
) -> dict[Layer | None, float]:
    """Seconds in every layer that ran, and in all, in the fastest run: those of one run add up, medians do not."""
    runs: list[dict[Layer | None, float]] = []
    for _ in range(repeats):
        clock = _Clock(device)
        start = clock.now()
        with _watched(every, clock):
            run()
        clock.seconds[None] = clock.now() - start
        runs.append(clock.seconds)
    return min(runs, key=lambda seconds: seconds[None])
