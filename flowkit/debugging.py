"""Finding where values go wrong: a validation mode, and certificates of inverses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.arguments import check_kind
from flowkit.distribution import Distribution
from flowkit.errors import DomainError
from flowkit.flow import Flow
from flowkit.functional.rootfind import Solve, recorded_solves
from flowkit.interception import intercepted
from flowkit.layers import Layer, layers
from flowkit.tables import markdown_table, text_table
from flowkit.transform import Bijector, Chain, Inverse, Map, Transform

__all__ = ["Certificate", "Certificates", "InverseCall", "inverse_certificates", "validation"]

# ---------------------------------------------------------------------------------------------------------------------
# Where a value goes wrong


@contextmanager
def validation(module: nn.Module) -> Iterator[None]:
    """While the context lasts, every transform, net and density in `module` checks what comes in and what goes out.

    What comes into a transform must be free of NaN and, on the way to the latent, lie in its domain; on the way back a
    value outside its codomain is named if nothing finite comes of it. What a transform makes of finite values must be
    finite; the log-term of a part that draws noise may be minus infinity. What a net gives must be finite, and where it
    is not, the first module inside it that gave such a value is named. Gradients that are computed inside the context
    are checked too, in the order in which backward reaches them: the first layer, net or parameter whose gradient is
    not finite is named.

    The message names the part, the example, the element and the value, the direction, and the ranges of the values and
    parameters from which it came. Elements of a map are counted in what the map saw: the second half, in a coupling.
    For debugging: every check waits for the device.

    Args:
        module: a flow, or any module that holds transforms.

    Raises:
        DomainError: from the call that goes wrong, or from `backward`.
        TypeError: if `module` is none.

    >>> import torch, flowkit as fk
    >>> flow = fk.Flow(fk.Chain(logit=fk.Logit(), norm=fk.ActNorm((2,))), fk.Normal((2,)))
    >>> with validation(flow):
    ...     flow.log_prob(torch.tensor([[0.5, 0.2], [0.5, 1.5]]))
    Traceback (most recent call last):
        ...
    flowkit.errors.DomainError: transform.logit: x is 1.5 in example 1, element 1, wanted Interval(lower_bound=0.0, ...
    """
    check_kind("validation", "module", module, nn.Module, "a flow, or a module that holds transforms")
    watch = _Validation(module)
    with ExitStack() as stack:
        stack.callback(watch.end)
        for modules, methods in (
            (watch.transforms, ("forward", "inverse")),
            (watch.densities, ("log_prob",)),
            (watch.nets, ("forward",)),
        ):
            stack.enter_context(intercepted(modules, watch.before, watch.after, methods, watch.failed))
        yield


@dataclass
class _Call:
    """A call that is running."""

    module: nn.Module
    args: tuple[Any, ...]
    inverse: bool
    batch: torch.Size | None
    path: str
    suspect: str | None = None  # what may be meant, and is to blame only if something else goes wrong after it

    @property
    def input(self) -> Tensor | None:
        return self.args[0] if self.args and isinstance(self.args[0], Tensor) else None


class _Validation:
    """What `validation` does around each call."""

    def __init__(self, root: nn.Module) -> None:
        self.names = {id(part): name for name, part in root.named_modules()}
        modules = list(root.modules())
        self.transforms: list[nn.Module] = [part for part in modules if isinstance(part, Transform)]
        self.densities: list[nn.Module] = [part for part in modules if isinstance(part, Distribution)]
        self.nets = [part for part in modules if not isinstance(part, Transform | Distribution)]
        self.batch_of = _Batches(root)
        self.running: list[_Call] = []
        # A part that is reached by its parameters alone, as a matrix, has no other gradient.
        self.handles = [
            parameter.register_hook(self._gradient_check(name, "this parameter", None, None, ""))
            for name, parameter in root.named_parameters()
            if parameter.requires_grad
        ]

    def end(self) -> None:
        """Take the hooks off again."""
        for handle in self.handles:
            handle.remove()

    def before(self, part: nn.Module, args: tuple[Any, ...], inverse: bool) -> None:
        outer = self.running[-1] if self.running else None
        batch = self.batch_of(part, args, inverse, None if outer is None else outer.batch)
        path = self._path(part)
        scheme = next((c for c in reversed(self.running) if isinstance(c.module, Transform)), None)
        if isinstance(part, Map) and scheme is not None and not isinstance(scheme.module, Chain | Inverse):
            path = f"{scheme.path}.{path.rpartition('.')[2]}"  # several schemes may share a map
        call = _Call(part, args, inverse, batch, path)
        self.running.append(call)
        if isinstance(part, Chain | Inverse):
            return  # their parts name the place more closely
        if isinstance(part, Transform) and call.input is not None:
            name, support = ("z", part.codomain) if inverse else ("x", part.domain)
            self._refuse(call, name, call.input.isnan(), call.input, "no NaN")
            outside = None if support is None or part.stochastic_forward else ~support.check(call.input)
            if outside is not None and outside.any():
                call.suspect = self._message(call, name, outside, call.input, str(support))
                # Backwards a formula may hold further out, and a dequantizer takes any real.
                if not inverse:
                    self._raise(call.suspect)
        self._watch_gradients(call)

    def after(self, part: nn.Module, args: tuple[Any, ...], result: Any, inverse: bool) -> None:
        call = self.running[-1]
        if isinstance(part, Distribution):
            self._refuse(call, "log_prob", result.isnan() | (result == math.inf), result, "a number")
            if result.requires_grad and len(self.running) == 1:
                check = self._gradient_check(call.path, "log_prob", call.batch, None, "it comes from the loss")
                self.handles.append(result.register_hook(check))
        elif isinstance(part, Transform) and not isinstance(part, Chain | Inverse):
            self._check_transform(part, call, *result)
        elif not isinstance(part, Transform):
            self._check_net(call, result)
        self.running.pop()

    def failed(self, part: nn.Module) -> None:
        self.running.pop()

    def _check_transform(self, part: Transform, call: _Call, value: Tensor, term: Tensor) -> None:
        name = "x" if call.inverse else "z"
        fine = call.input is None or bool(call.input.isfinite().all())
        # A bijector of finite values that gives infinite ones stands at the edge of its domain.
        self._refuse(call, name, ~value.isfinite() if fine else value.isnan(), value, "a finite value")
        if part.stochastic_forward and not call.inverse and part.codomain is not None:  # noise from outside its cube
            self._refuse(call, name, ~part.codomain.check(value), value, str(part.codomain))
        if fine and isinstance(part, Bijector):
            self._refuse(call, "the log-term", ~term.isfinite(), term, "a finite value")
        self._refuse(call, "the log-term", term.isnan(), term, "no NaN")

    def _check_net(self, call: _Call, result: Any) -> None:
        outer = self.running[-2] if len(self.running) > 1 else None
        inside = outer is not None and not isinstance(outer.module, Transform | Distribution)
        for value in result if isinstance(result, tuple | list) else [result]:
            if not isinstance(value, Tensor) or bool(value.isfinite().all()):
                continue
            message = call.suspect or self._message(call, "its output", ~value.isfinite(), value, "a finite value")
            if not inside or value.isnan().any():
                raise DomainError(message)
            assert outer is not None
            outer.suspect = outer.suspect or message

    # Gradients

    def _watch_gradients(self, call: _Call) -> None:
        if isinstance(call.module, Map):
            names = ["z" if call.inverse else "x", "its parameters"]
        elif isinstance(call.module, Transform):
            names = ["z" if call.inverse else "x", "the context"]
        else:
            names = ["x"] if isinstance(call.module, Distribution) else ["its input"]
        for name, value in zip(names, call.args, strict=False):
            if isinstance(value, Tensor) and value.requires_grad:
                facts = f"{name} is {_range(value)}"
                check = self._gradient_check(call.path, name, call.batch, value, facts)
                self.handles.append(value.register_hook(check))

    def _gradient_check(
        self, path: str, name: str, batch: torch.Size | None, value: Tensor | None, facts: str
    ) -> Callable[[Tensor], None]:
        def check(gradient: Tensor) -> None:
            bad = ~gradient.isfinite()
            if bad.any():
                index = tuple(bad.nonzero()[0].tolist())
                here = "" if value is None else f", here {value.detach()[index].item():.4g}"
                place = _place(index, gradient.shape, batch)
                raise DomainError(
                    f"{path}: the gradient of {name} is {gradient[index].item()}{place}, wanted a finite value; "
                    "running backward" + (f"; {facts}{here}" if facts else "")
                )

        return check

    # Words

    def _path(self, part: nn.Module) -> str:
        """Where a part stands, in its flow or else in what is validated."""
        if isinstance(part, Transform) and "_path" in part.__dict__:
            return part.path
        return self.names[id(part)] or type(part).__name__

    def _refuse(self, call: _Call, name: str, bad: Tensor, value: Tensor, wanted: str) -> None:
        if bad.any():
            self._raise(self._message(call, name, bad, value, wanted))

    def _raise(self, message: str) -> None:
        """Complain, of the outermost layer that has something to answer for."""
        layers = (call.suspect for call in self.running if isinstance(call.module, Transform))
        raise DomainError(next((suspect for suspect in layers if suspect), message))

    def _message(self, call: _Call, name: str, bad: Tensor, value: Tensor, wanted: str) -> str:
        index = tuple(bad.nonzero()[0].tolist())
        number = value[index].item()
        found = f"{call.path}: {name} is {number}{_place(index, value.shape, call.batch)}, wanted {wanted}"
        direction = "running inverse" if call.inverse else "running forward"
        return "; ".join([found, direction, *self._facts(call, index if name in ("x", "z") else None)])

    def _facts(self, call: _Call, index: tuple[int, ...] | None) -> Iterator[str]:
        """What the call was given: ranges, and the values at this element."""
        part, given = call.module, dict[str, Tensor]()
        if call.input is not None and call.input.numel():
            entry = ("z" if call.inverse else "x") if isinstance(part, Transform) else "its input"
            given[entry] = call.input
        if isinstance(part, Map) and len(call.args) > 1 and isinstance(call.args[1], Tensor):
            given |= part.named_params(call.args[1])
        for entry, value in given.items():
            here = ""
            if index is not None and call.input is not None and value.shape[: len(index)] == call.input.shape:
                local = value.detach()[index]
                here = f", here {local.item():.4g}" if local.ndim == 0 else f", here {_range(local)}"
            yield f"{entry} is {_range(value)}{here}"
        for entry, parameter in part.named_parameters(recurse=False):
            yield f"{entry} is {_range(parameter)}"


class _Batches:
    """Which leftmost dims of what enters a call are batch dims."""

    def __init__(self, root: nn.Module) -> None:
        self.flows = {id(flow.transform): flow for flow in root.modules() if isinstance(flow, Flow)}

    def __call__(
        self, part: nn.Module, args: tuple[Any, ...], inverse: bool, outer: torch.Size | None
    ) -> torch.Size | None:
        if not args or not isinstance(args[0], Tensor):
            return outer
        if isinstance(part, Distribution):
            event_ndim = part.event_ndim
        elif id(part) in self.flows:
            flow = self.flows[id(part)]
            event_ndim = len(flow.base.event_shape) if inverse else flow.event_ndim
        elif outer is None and isinstance(part, Transform):
            event_ndim = part.out_ndim if inverse else part.in_ndim
        else:
            return outer
        return args[0].shape[: max(args[0].ndim - event_ndim, 0)]


def _place(index: tuple[int, ...], shape: torch.Size, batch: torch.Size | None) -> str:
    """`index` as example and element, if the shape begins with the batch."""
    if batch is None or shape[: len(batch)] != batch:
        return f" at index {_plain(index)}" if index else ""
    example, element = index[: len(batch)], index[len(batch) :]
    return (f" in example {_plain(example)}" if example else "") + (f", element {_plain(element)}" if element else "")


def _plain(index: tuple[int, ...]) -> str:
    return str(index[0]) if len(index) == 1 else str(index)


def _range(value: Tensor) -> str:
    """From where to where the values go, and how many are not finite."""
    value = value.detach()
    finite = value[value.isfinite()]
    beyond = value.numel() - finite.numel()
    numbers = f"from {finite.min().item():.4g} to {finite.max().item():.4g}" if finite.numel() else "never finite"
    return numbers + (f" and not finite in {beyond} of {value.numel()}" if beyond and finite.numel() else "")


# ---------------------------------------------------------------------------------------------------------------------
# How good an inverse is


@dataclass(frozen=True, eq=False)
class InverseCall:
    """One x = f^-1(z), element by element. Tensors have the shape of z.

    Attributes:
        error: abs(f(x) - z).
        residual: the error in units of eps (1 + abs(z) + abs(x) dz/dx), what rounding z and x alone may cost. Where
            an element of z depends on several of x, the largest ones of the example stand in it.
        conditioning: abs(dx/dz), what an error in z costs in x; None where an element depends on several.
        iterations: of a search, until the element had converged; None for a closed form.
        converged: whether it has, by the stopping rule of the search; None for a closed form.
        batch: how many of the leftmost dims tell examples apart.
    """

    error: Tensor
    residual: Tensor
    conditioning: Tensor | None
    iterations: Tensor | None
    converged: Tensor | None
    batch: int


@dataclass(frozen=True, eq=False)
class Certificate:
    """How well the inverses of one layer came out, over all calls.

    Attributes:
        path: as `get_submodule` takes it.
        kind: class of the layer and of its map.
        calls: of the layer: f is its whole forward direction, with its nets run again.
        map_calls: of its map, if it has one: f is the map at the parameters it was given.
        tolerance: the largest residual that counts as rounding.
    """

    path: str
    kind: str
    calls: list[InverseCall] = field(default_factory=list)
    map_calls: list[InverseCall] = field(default_factory=list)
    tolerance: float = 64.0

    @property
    def _closest(self) -> list[InverseCall]:
        return self.map_calls or self.calls

    @property
    def numerical(self) -> bool:
        """Whether the inverse is found by a search."""
        return any(call.iterations is not None for call in self._closest)

    @property
    def residual(self) -> float:
        """The largest residual of an element, of the map if there is one."""
        return max(_largest(call.residual) for call in self._closest)

    @property
    def round_trip(self) -> float:
        """The largest abs(f(x) - z) of the whole layer."""
        return max(_largest(call.error) for call in self.calls or self.map_calls)

    @property
    def worst(self) -> tuple[int, ...]:
        """The example with the largest residual."""
        call = max(self._closest, key=lambda call: _largest(call.residual))
        flat = call.residual.nan_to_num(nan=math.inf, posinf=math.inf).flatten()
        index = torch.unravel_index(flat.argmax(), call.residual.shape) if flat.numel() else ()
        return tuple(int(i) for i in index)[: call.batch]

    @property
    def iterations(self) -> int | None:
        """The most iterations of an element; None for a closed form."""
        counts = [int(c.iterations.max()) for c in self._closest if c.iterations is not None and c.iterations.numel()]
        return max(counts, default=None)

    @property
    def converged(self) -> float | None:
        """The fraction of elements that have converged; None for a closed form."""
        found = [call.converged.flatten() for call in self._closest if call.converged is not None]
        return torch.cat(found).double().mean().item() if found else None

    @property
    def conditioning(self) -> float | None:
        """The largest abs(dx/dz) of an element, if it is known."""
        return max((_largest(c.conditioning) for c in self._closest if c.conditioning is not None), default=None)

    @property
    def ok(self) -> bool:
        """Whether every element has converged, and no residual is above the tolerance, in the whole layer either."""
        largest = max(_largest(call.residual) for call in [*self.calls, *self.map_calls])
        return largest <= self.tolerance and self.converged in (None, 1.0)


class Certificates:
    """What `inverse_certificates` gives: one certificate for each layer whose inverse ran, in the order of the first.

    `ok` says whether all of them are good; `print` shows the table; index by path for one. Where layers ran forward
    alone, as in samples of an inverse autoregressive flow, there is nothing to certify: the table is empty, and `ok`.
    """

    def __init__(self) -> None:
        self._found: dict[str, Certificate] = {}
        self._ran = False

    @property
    def ok(self) -> bool:
        """Whether some layer ran, and all inverses that did are good."""
        return self._ran and all(certificate.ok for certificate in self)

    def __iter__(self) -> Iterator[Certificate]:
        return iter(self._found.values())

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, path: str) -> Certificate:
        if path not in self._found:
            raise KeyError(f"no inverse of {path!r} ran; there are {', '.join(self._found) or 'none'}")
        return self._found[path]

    def to_markdown(self) -> str:
        """The table in Markdown."""
        return markdown_table(_HEADINGS, self._entries(), left=2)

    def __str__(self) -> str:
        if not self._found:
            return "no inverse ran: " + ("every layer ran forward" if self._ran else "no layer ran")
        table = text_table(_HEADINGS, self._entries(), left=2, width=120)
        notes = (
            "residual: abs(f(x) - z) in units of eps (1 + abs(z) + abs(x) dz/dx), of the worst element",
            "round trip: abs(f(x) - z) of the whole layer; dx/dz: what an error in z costs in x, at most",
        )
        return "\n".join([table, "", *notes])

    def _entries(self) -> list[list[str]]:
        return [
            [
                certificate.path,
                certificate.kind,
                f"{certificate.residual:.3g}",
                f"{certificate.round_trip:.2g}",
                _plain(certificate.worst) if certificate.worst else "",
                "" if certificate.iterations is None else str(certificate.iterations),
                "" if certificate.converged is None else f"{100 * certificate.converged:.4g} %",
                "" if certificate.conditioning is None else f"{certificate.conditioning:.3g}",
                "yes" if certificate.ok else "NO",
            ]
            for certificate in self
        ]


_HEADINGS = ("layer", "kind", "residual", "round trip", "example", "iterations", "converged", "dx/dz", "ok")


@contextmanager
def inverse_certificates(module: nn.Module, *, tolerance: float = 64.0) -> Iterator[Certificates]:
    """While the context lasts, every inverse that a layer of `module` runs is certified: x is put through f again.

    The report that the context gives has, for every layer, the residual of f(x) = z; for searches their iterations and
    whether they converged; and how ill-conditioned the inverse was. Nets run a second time; without this context
    nothing is counted or kept. Layers whose forward direction draws noise have no f, and are left out.

    The second run is in eval mode. A net with dropout in train mode therefore fails, since it is no function there.

    Args:
        module: a flow, or any module that holds transforms; run eagerly.
        tolerance: the largest residual that counts as rounding.

    Raises:
        TypeError: if `module` is none.
        ValueError: if the tolerance is not above 0.

    >>> import torch, flowkit as fk
    >>> net = fk.nets.MLP((1,), (1, 14), hidden=(8,))
    >>> flow = fk.Flow(fk.Chain(couple=fk.MixLogisticCDFCoupling(net, 4, dim=-1), norm=fk.ActNorm((2,))), fk.Normal(2))
    >>> with inverse_certificates(flow) as report:
    ...     x = flow.sample((64,))
    >>> report.ok, report["transform.couple"].converged, report["transform.couple"].map_calls[0].iterations.shape
    (True, 1.0, torch.Size([64, 1]))
    """
    check_kind("inverse_certificates", "module", module, nn.Module, "a flow, or a module that holds transforms")
    if not tolerance > 0:
        raise ValueError(f"inverse_certificates: tolerance is {tolerance}, wanted above 0")
    report = Certificates()
    with recorded_solves() as solves:
        notary = _Notary(module, report, solves, tolerance)
        with intercepted(notary.transforms, notary.before, notary.after, failed=notary.failed):
            yield report


@dataclass
class _Certified:
    """A call that is running, and how much there was before it."""

    part: nn.Module
    batch: torch.Size | None
    solves: int
    map_calls: int = 0


class _Notary:
    """What `inverse_certificates` does around each call."""

    def __init__(self, root: nn.Module, report: Certificates, solves: list[Solve], tolerance: float) -> None:
        self.report, self.solves, self.tolerance = report, solves, tolerance
        self.layers: dict[nn.Module, Layer] = {}
        for layer in layers(root):
            part = layer.inner
            if isinstance(part, Transform) and not isinstance(part, Chain) and not part.stochastic_forward:
                self.layers.setdefault(part, layer)
        schemes = [part for part in self.layers if not isinstance(part, Map)]
        self.maps = {child for part in schemes for child in part.children() if isinstance(child, Map)}
        self.batch_of = _Batches(root)
        # All of them: the outermost call tells which dims are batch dims.
        self.transforms = [part for part in root.modules() if isinstance(part, Transform)]
        self.running: list[_Certified] = []
        self.checking = False

    def before(self, part: nn.Module, args: tuple[Any, ...], inverse: bool) -> None:
        batch = self.batch_of(part, args, inverse, self.running[-1].batch if self.running else None)
        known = self.report._found.get(self.layers[part].path) if part in self.layers else None
        self.running.append(_Certified(part, batch, len(self.solves), len(known.map_calls) if known else 0))

    def after(self, part: nn.Module, args: tuple[Any, ...], result: Any, inverse: bool) -> None:
        call = self.running.pop()
        self.report._ran = True
        if not inverse or self.checking:
            return
        if part in self.layers:
            layer = self.layers[part]
        elif part in self.maps and self.running and self.running[-1].part in self.layers:
            layer = self.layers[self.running[-1].part]  # several schemes may share a map
        else:
            return
        new = Certificate(layer.path, layer.kind, tolerance=self.tolerance)
        certificate = self.report._found.setdefault(layer.path, new)
        calls = certificate.calls if part is layer.inner else certificate.map_calls
        inside = certificate.map_calls[call.map_calls :] if part is layer.inner else []
        assert isinstance(part, Transform)
        modes = {module: module.training for module in part.modules()}
        self.checking = True
        try:
            part.eval()
            with torch.no_grad():
                batch_ndim = 0 if call.batch is None else len(call.batch)
                calls.append(_certified(part, args, result, self.solves[call.solves :], inside, batch_ndim))
        finally:
            self.checking = False
            for module, mode in modes.items():
                module.training = mode

    def failed(self, part: nn.Module) -> None:
        self.running.pop()


def _certified(
    part: Transform,
    args: tuple[Any, ...],
    result: tuple[Tensor, Tensor],
    ran: Sequence[Solve],
    inside: Sequence[InverseCall],
    batch: int,
) -> InverseCall:
    """The certificate of `result = part.inverse(*args)`, in which searches ran, and inverses of a map."""
    (z, context), (x, term) = (*args, None)[:2], result
    again, log_slope = part(x, context)
    error = (again - z).abs()
    conditioning: Tensor | None = None
    if part.in_ndim == 0:
        conditioning, size = term.exp(), z.abs() + x.abs() * log_slope.exp()
    else:
        # dz/dx is known of the map alone, whose steepest element is its best conditioned one.
        known = [
            call.conditioning.min().item()
            for call in inside
            if call.conditioning is not None and call.conditioning.numel()
        ]
        slope = max((1 / least if least > 0 else math.inf for least in known), default=1.0)
        largest = (t.abs().amax(tuple(range(-n, 0))) for t, n in ((z, part.out_ndim), (x, part.in_ndim)))
        of_z, of_x = (t.reshape(*t.shape, *[1] * part.out_ndim) for t in largest)
        size = of_z + of_x * max(slope, 1.0)
    residual = (error / (torch.finfo(z.dtype).eps * (1 + size))).nan_to_num(nan=math.inf, posinf=math.inf)
    iterations, converged = None, None
    if ran:
        iterations = torch.cat([solve.iterations for solve in ran])
        converged = torch.cat([solve.converged for solve in ran])
        if iterations.numel() == z.numel():
            iterations, converged = iterations.reshape(z.shape), converged.reshape(z.shape)
    return InverseCall(error, residual, conditioning, iterations, converged, batch)


def _largest(value: Tensor) -> float:
    return value.nan_to_num(nan=math.inf, posinf=math.inf).max().item() if value.numel() else 0.0
