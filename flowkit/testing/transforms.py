"""The properties of transforms."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError
from torch.distributions import constraints
from torch.func import functional_call, jacrev, stack_module_state, vmap

from flowkit.errors import DomainError, ShapeError
from flowkit.functional.precision import log_term_dtype
from flowkit.testing.case import COUNT, Module, TransformCase, bounds_of, perturb_
from flowkit.testing.finding import (
    GRADIENT,
    LAW,
    LOG_TERM,
    PROPERTIES,
    ROUNDING,
    ROUNDINGS,
    SINGLE,
    Finding,
    abbreviated,
    agree,
    check_all,
    finite,
    of_transforms,
    same,
)
from flowkit.transform import Inverse, Transform, run_forward


def check_transform(
    transform: Transform,
    *,
    event_shape: Sequence[int],
    context: Tensor | None = None,
    inputs: Tensor | None = None,
    latents: Tensor | None = None,
    perturb: float = 0.1,
    tails: float = 6.0,
    count: int = COUNT,
    skip: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Run every property of `PROPERTIES` on a transform. It passes, or says what is wrong.

    The transform is left as it is: copies are checked, in float64 and eval mode. What draws noise must do so through
    the generator that it is given.

    Args:
        transform: any transform; its two booleans say which laws hold.
        event_shape: shape of one x, without batch dims. () checks an elementwise map on single numbers.
        context: (N, *event of the context), any N: one context for each example, in turn. None for a transform that
            reads none; what is given must make a difference.
        inputs: (N, *event_shape), drawn from `transform.domain` if not given.
        latents: (N, *event of z), drawn from `transform.codomain` if not given.
        perturb: deviation of the noise that is added to every trainable parameter of the copy, so that a part that
            starts as the identity is tested away from it; 0 for parameters that must stay as they are.
        tails: how much wider than normal the last quarter of the drawn real examples is; 1 for a whole flow that
            saturates there, as behind a logit, where no arithmetic keeps the digits.
        count: how many examples to run; inputs, latents and contexts are taken in turn.
        skip: names of properties to leave out.
        seed: of everything that is drawn.

    Raises:
        ConformanceError: for the first property that fails; it names those that fail besides.
        ValueError: for a name in `skip` that is no property, or a domain that no bounds describe.

    >>> import flowkit as fk
    >>> check_transform(fk.Logit(margin=0.05), event_shape=(3,), skip=["compiles"])
    """
    case = TransformCase.of(
        transform,
        event_shape=event_shape,
        context=context,
        inputs=inputs,
        latents=latents,
        perturb=perturb,
        tails=tails,
        count=count,
        seed=seed,
    )
    check_all(case, PROPERTIES, skip)


# ---------------------------------------------------------------------------------------------------------------------
# Transforms: what comes out, before whether it is right


@of_transforms("noise that is not drawn with the generator that was given, or a boolean that does not say it is drawn")
def noise(case: TransformCase) -> None:
    """Noise comes from the given generator alone: one seed one draw, the global generator stays; else there is none."""
    for side in case.sides:
        x, context = side.batch(len(side.inputs))
        with torch.no_grad():
            torch.manual_seed(4)
            before = torch.random.get_rng_state()
            first = side.run(x, context, generator=side.generator(5))
            if not torch.equal(torch.random.get_rng_state(), before):
                raise Finding(f"{side.direction} draws from the global generator, in spite of the one given, if any")
            if not side.transform.stochastic_forward:
                continue
            again = side.run(x, context, generator=side.generator(5))
            for name, one, two in zip("zl", again, first, strict=True):
                same(f"{side.direction}: {name} of a second call with the same seed", one, two)
            other = side.run(x, context, generator=side.generator(7))
            if all(torch.equal(one, two) for one, two in zip(other, first, strict=True)):
                raise Finding(f"{side.direction} should draw noise, but another seed gives the same")
            if not all(value.isfinite().all() for value in side.transform(x, context)):
                raise Finding(f"{side.direction} without a generator is not finite")


@of_transforms(
    "state that a call changes (running averages, caches, a flag for the first call), an in-place operation on x, or a "
    "branch on `self.training` besides dropout"
)
def purity(case: TransformCase) -> None:
    """A call changes neither the part nor its arguments, gives the same twice, and the same in train and eval mode.

    With dropout in the part, the two modes may differ.
    """
    for side in case.sides:
        with torch.no_grad():
            x, context = side.batch(len(side.inputs))  # copies
            wanted = side.run(x, context, transform=copy.deepcopy(side.transform))
            same(f"{side.direction}: x after the call", x, side.inputs)
        for training in (False, True):
            mode = f"{side.direction} in {'train' if training else 'eval'} mode"
            transform = copy.deepcopy(side.transform).train(training)
            x = side.inputs.clone()
            context = None if side.context is None else side.context.clone()
            with torch.no_grad():
                first = side.run(x, context, transform=transform)
                same(f"{mode}: x after the call", x, side.inputs)
                if context is not None and side.context is not None:
                    same(f"{mode}: the context after the call", context, side.context)
                for name, value in replace(side, transform=transform).state().items():
                    same(f"{mode}: {name} after the call", value, side.state()[name])
                if training and has_dropout(transform):
                    continue
                second = side.run(x, context, transform=transform)
            for name, one, two, three in zip("zl", first, second, wanted, strict=True):
                same(f"{mode}: {name} of a second call, against the first,", two, one)
                same(f"{mode}: {name}, against that in eval mode,", one, three)


def has_dropout(module: nn.Module) -> bool:
    """Whether some dropout in it has a probability above 0."""
    return any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in module.modules())


@of_transforms("a batch dim taken for an event dim, or `in_ndim` and `out_ndim` that say something else than the code")
def batch_shapes(case: TransformCase) -> None:
    """Any batch dims pass, none and empty ones included: z is (*batch, *latent event), l is (*batch)."""
    for side in case.sides:
        event_ndim = side.transform.in_ndim
        extra = len(side.event_shape) - event_ndim  # an elementwise map has part of the event as batch dims
        if extra < 0:
            raise Finding(f"in_ndim is {event_ndim}, but one x has shape {tuple(side.event_shape)}")
        with torch.no_grad():
            latent = side.run()[0].shape[1:]
            for batch in [(), (3,), (2, 3), (0,), (2, 0)]:
                x, context = side.batch(*batch)
                z, l = side.run(x, context)
                found = f"{side.direction} for a batch {batch}"
                if z.shape != (*batch, *latent):
                    raise Finding(f"{found}: z has shape {tuple(z.shape)}, wanted {(*batch, *latent)}")
                if l.shape != (*batch, *side.event_shape[:extra]):
                    wanted = (*batch, *side.event_shape[:extra])
                    raise Finding(f"{found}: l has shape {tuple(l.shape)}, wanted {wanted}")
        if len(latent) - extra != side.transform.out_ndim:
            raise Finding(
                f"{side.direction}: out_ndim is {side.transform.out_ndim}, but in_ndim is {event_ndim} and an event of "
                f"shape {tuple(side.event_shape)} becomes {tuple(latent)}"
            )


# ---------------------------------------------------------------------------------------------------------------------
# Transforms: the laws


def _undone(case: TransformCase) -> None:
    """inverse(forward(x)) gives (x, -l)."""
    back = "inverse" if case.direction == "forward" else "forward"
    with torch.no_grad():
        z, l = case.run()
        x, minus = run_forward(Inverse(case.transform), z, case.context, None)
    allowed = _tolerance(LAW, x, z, l, minus)
    there = Sensitivity(case.transform, case.inputs, case.context)
    again = Sensitivity(Inverse(case.transform), z, case.context)
    agree(f"{back}({case.direction}(x))", x, case.inputs, allowed, case.inputs, slack=again.of_z)
    agree(
        f"the log-term of {back} after {case.direction}, which is minus its own,",
        minus,
        -l,
        allowed,
        case.inputs,
        slack=lambda: there.of_l() + again.of_l(),
    )


class Sensitivity:
    """How far a few roundings of each element of x may throw off z and l, found when it is asked for.

    No arithmetic can do better, since the next number is as good an x. It is found from derivatives, not differences:
    those of a part with noise of its own are large, and would excuse the noise. Where a direction draws noise it is 0.
    """

    def __init__(self, transform: Transform, x: Tensor, context: Tensor | None) -> None:
        self._given = transform, x, context

    @cached_property
    def _both(self) -> tuple[Tensor, Tensor]:
        transform, x, context = self._given
        noisy = transform.stochastic_forward
        x = x.detach().clone().requires_grad_(x.is_floating_point() and not noisy)
        with torch.enable_grad():
            z, l = run_forward(transform, x, context, torch.Generator(x.device).manual_seed(0) if noisy else None)
        return _thrown_off(z, x), _thrown_off(l, x)

    def of_z(self) -> Tensor:
        """Of each element of z."""
        return self._both[0]

    def of_l(self) -> Tensor:
        """Of each log-term."""
        return self._both[1]


def _thrown_off(value: Tensor, x: Tensor) -> Tensor:
    """The sum of |d value / dx| |x| over the elements of x, times so many roundings; infinite at an infinite slope."""
    if not value.requires_grad:
        return torch.zeros(value.shape, dtype=torch.float64, device=value.device)
    step = ROUNDINGS * torch.finfo(torch.float64).eps * x.detach().abs()
    sums = []
    for each in value.reshape(len(value), -1).unbind(1):  # examples do not influence one another
        (slope,) = torch.autograd.grad(each.sum(), x, retain_graph=True, materialize_grads=True)
        sums.append((slope.abs() * step).nan_to_num(0.0, math.inf).reshape(len(x), -1).sum(1))
    return torch.stack(sums, 1).view_as(value) if sums else torch.zeros_like(value)


def _tolerance(tolerance: float, *results: Tensor) -> float:
    """Of float64; what comes out as float32 has lost its digits, and that is for `dtypes` to say."""
    kept = all(value.dtype == torch.float64 for value in results if value.is_floating_point())
    return tolerance if kept else SINGLE


@of_transforms(
    "the two directions read different parameters, halves or orders; values are clipped or clamped; a sign of l",
    applies=lambda case: not case.transform.stochastic_inverse,
)
def law_1(case: TransformCase) -> None:
    """If the inverse draws no noise, inverse(forward(x)) gives (x, -l)."""
    _undone(case)


@of_transforms(
    "the two directions read different parameters, halves or orders; values are clipped or clamped; a sign of l",
    applies=lambda case: not case.transform.stochastic_forward,
)
def law_2(case: TransformCase) -> None:
    """If the forward draws no noise, forward(inverse(z)) gives (z, -l)."""
    _undone(case.turned)


@of_transforms(
    "a sign; a sum over the wrong dims; a missing factor, such as the H W of a map shared by all pixels; the log-term "
    "of the other direction",
    applies=lambda case: case.bijective and case.inputs.is_floating_point(),
)
def log_term(case: TransformCase) -> None:
    """Where no noise is drawn, l of either direction is log|det| of its Jacobian, as autograd finds it."""
    for side in case.sides:
        # Examples do not influence one another, so the sum over them has all their Jacobians as its own.
        jacobian = torch.autograd.functional.jacobian(
            lambda x, side=side: side.run(x, side.context)[0].reshape(len(x), -1).sum(0), side.inputs
        )
        matrices = jacobian.reshape(*jacobian.shape[:2], -1).movedim(1, 0)
        if matrices.shape[1] != matrices.shape[2]:
            raise Finding(
                f"{side.direction} takes {matrices.shape[2]} elements to {matrices.shape[1]}: that is no bijection"
            )
        with torch.no_grad():
            z, l = side.run()
        agree(
            f"{side.direction}: l against log|det| of the Jacobian,",
            _summed(l),
            torch.linalg.slogdet(matrices).logabsdet,
            _tolerance(LOG_TERM, z, l),
            side.inputs,
            relative=False,
            slack=lambda side=side, z=z: _slack_of_slopes(side, z),  # type: ignore[misc]
        )


def _summed(l: Tensor) -> Tensor:
    """The log-term of each example; an elementwise map has one for each element."""
    return l.reshape(len(l), -1).sum(1)


def _slack_of_slopes(case: TransformCase, z: Tensor) -> Tensor:
    """How far off the log-determinant of an automatic Jacobian may be.

    Automatic derivatives are made from x, or from the z that was kept: p (1 - p) for a sigmoid. Where z is rounded to a
    few values, as near to 1, it is they that lack the digits, and a closed form of x has them.
    """
    by_x = Sensitivity(case.transform, case.inputs, case.context)
    by_z = Sensitivity(Inverse(case.transform), z, case.context)
    return _summed(by_x.of_l()) + _summed(by_z.of_l())


@of_transforms("`domain` or `codomain` names another set; integers leave as floats, or the other way")
def domain(case: TransformCase) -> None:
    """Values of `domain` go to finite values of `codomain`, and integers come back as integers."""
    transform = case.transform
    with torch.no_grad():
        z, l = case.run()
        x, _ = case.turned.run()
    finite("z of values in the domain", z, case.inputs)
    finite("l of values in the domain", l, case.inputs)
    if transform.codomain is not None and not bool(transform.codomain.check(z).all()):
        raise Finding(f"z has values outside the codomain {transform.codomain}: {abbreviated(z)}")
    if transform.domain is not None and transform.domain.is_discrete:
        if x.is_floating_point():
            raise Finding(f"the domain {transform.domain} is discrete, but inverse gives {x.dtype}")
        if not bool(transform.domain.check(x).all()):
            raise Finding(f"inverse gives values outside the domain {transform.domain}: {abbreviated(x)}")


@of_transforms(
    "a log-term in the dtype of x, wanted in `flowkit.functional.log_term_dtype(x.dtype)`; a constant tensor of "
    "a dtype of its own"
)
def dtypes(case: TransformCase) -> None:
    """z has the dtype of x, and l has promote_types(x.dtype, float32): in float64, float32 and bfloat16.

    bfloat16 may be refused by a `DomainError`. Integers have no such dtype: the module's counts for them.
    """
    for side in case.sides:
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            transform = copy.deepcopy(side.transform).to(dtype)
            x, context = (cast(value, dtype) for value in (side.inputs, side.context))
            try:
                with torch.no_grad():
                    results = side.run(x, context, transform=transform)
            except DomainError:
                if dtype is torch.bfloat16:
                    continue
                raise
            _check_dtypes(f"{side.direction} in {dtype}", x, results, dtype)


@of_transforms("what a net gives under autocast, not cast back to the dtype of x; a product of its own under autocast")
def autocast(case: TransformCase) -> None:
    """Under autocast to bfloat16, z and l of float32 inputs are float32, and no NaN."""
    for side in case.sides:
        transform = copy.deepcopy(side.transform).float()
        x, context = (cast(value, torch.float32) for value in (side.inputs, side.context))
        with torch.autocast(side.inputs.device.type, dtype=torch.bfloat16):
            results = side.run(x, context, transform=transform)
        _check_dtypes(f"{side.direction} in torch.float32 under autocast", x, results, torch.float32)
        for name, value in zip("zl", results, strict=True):
            if value.isnan().any():
                raise Finding(f"{side.direction} under autocast: {name} is not a number. Inputs: {abbreviated(x)}")


def cast(value: Any, dtype: torch.dtype) -> Any:
    """A floating tensor in another dtype; anything else as it is."""
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _check_dtypes(what: str, x: Tensor, results: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    z, l = results
    if z.is_floating_point() and z.dtype != dtype:
        raise Finding(f"{what}: z is {z.dtype}, wanted {dtype}")
    if not (z.is_floating_point() or x.is_floating_point()):
        raise Finding(f"{what}: integers go to integers, {z.dtype}")
    if l.dtype != log_term_dtype(dtype):
        raise Finding(f"{what}: l is {l.dtype}, wanted {log_term_dtype(dtype)}")


@of_transforms(
    "a difference of numbers that nearly cancel, an exp that overflows, a searched bin that no value falls into, an "
    "assertion about rounding; where it is the inverse, a clamp or a fixed tolerance of a solver",
    name="float32",
    applies=lambda case: case.bijective and case.inputs.is_floating_point(),
)
def in_float32(case: TransformCase) -> None:
    """In float32, z, l and the way back are as right as rounding allows: finite, and near what float64 gives.

    How far rounding may throw them off is found by moving inputs and latents by some roundings in float64.
    """
    for side in case.sides:
        single = copy.deepcopy(side.transform).float()
        exact = copy.deepcopy(single).double()  # of the same, rounded parameters
        x, context = side.inputs.float(), cast(side.context, torch.float32)
        side = replace(side, inputs=x.double(), context=cast(context, torch.float64), transform=exact)
        with torch.no_grad():
            results = side.run(x, context, transform=single)
            for name, value in zip("zl", results, strict=True):
                finite(f"{side.direction} in float32: {name}", value, x)
            wanted = side.run()
            loose = _rounded(side.transform, side.inputs, side.context)
            for name, got, each, most in zip("zl", results, wanted, loose, strict=True):
                agree(f"{side.direction} in float32: {name}, against float64,", got, each, most, x, relative=False)
            back, _ = run_forward(Inverse(single), results[0], context, None)
            most = _rounded(Inverse(side.transform), results[0].double(), side.context)[0]
            what = f"{'inverse' if side.direction == 'forward' else 'forward'}({side.direction}(x)) in float32"
            agree(what, back, x, most, x, relative=False)


def _rounded(transform: Transform, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """How far z and l may be off in float32, at every element: four times what 32 roundings of x do to them.

    So many at once, because next to a knot or in a flat place the first of them tells little of the others.
    """
    step = 32 * torch.finfo(torch.float32).eps
    random = torch.Generator(x.device).manual_seed(0)
    z, l = run_forward(transform, x, context, None)
    moved_z, moved_l = step * (1 + z.abs()), step * (1 + l.abs())
    signs = torch.randint(0, 2, (2, *x.shape), generator=random, device=x.device) * 2.0 - 1
    for each in (*signs, *-signs):  # both ways for every element: one way may be flat and the other steep
        near = _kept_in(transform.domain, x + step * each * (1 + x.abs()))
        near_z, near_l = run_forward(transform, near, context, None)
        moved_z = torch.maximum(moved_z, (near_z - z).abs().nan_to_num(math.inf))
        moved_l = torch.maximum(moved_l, (near_l - l).abs().nan_to_num(math.inf))
    return 4 * moved_z, 4 * moved_l


def _kept_in(domain: constraints.Constraint | None, x: Tensor) -> Tensor:
    _, low, high = bounds_of(domain)
    return x if low is None and high is None else x.clamp(low, high)


# ---------------------------------------------------------------------------------------------------------------------
# Transforms: examples


@of_transforms(
    "a mean, a norm or a sum over the batch; a formula that reads the batch size; a view of strided memory",
    applies=lambda case: not (case.transform.stochastic_forward and case.transform.stochastic_inverse),
)
def independence(case: TransformCase) -> None:
    """What comes of an example depends neither on its companions nor on how it lies in memory."""
    for side in case.sides:
        if side.transform.stochastic_forward:
            continue  # the noise of an example depends on its place
        with torch.no_grad():
            wanted = side.run()
            count = len(side.inputs)
            alone = [side.run(x, None if side.context is None else side.context[i]) for i, x in enumerate(side.inputs)]
            strided = side.run(_strided(side.inputs), None if side.context is None else _strided(side.context))
            first, second = zip(*side.run(*side.batch(2, count)), strict=True)
        others = {
            "each example alone": [torch.stack(values) for values in zip(*alone, strict=True)],
            "inputs with other strides": strided,
            f"the first half of the batch {(2, count)}": first,
            f"the second half of the batch {(2, count)}": second,
        }
        sensitivity = Sensitivity(side.transform, side.inputs, side.context)
        for of_what, (z, l) in others.items():
            for name, got, one, slack in (("z", z, wanted[0], sensitivity.of_z), ("l", l, wanted[1], sensitivity.of_l)):
                agree(f"{side.direction}: {name} of {of_what}", got, one, ROUNDING, side.inputs, slack=slack)


def _strided(value: Tensor) -> Tensor:
    """The same values, their dims in reversed order in memory."""
    dims = tuple(range(value.ndim))[::-1]
    return value.permute(dims).contiguous().permute(dims)


@of_transforms(
    "no `self.check_event(name, value, event)` at the door, so torch complains for the part, or broadcasts silently"
)
def shape_errors(case: TransformCase) -> None:
    """A wrong shape raises a `ShapeError` that names the part or one inside; sizes that do not matter may pass.

    A net inside may complain of them in words of its own.
    """
    for side in case.sides:
        event, context = side.event_shape, None if side.context is None else side.context[0]
        small = event[len(event) - side.transform.in_ndim :][1:]
        if side.transform.in_ndim:
            _refused(side, f"x of shape {tuple(small)}", side.inputs.new_zeros(small), None, may_pass=False)
        for dim in range(len(event)):
            for size in {event[dim] + 1, 1} - {event[dim]}:
                shape = (*event[:dim], size, *event[dim + 1 :])
                x = torch.full(shape, side.inputs.flatten()[0].item()).to(side.inputs)
                _refused(side, f"x of shape {shape}", x, context, may_pass=True)
        if context is not None:
            _refused(side, "no context", side.inputs[0], None, may_pass=False)
            for dim in range(context.ndim):
                wider = torch.cat([context, context.narrow(dim, 0, 1)], dim)
                _refused(side, f"a context of shape {tuple(wider.shape)}", side.inputs[0], wider, may_pass=True)


def _refused(side: TransformCase, what: str, x: Tensor, context: Tensor | None, *, may_pass: bool) -> None:
    names = {type(module).__name__ for module in side.transform.modules()}
    names |= {module.path for module in side.transform.modules() if isinstance(module, Transform)}
    try:
        with torch.no_grad():
            z, _ = side.run(x, context)
    except ShapeError as error:
        if not any(name in str(error) for name in names):
            raise Finding(f"{side.direction} for {what}: the ShapeError names no part: {error}") from None
        return
    except Exception as error:
        if _complains_inside_a_net(error.__traceback__):
            return
        came = f"{type(error).__name__}: {error}"
        raise Finding(f"{side.direction} for {what}: wanted a ShapeError, got {came}") from None
    if not may_pass:
        raise Finding(f"{side.direction} for {what}: wanted a ShapeError, it passed")
    if z.numel() != x.numel():
        raise Finding(f"{side.direction} for {what}: wanted a ShapeError, it became {tuple(z.shape)}")


def _complains_inside_a_net(trace: TracebackType | None) -> bool:
    """Whether an error comes out of a module that is no transform: what a net says of its input is its own affair."""
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and not isinstance(owner, Transform):
            return True
        trace = trace.tb_next
    return False


@of_transforms("the context is not handed on, or not read", applies=lambda case: case.context is not None)
def context_read(case: TransformCase) -> None:
    """A context that is given makes a difference, in both directions."""
    for side in case.sides:
        if side.context is None:
            continue
        with torch.no_grad():
            before, after = side.run(), side.run(side.inputs, side.context.roll(1, 0))
        if all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            raise Finding(f"{side.direction}: examples that exchange their contexts come out the same")


# ---------------------------------------------------------------------------------------------------------------------
# Transforms: gradients


@of_transforms(
    "a detach, a `.data`, a `no_grad` or a clamp on the way; a backward of its own that is not the derivative",
)
def gradients(case: TransformCase) -> None:
    """`torch.autograd.gradcheck` (fast mode) by inputs, context and parameters, in both directions."""
    for side in case.sides:
        x, context = side.batch(3)
        gradcheck(
            side.transform,
            [x, context],
            lambda *values, side=side: (
                values,
                {"generator": side.generator()} if side.transform.stochastic_forward else {},
            ),
            side.direction,
        )


def gradcheck(
    module: nn.Module,
    values: Sequence[Tensor | None],
    call: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]],
    what: str,
    names: Sequence[str] = ("x", "context"),
) -> None:
    """Gradcheck of `module(*args, **kwargs)`, with `args, kwargs = call(*values)`, by values and parameters."""
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    places = [i for i, value in enumerate(values) if value is not None and value.is_floating_point()]
    given = [value for value in values if value is not None and value.is_floating_point()]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in [*given, *map(module.get_parameter, trained)]]
    if not leaves:
        return

    def function(*leaves: Tensor) -> tuple[Tensor, ...]:
        arguments = list(values)
        for i, leaf in zip(places, leaves, strict=False):
            arguments[i] = leaf
        args, kwargs = call(*arguments)
        result = functional_call(module, dict(zip(trained, leaves[len(places) :], strict=True)), args, kwargs)
        result = result if isinstance(result, tuple) else (result,)
        # A result that was detached must not be passed over as one that depends on nothing.
        nothing = 0 * sum(leaf.sum() for leaf in leaves)
        return tuple(value + nothing for value in result if value.is_floating_point())

    step = 1e-6
    # Of results so large that rounding spoils their differences, as much as it may.
    largest = max(value.detach().abs().nan_to_num(0.0, 0.0, 0.0).max().item() for value in function(*leaves))
    atol = 1e-5 + 4 * torch.finfo(torch.float64).eps * largest / step
    try:
        torch.autograd.gradcheck(function, leaves, eps=step, atol=atol, rtol=GRADIENT, nondet_tol=1e-9, fast_mode=True)
    except GradcheckError as error:
        named = [names[i] for i in places] + trained
        raise Finding(f"{what}: inputs of the gradcheck in order: {', '.join(named)}. {error}") from None


@of_transforms(
    "a parameter that nothing reads, or that is read detached; DDP refuses such a part",
    applies=lambda case: any(parameter.requires_grad for parameter in case.transform.parameters()),
)
def parameter_gradients(case: TransformCase) -> None:
    """Every parameter that requires a gradient gets one, and a finite one, in training mode."""
    for side in case.sides:
        if side.direction == "inverse" and side.transform.stochastic_forward and side.transform.stochastic_inverse:
            continue  # an encoder has no part in decoding
        trained = copy.deepcopy(side.transform).train()
        z, l = side.run(side.inputs, side.context, transform=trained)
        check_gradients(trained, (z, l), side.direction)


def check_gradients(module: nn.Module, results: Sequence[Tensor], what: str) -> None:
    """A gradient reaches every parameter that wants one, and is finite."""
    wanted = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    results = [value for value in results if value.is_floating_point()]
    if not wanted:
        return
    total = sum((value * torch.linspace(1, 2, value.numel()).to(value).view_as(value)).sum() for value in results)
    if not (isinstance(total, Tensor) and total.requires_grad):
        raise Finding(f"{what}: no gradient to any parameter, of {', '.join(wanted)}")
    total.backward()
    for name, parameter in wanted.items():
        if parameter.grad is None:
            raise Finding(f"{what}: no gradient to {name}")
        finite(f"{what}: the gradient to {name}", parameter.grad, parameter)


# ---------------------------------------------------------------------------------------------------------------------
# Transforms: execution modes


@of_transforms(
    "a branch on values, a `.item()`, a boolean mask, an `assert` over tensors, a print: what breaks the graph"
)
def compiles(case: TransformCase, backend: str = "aot_eager") -> None:
    """`torch.compile(fullgraph=True)` gives what eager gives, in both directions; the global generator draws noise."""
    for side in case.sides:
        x, context = side.batch(4)
        sensitivity = Sensitivity(side.transform, x, context)
        slacks = sensitivity.of_z, sensitivity.of_l
        compiled_agrees(side.transform, (x, context), backend, side.direction, side.direction == "forward", slacks)


def compiled_agrees(
    module: nn.Module,
    args: tuple[Any, ...],
    backend: str,
    what: str,
    grad: bool,
    slacks: Sequence[Callable[[], Tensor] | None] = (None, None),
) -> None:
    """One graph, and the same results as in eager mode; of each result, what may be off besides."""
    torch._dynamo.reset()  # else parts of one class, compiled one after another, run into the limit of recompilations
    try:
        with torch.set_grad_enabled(grad), _fallback_random(backend), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(1)
            eager = module(*args)
            torch.manual_seed(1)
            compiled = torch.compile(module, fullgraph=True, backend=backend, dynamic=False)(*args)
    finally:
        torch._dynamo.reset()
    eager = eager if isinstance(eager, tuple) else (eager,)
    compiled = compiled if isinstance(compiled, tuple) else (compiled,)
    for name, got, wanted, slack in zip(("first result", "second result"), compiled, eager, slacks, strict=False):
        if got.dtype != wanted.dtype:
            raise Finding(f"{what}: the {name} compiled is {got.dtype}, eager {wanted.dtype}")
        agree(f"{what}: the {name} compiled against eager", got, wanted, LAW, args[0], slack=slack)


@contextmanager
def _fallback_random(backend: str) -> Iterator[None]:
    """Under inductor, the noise of eager mode in place of its own."""
    if backend != "inductor":
        yield
        return
    import torch._inductor.config as config

    with config.patch(fallback_random=True):
        yield


@of_transforms("a branch on values, an in-place write, or an `autograd.Function` without `vmap` or `setup_context`")
def vectorizes(case: TransformCase) -> None:
    """`torch.func.vmap` over examples gives what the batch gives; over copies of the part, what each copy gives."""
    for side in case.sides:
        noisy = side.transform.stochastic_forward
        randomness = "different" if noisy else "error"
        in_dims = (0, None if side.context is None else 0)

        def one(x: Tensor, context: Tensor | None, side: TransformCase = side) -> tuple[Tensor, Tensor]:
            return side.transform(x, context)

        with torch.no_grad():
            got = vmap(one, in_dims, randomness=randomness)(side.inputs, side.context)
            _compare_mapped(f"{side.direction} under vmap", got, side.run(), noisy)
            members = [side.transform, perturb_(copy.deepcopy(side.transform), 0.01, torch.Generator().manual_seed(1))]
            if not side.state():
                continue
            parameters, buffers = stack_module_state(members)

            def member(state: dict[str, Tensor], side: TransformCase = side) -> tuple[Tensor, Tensor]:
                return functional_call(side.transform, state, (side.inputs, side.context))

            got = vmap(member, randomness=randomness)({**parameters, **buffers})
            each = [side.run(side.inputs, side.context, transform=each) for each in members]
            wanted = tuple(torch.stack(results) for results in zip(*each, strict=True))
            _compare_mapped(f"{side.direction} of an ensemble under vmap", got, wanted, noisy)


def _compare_mapped(what: str, got: Sequence[Tensor], wanted: Sequence[Tensor], noisy: bool) -> None:
    for name, one, other in zip("zl", got, wanted, strict=True):
        if noisy and one.shape != other.shape:
            raise Finding(f"{what}: {name} has shape {tuple(one.shape)}, wanted {tuple(other.shape)}")
        if not noisy:
            agree(f"{what}: {name}", one, other, LAW)


@of_transforms("a tensor that is kept from an earlier call, or a parameter reached past the module that owns it")
def functional_state(case: TransformCase) -> None:
    """`torch.func.functional_call` with other parameters gives what a part with those parameters gives."""
    for side in case.sides:
        other = perturb_(copy.deepcopy(side.transform), 0.01, torch.Generator().manual_seed(2))
        state = replace(side, transform=other).state()
        kwargs = {"generator": side.generator()} if side.transform.stochastic_forward else {}
        with torch.no_grad():
            before = side.run()
            got = functional_call(side.transform, state, (side.inputs, side.context), kwargs)
            wanted = side.run(side.inputs, side.context, transform=other)
            for name, one, two in zip("zl", got, wanted, strict=True):
                agree(f"{side.direction} by functional_call: {name}", one, two, ROUNDING, side.inputs)
            for name, one, two in zip("zl", side.run(), before, strict=True):
                same(f"{side.direction} after a functional_call: {name}", one, two)


@of_transforms("an `autograd.Function` without `setup_context`, or an in-place write to what is differentiated")
def functional_gradient(case: TransformCase) -> None:
    """`torch.func.jacrev` of one example, by its input and by the parameters, gives what autograd gives."""
    for side in case.sides:
        x, context = side.batch()
        parameters: dict[str, Tensor] = {n: p for n, p in side.transform.named_parameters() if p.requires_grad}

        def totals(x: Tensor, parameters: dict[str, Tensor], side: TransformCase = side, context: Any = context) -> Any:
            kwargs = {"generator": side.generator()} if side.transform.stochastic_forward else {}
            z, l = functional_call(side.transform, parameters, (x, context), kwargs)
            return tuple(value.sum() for value in (z, l) if value.is_floating_point())

        def found(what: str, got: Sequence[Any], place: Tensor, totals: Any) -> None:
            for gradient, total in zip(got, totals, strict=True):
                (wanted,) = (
                    torch.autograd.grad(total, place, retain_graph=True, materialize_grads=True)
                    if (total.requires_grad)
                    else (torch.zeros_like(place),)
                )
                agree(what, gradient, wanted, LAW)

        if x.is_floating_point():
            leaf = x.clone().requires_grad_()
            results = totals(leaf, parameters)
            found(f"{side.direction}: jacrev by x", jacrev(totals)(x, parameters), leaf, results)
        if parameters:
            results = totals(x, parameters)
            by_name = jacrev(totals, argnums=1)(x, parameters)
            for name, place in parameters.items():
                found(f"{side.direction}: jacrev by {name}", [each[name] for each in by_name], place, results)


# ---------------------------------------------------------------------------------------------------------------------
# Transforms: copies


@of_transforms(
    "a tensor that is neither a parameter nor a buffer; a local function or a lambda kept as an attribute; a class "
    "defined inside a function, which cannot be pickled"
)
def copies(case: TransformCase) -> None:
    """State dict, saved file, deepcopy and pickle give the same part, bit for bit; the repr names the class."""
    for side in case.sides:
        for how, copied in every_copy(side.transform).items():
            with torch.no_grad():
                results = side.run(side.inputs, side.context, transform=copied)
                for name, got, wanted in zip("zl", results, side.run(), strict=True):
                    same(f"{side.direction} after {how}: {name}", got, wanted)
    check_repr(case.transform)


def every_copy(module: Module) -> dict[str, Module]:
    """Copies of a module by every way there is, by name."""
    other = perturb_(copy.deepcopy(module), 0.3, torch.Generator().manual_seed(3))
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved)
    for name, value in other.state_dict().items():
        same(f"state dict, {name}", value, module.state_dict()[name])
    found = {"a round trip through a state dict": other, "copy.deepcopy": copy.deepcopy(module)}
    return {**found, "pickle": pickle.loads(pickle.dumps(module))}


def check_repr(module: nn.Module) -> None:
    """The repr names the class."""
    if type(module).__name__ not in repr(module):
        raise Finding(f"the repr does not name the class: {module!r}")
