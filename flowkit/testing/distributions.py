"""The properties of distributions."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from flowkit.distribution import Distribution
from flowkit.errors import NotExact, ShapeError
from flowkit.functional.precision import log_term_dtype
from flowkit.testing.case import Bounds, DistributionCase
from flowkit.testing.finding import (
    ALARM,
    DEGREE,
    DISTRIBUTION_PROPERTIES,
    INTEGRAL,
    LAW,
    ROUNDING,
    SAMPLES,
    Finding,
    agree,
    check_all,
    of_distributions,
    same,
)
from flowkit.testing.transforms import (
    cast,
    check_gradients,
    check_repr,
    compiled_agrees,
    every_copy,
    gradcheck,
    has_dropout,
)
from flowkit.transform import Transform


def check_distribution(
    distribution: Distribution,
    *,
    context: Tensor | None = None,
    inputs: Tensor | None = None,
    bounds: Bounds | None = None,
    perturb: float = 0.1,
    skip: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Run every property of `DISTRIBUTION_PROPERTIES` on a distribution. It passes, or says what is wrong.

    The distribution is left as it is: copies are checked, in float64 and eval mode. Events of one or two real numbers
    are integrated on a grid, and samples compared with the integral; of one integer, with their frequencies. Of larger
    events, samples are compared with the density at the same samples moved a little. All these tests together raise a
    false alarm in at most one of a million seeds.

    Args:
        distribution: any distribution, a flow included.
        context: (N, *event of the context), any N, for a conditional one.
        inputs: (N, *event), points at which to ask for the density; drawn from the distribution if not given.
        bounds: ends of the interval that holds every element, where the density is cut off there: (0, 1) for noise on
            the unit cube; tensors that broadcast to the event, for a box. None for densities that fade out.
        perturb: deviation of the noise that is added to every trainable parameter of the copy.
        skip: names of properties to leave out.
        seed: of everything that is drawn.

    Raises:
        ConformanceError: for the first property that fails; it names those that fail besides.
        ValueError: for a name in `skip` that is no property.

    >>> import flowkit as fk
    >>> check_distribution(fk.Normal((2,)), skip=["compiles"])
    """
    case = DistributionCase.of(distribution, context=context, inputs=inputs, bounds=bounds, perturb=perturb, seed=seed)
    check_all(case, DISTRIBUTION_PROPERTIES, skip)


@dataclass(frozen=True)
class Grid:
    """A density on a grid: points (M, *event), the mass of the cell of each (M), a center and a width (D)."""

    points: Tensor
    mass: Tensor
    center: Tensor
    width: Tensor


def _continuous(case: DistributionCase) -> bool:
    return case.exact and not case.discrete


def _small(case: DistributionCase) -> bool:
    return _continuous(case) and math.prod(case.event_shape) in (1, 2)


def _contexts(case: DistributionCase) -> list[tuple[str, Tensor | None]]:
    """Two contexts and their names; or that there is none."""
    return [("", None)] if case.context is None else [(f" under context {i}", case.context[i]) for i in range(2)]


def _grids(case: DistributionCase) -> Iterator[tuple[str, Grid, Tensor]]:
    """Of small events, for two contexts: its name, the density on a grid, and samples (20000, D)."""
    dims = math.prod(case.event_shape)
    for name, context in _contexts(case):
        with torch.no_grad():
            samples = case.sample((SAMPLES,), context).reshape(SAMPLES, dims)
            grid = _grid(case, context, samples, dims)
        yield name, grid, samples


def _grid(case: DistributionCase, context: Tensor | None, samples: Tensor, dims: int) -> Grid:
    size = 2001 if dims == 1 else 301
    if case.bounds is None:
        # x = center + width sinh(t): fine steps where the samples lie, and 74 times as far as their quartiles.
        low, center, high = samples.quantile(torch.tensor([0.25, 0.5, 0.75]).to(samples), dim=0)
        t = torch.linspace(-5, 5, size).to(samples)
        axis, steps = t.sinh(), t.cosh() * (t[1] - t[0])
        width = high - low
    else:
        low, high = case.ends
        center, width = (low + high) / 2, high - low
        axis = (torch.arange(size).to(samples) + 0.5) / size - 0.5
        steps = torch.full_like(axis, 1 / size)
    points = torch.cartesian_prod(*[axis] * dims).reshape(-1, dims) * width + center
    cells = torch.cartesian_prod(*[steps] * dims).reshape(-1, dims).prod(-1) * width.prod()
    events = points.reshape(-1, *case.event_shape)
    given = None if context is None else context.expand(len(events), *context.shape)
    return Grid(points, case.log_prob(events, given).exp() * cells, center, width)


@of_distributions("noise that is not drawn with the generator that was given", name="noise")
def density_noise(case: DistributionCase) -> None:
    """Samples come from the given generator alone: one seed one draw, and the global generator stays."""
    distribution = case.distribution
    torch.manual_seed(4)
    before = torch.random.get_rng_state()
    first = distribution.sample((16,), case.context, generator=case.generator(5))
    case.log_prob(case.inputs, case.context)
    if not torch.equal(torch.random.get_rng_state(), before):
        raise Finding("it draws from the global generator, though one was given or none is needed")
    same("a second sample", distribution.sample((16,), case.context, generator=case.generator(5)), first)
    if torch.equal(distribution.sample((16,), case.context, generator=case.generator(6)), first):
        raise Finding("another seed gives the same sample")
    torch.manual_seed(4)
    once = distribution.sample((16,), case.context)
    torch.manual_seed(4)
    same("a sample under the same global seed", distribution.sample((16,), case.context), once)


@of_distributions("state that a call changes, an in-place operation on x, a branch on `self.training`", name="purity")
def density_purity(case: DistributionCase) -> None:
    """A call changes neither the distribution nor its arguments; train and eval mode agree, but for dropout."""
    wanted = case.log_prob(case.inputs, case.context, distribution=copy.deepcopy(case.distribution))
    for training in (False, True):
        mode = "train" if training else "eval"
        distribution = copy.deepcopy(case.distribution).train(training)
        x = case.inputs.clone()
        with torch.no_grad():
            got = case.log_prob(x, case.context, distribution=distribution)
            case.sample((2,), case.context, distribution=distribution)
        same(f"x after log_prob in {mode} mode", x, case.inputs)
        for name, value in replace(case, distribution=distribution).state().items():
            same(f"{name} after a call in {mode} mode", value, case.state()[name])
        if not (training and has_dropout(distribution)):
            same(f"log_prob in {mode} mode", got, wanted.detach())


@of_distributions("the sample shape and the context's batch in another order, or an event dim taken for a batch dim")
def density_shapes(case: DistributionCase) -> None:
    """log_prob is (*batch); samples are (*sample shape, *context batch, *event); any batch dims, none and empty too.

    A context broadcasts against x.
    """
    event = tuple(case.event_shape)
    with torch.no_grad():
        for batch in [(), (3,), (2, 3), (0,)]:
            x, context = case.batch(*batch)
            log_prob = case.log_prob(x, context)
            if log_prob.shape != batch:
                raise Finding(f"log_prob for a batch {batch} has shape {tuple(log_prob.shape)}")
            agree(f"calling it, for a batch {batch},", _called(case, x, context), log_prob, 0.0)
            for sample_shape in [(), (4,), (2, 1), (0,)]:
                if case.context is None and batch:
                    continue
                x = case.sample(sample_shape, context)
                if x.shape != (*sample_shape, *batch, *event):
                    raise Finding(
                        f"samples of shape {sample_shape} for a context batch {batch} have shape {tuple(x.shape)}, "
                        f"wanted {(*sample_shape, *batch, *event)}"
                    )
        if case.distribution.sample(3, case.batch()[1]).shape != (3, *event):
            raise Finding("a sample shape of 3 is not that of (3,)")
        if case.context is not None:
            _check_broadcast(case, case.context)
        whole = case.log_prob(case.inputs, case.context)
        for i in range(len(whole) if case.exact else 0):
            context = None if case.context is None else case.context[i]
            agree(f"log_prob of example {i} alone", case.log_prob(case.inputs[i], context), whole[i], ROUNDING)


def _check_broadcast(case: DistributionCase, contexts: Tensor) -> None:
    """Batches of x and context that broadcast give what they give once expanded."""
    for batch, context_batch in [((3,), ()), ((), (3,)), ((3,), (2, 1)), ((2, 1), (3,))]:
        x, context = case.batch(*batch)[0], case.batch(*context_batch)[1]
        assert context is not None
        joint = torch.broadcast_shapes(batch, context_batch)
        got = case.log_prob(x, context)
        if got.shape != joint:
            raise Finding(
                f"log_prob for a batch {batch} and a context batch {context_batch} has shape {tuple(got.shape)}, "
                f"wanted {tuple(joint)}"
            )
        expanded = case.log_prob(x.expand(*joint, *case.event_shape), context.expand(*joint, *contexts.shape[1:]))
        agree(f"log_prob for a batch {batch} and a context batch {context_batch}", got, expanded, ROUNDING)


def _called(case: DistributionCase, x: Tensor, context: Tensor | None) -> Tensor:
    drawn = {} if case.exact else {"generator": case.generator()}
    return case.distribution(x, context, **drawn)


@of_distributions(
    "the context is not handed on, or not read", name="context_read", applies=lambda case: case.context is not None
)
def density_context_read(case: DistributionCase) -> None:
    """A context that is given makes a difference to log_prob and to samples."""
    assert case.context is not None
    other = case.context.roll(1, 0)
    with torch.no_grad():
        if torch.equal(case.log_prob(case.inputs, case.context), case.log_prob(case.inputs, other)):
            raise Finding("log_prob: examples that exchange their contexts come out the same")
        if torch.equal(case.sample((4,), case.context), case.sample((4,), other)):
            raise Finding("samples under other contexts come out the same")


@of_distributions("a constant missing from log_prob, or a log-term with the wrong sign", applies=_small)
def integrates_to_one(case: DistributionCase) -> None:
    """The density of an event of one or two numbers integrates to 1."""
    for where, grid, _ in _grids(case):
        total = grid.mass.sum().item()
        if not abs(total - 1) <= INTEGRAL:
            raise Finding(f"the integral of the density{where} is {total:.6g}, allowed 1 ± {INTEGRAL}")


@of_distributions(
    "`sample` and `log_prob` that run the transform in the same direction, or read other parameters",
    applies=_continuous,
)
def samples_follow_density(case: DistributionCase) -> None:
    """Samples follow the density, by tests that in sum raise a false alarm in one of a million seeds.

    Of one or two numbers: the integral of the density up to each of 20,000 samples, in two dims along six directions,
    is uniform. Asked are Kolmogorov's distance, with the bound of Dvoretzky, Kiefer, Wolfowitz and Massart, and the
    means of the Legendre polynomials up to degree 8 (Neyman's smooth test), with Bernstein's bound; both bounds hold
    for any density. The distance tells what is local, the polynomials a wrong scale. Of more numbers: for x drawn from
    p and any invertible map T, p(T x) |det T| / p(x) has mean 1, or less where p has edges. With T a small shift or
    scaling, the mean of 20,000 such ratios may differ from 1 by so many of its standard errors as a normal variable
    does.
    """
    tests = list(_along_lines(case) if _small(case) else _moved(case))
    for what, found, allowed in tests:
        limit = allowed(ALARM / len(tests))
        if not found <= limit:
            raise Finding(f"{what}: {found:.3g}, allowed {limit:.3g}")


Test = tuple[str, float, Callable[[float], float]]  # what is measured, how much it is, what it may be at a given rate


def _kolmogorov(rate: float) -> float:
    return math.sqrt(-math.log(rate / 2) / (2 * SAMPLES))


def _bernstein(most: float) -> Callable[[float], float]:
    """What the mean of so many variables of mean 0 and variance 1, none beyond `most`, exceeds at a given rate."""

    def allowed(rate: float) -> float:
        share = -math.log(rate / 2) / SAMPLES
        return most * share / 3 + math.sqrt((most * share / 3) ** 2 + 2 * share)

    return allowed


def _sigmas(rate: float) -> float:
    return -torch.special.ndtri(torch.tensor(rate / 2, dtype=torch.float64)).item()


def _along_lines(case: DistributionCase) -> Iterator[Test]:
    for where, grid, samples in _grids(case):
        # Slanted at the golden ratio: along a diagonal the cells of the grid come in clumps, whose steps hide what is
        # looked for.
        slanted = [[1.0, 0.618034], [1.0, -0.618034], [0.618034, 1.0], [0.618034, -1.0]]
        directions = [[1.0]] if samples.shape[1] == 1 else [[1.0, 0.0], [0.0, 1.0], *slanted]
        for direction in directions:
            along = samples.new_tensor(direction) / grid.width
            uniform = _distribution_function((grid.points @ along), grid.mass, samples @ along).sort().values
            steps = (torch.arange(SAMPLES).to(uniform) + 0.5) / SAMPLES
            distance = (uniform - steps).abs().max().item() + 0.5 / SAMPLES
            of_samples = f"of {SAMPLES} samples{where}, seen along {direction}, "
            yield f"Kolmogorov's distance {of_samples}from the integral of the density", distance, _kolmogorov
            for degree, polynomial in enumerate(_legendre(2 * uniform - 1, DEGREE), 1):
                norm = math.sqrt(2 * degree + 1)
                yield (
                    f"the mean {of_samples}of Legendre's polynomial of degree {degree} in the integral of the density",
                    norm * abs(polynomial.mean().item()),
                    _bernstein(norm),
                )


def _legendre(t: Tensor, degree: int) -> Iterator[Tensor]:
    """Legendre's polynomials of degree 1 to `degree`, by their recurrence."""
    before, now = torch.ones_like(t), t
    for k in range(1, degree + 1):
        yield now
        before, now = now, ((2 * k + 1) * t * now - k * before) / (k + 1)


def _moved(case: DistributionCase) -> Iterator[Test]:
    dims = math.prod(case.event_shape)
    for where, context in _contexts(case):
        with torch.no_grad():
            samples = case.sample((SAMPLES,), context)
            flat = samples.reshape(SAMPLES, dims)
            low, center, high = flat.quantile(torch.tensor([0.25, 0.5, 0.75]).to(flat), dim=0)
            given = None if context is None else context.expand(SAMPLES, *context.shape)
            log_prob = case.log_prob(samples, given)
            step = 0.2 / math.sqrt(dims)  # so small that the ratios vary little in any number of dims
            shift = step * (high - low) * torch.linspace(1, 2, dims).to(flat) * (-1.0) ** torch.arange(dims)
            moves = {
                "scaled up": (center + (1 + step) * (flat - center), dims * math.log1p(step)),
                "shifted": (flat + shift, 0.0),
                "shifted back": (flat - shift, 0.0),
            }
            for how, (moved, log_det) in moves.items():
                inside = torch.ones(SAMPLES, dtype=torch.bool, device=flat.device)
                if case.bounds is not None:
                    inside = ((moved > case.ends[0]) & (moved < case.ends[1])).all(1)
                    moved = torch.where(inside[:, None], moved, flat)  # the density is 0 outside
                ratios = (case.log_prob(moved.reshape(samples.shape), given) + log_det - log_prob).exp() * inside
                error = (ratios.mean() - 1).item() / (ratios.std().item() / math.sqrt(SAMPLES) + 1e-12)
                edged = case.bounds is not None and error < 0
                yield (
                    f"the mean of p(moved x) / p(x) over {SAMPLES} samples{where}, {how}, is {ratios.mean():.6g}, "
                    "wanted 1; its distance in standard errors",
                    0.0 if edged else abs(error),
                    _sigmas,
                )


def _distribution_function(places: Tensor, mass: Tensor, at: Tensor) -> Tensor:
    """The distribution function of masses at places, piecewise linear, at other places."""
    places, index = places.unique(return_inverse=True)
    mass = torch.zeros_like(places).index_add_(0, index, mass)
    middle = (mass.cumsum(0) - mass / 2) / mass.sum()
    right = torch.searchsorted(places, at).clamp(1, len(places) - 1)
    left = right - 1
    share = ((at - places[left]) / (places[right] - places[left])).clamp(0, 1)
    return middle[left] + share * (middle[right] - middle[left])


def _one_integer(case: DistributionCase) -> bool:
    support = _support(case)
    return not case.exact and support is not None and support.is_discrete and math.prod(case.event_shape) == 1


def _support(case: DistributionCase) -> Any:
    return getattr(getattr(case.distribution, "transform", None), "domain", None)


@of_distributions(
    "a log-term with the wrong sign or the other direction's; a scale left out, such as -D log levels",
    applies=_one_integer,
)
def bound_is_below(case: DistributionCase) -> None:
    """A bound on the probability of one integer lies below its frequency in samples; so does its exponential's mean.

    That mean is the probability itself, but of noise that fits badly it comes out too low, and the end integers are
    more frequent, because latents outside of the cube go there too.
    """
    support = _support(case)
    context = None if case.context is None else case.context[0]
    values = torch.arange(int(support.lower_bound), int(support.upper_bound) + 1, device=case.inputs.device)
    with torch.no_grad():
        samples = case.sample((SAMPLES,), context).flatten()
        x = values.reshape(-1, *case.event_shape)
        x = x.expand(SAMPLES // 4, *x.shape)
        terms = case.log_prob(x, None if context is None else context.expand(*x.shape[:2], *context.shape))
    sigmas = _sigmas(2 * ALARM / len(values))

    def at_least(draws: Tensor) -> float:
        return draws.mean().item() - sigmas * draws.std().item() / math.sqrt(len(draws))

    for value, bound in zip(values.tolist(), terms.unbind(1), strict=True):
        frequency = (samples == value).double().mean().item()
        allowed = frequency + sigmas * math.sqrt(max(frequency, 1 / SAMPLES) / SAMPLES)
        for what, least in (("the bound on", math.exp(at_least(bound))), ("the mean for", at_least(bound.exp()))):
            if not least <= allowed:
                raise Finding(f"{what} P({value}) is at least {least:.5g}, its frequency in samples {frequency:.5g}")


@of_distributions("`sample_and_log_prob` that reads its log-term off the wrong direction")
def sampled_log_prob(case: DistributionCase) -> None:
    """`sample_and_log_prob` gives the sample that `sample` gives, and its `log_prob`; a mere bound is refused."""
    shape = (5,)
    if not case.exact:
        try:
            case.distribution.sample_and_log_prob(shape, case.context)
        except NotExact:
            return
        raise Finding("it has only a bound on its density, so sample_and_log_prob should raise NotExact")
    with torch.no_grad():
        x, log_prob = case.distribution.sample_and_log_prob(shape, case.context, generator=case.generator())
        agree("sample against that of sample_and_log_prob", case.sample(shape, case.context), x, ROUNDING)
        context = None if case.context is None else case.context.expand(*shape, *case.context.shape)
        agree("log_prob of a sample against that of sample_and_log_prob", case.log_prob(x, context), log_prob, LAW)


@of_distributions(
    "`sample_and_log_prob` that samples and then asks for log_prob, though the log-terms of the way back say it",
    applies=lambda case: case.exact and any(True for _ in _leaves(case.distribution)),
)
def nets_run_once(case: DistributionCase) -> None:
    """`sample_and_log_prob` runs no net more often than `sample` does."""
    with torch.no_grad():
        runs = {}
        for name in ("sample", "sample_and_log_prob"):
            with _counted(case.distribution) as counts:
                getattr(case.distribution, name)((2,), case.context, generator=case.generator())
            runs[name] = counts
    for name, most in runs["sample"].items():
        if runs["sample_and_log_prob"][name] > most:
            raise Finding(
                f"{name} runs {runs['sample_and_log_prob'][name]} times in sample_and_log_prob, {most} in sample"
            )


def _leaves(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers of nets: modules with parameters and no children, which are neither transform nor distribution."""
    for name, part in module.named_modules():
        own = any(True for _ in part.parameters(recurse=False)) and not any(True for _ in part.children())
        if own and not isinstance(part, Transform | Distribution):
            yield name, part


@contextmanager
def _counted(module: nn.Module) -> Iterator[dict[str, int]]:
    """How often each layer of a net runs while the context lasts."""
    counts = {name: 0 for name, _ in _leaves(module)}

    def count(name: str) -> Callable[..., None]:
        def add(*_: object) -> None:
            counts[name] += 1

        return add

    with ExitStack() as stack:
        for name, part in _leaves(module):
            stack.callback(part.register_forward_pre_hook(count(name)).remove)
        yield counts


@of_distributions("no `self.check_event(x)` at the door, so that wrong shapes broadcast", name="shape_errors")
def density_shape_errors(case: DistributionCase) -> None:
    """An x that does not end in the event raises a `ShapeError`; so does a context too many, or one missing.

    An x that is no tensor raises a `TypeError`.
    """
    event = tuple(case.event_shape)
    context = None if case.context is None else case.context[0]
    wrong = [((*event[:-1], event[-1] + 1), context)] if event else []
    wrong += [(event[1:], context)] if event else []
    # Without a context where one is needed, or with one where none is read.
    wrong += [(event, None if context is not None else case.inputs.new_zeros(1))]
    for shape, given in wrong:
        x = torch.full(shape, case.inputs.flatten()[0].item()).to(case.inputs)
        try:
            log_prob = case.log_prob(x, given)
        except ShapeError:
            continue
        except Exception as error:
            raise Finding(
                f"x of shape {shape}{_described(given, case)}: wanted a ShapeError, got {type(error).__name__}: {error}"
            ) from None
        raise Finding(
            f"x of shape {shape}{_described(given, case)}: wanted a ShapeError, log_prob has shape "
            f"{tuple(log_prob.shape)}"
        )
    try:
        case.distribution.sample((2,), None if context is not None else case.inputs.new_zeros(1))
    except ShapeError:
        pass
    else:
        raise Finding(f"sample {'without' if context is not None else 'with'} a context: wanted a ShapeError")
    try:
        case.distribution.log_prob(case.inputs.numpy(force=True), case.context)  # type: ignore[arg-type]
    except TypeError:
        return
    raise Finding("x is an array of numpy: wanted a TypeError")


def _described(context: Tensor | None, case: DistributionCase) -> str:
    """What is wrong with the context, if anything."""
    if (context is None) == (case.context is None):
        return ""
    return " without a context" if context is None else " with a context, which it does not take"


@of_distributions("a detach, a `.data` or a clamp on the way; a parameter that nothing reads", name="gradients")
def density_gradients(case: DistributionCase) -> None:
    """Gradcheck of log_prob by x, context and parameters, and of `rsample`; every parameter gets a gradient.

    One that says `has_rsample = False` raises `NotExact` there.
    """
    x, context = case.batch(3)

    def call(*values: Tensor | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return values, ({} if case.exact else {"generator": case.generator()})

    gradcheck(case.distribution, [x, context], call, "log_prob")
    trained = copy.deepcopy(case.distribution).train()
    check_gradients(trained, [case.log_prob(x, context, distribution=trained)], "log_prob")
    if case.distribution.has_rsample and not case.discrete:
        trained = copy.deepcopy(case.distribution).train()
        check_gradients(trained, [trained.rsample((3,), context, generator=case.generator())], "rsample")

        def drawn(*values: Tensor | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return ((2,), *values), {"generator": case.generator()}

        gradcheck(_Sampled(case.distribution), [context], drawn, "rsample", names=("context",))
    elif not case.distribution.has_rsample:
        try:
            case.distribution.rsample((3,), context)
        except NotExact:
            return
        raise Finding("has_rsample is False, so rsample should raise NotExact")


class _Sampled(nn.Module):
    """`rsample` as a module's call."""

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        self.distribution = distribution

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.distribution.rsample(*args, **kwargs)


@of_distributions("a branch on values, a `.item()`, a boolean mask: what breaks the graph", name="compiles")
def density_compiles(case: DistributionCase, backend: str = "aot_eager") -> None:
    """`torch.compile(fullgraph=True)` of log_prob gives what eager gives."""
    compiled_agrees(case.distribution, case.batch(4), backend, "log_prob", grad=True)


@of_distributions("a branch on values or an in-place write", name="vectorizes")
def density_vectorizes(case: DistributionCase) -> None:
    """`torch.func.vmap` of log_prob over examples gives what the batch gives."""
    in_dims = (0, None if case.context is None else 0)
    randomness = "error" if case.exact else "different"
    with torch.no_grad():
        got = vmap(lambda x, c: case.distribution(x, c), in_dims, randomness=randomness)(case.inputs, case.context)
        wanted = case.log_prob(case.inputs, case.context)
    if case.exact:
        agree("log_prob under vmap", got, wanted, LAW)
    elif got.shape != wanted.shape:
        raise Finding(f"log_prob under vmap has shape {tuple(got.shape)}, wanted {tuple(wanted.shape)}")


@of_distributions(
    "an `autograd.Function` without `setup_context`, or a tensor kept from an earlier call",
    name="functional_gradient",
    applies=lambda case: any(parameter.requires_grad for parameter in case.distribution.parameters()),
)
def density_functional_gradient(case: DistributionCase) -> None:
    """`torch.func.jacrev` of log_prob by the parameters gives what autograd gives."""
    parameters: dict[str, Tensor] = {n: p for n, p in case.distribution.named_parameters() if p.requires_grad}
    x, context = case.batch(3)
    drawn = {} if case.exact else {"generator": case.generator()}

    def total(parameters: dict[str, Tensor]) -> Tensor:
        if not case.exact:
            drawn["generator"] = case.generator()
        return functional_call(case.distribution, parameters, (x, context), drawn).sum()

    wanted = torch.autograd.grad(total(parameters), list(parameters.values()), materialize_grads=True)
    got = jacrev(total)(parameters)
    for name, one in zip(parameters, wanted, strict=True):
        agree(f"jacrev by {name}", got[name], one, LAW)


@of_distributions("a constant of a dtype of its own in log_prob or in the noise of a sample", name="dtypes")
def density_dtypes(case: DistributionCase) -> None:
    """Samples have the dtype of the module, and log_prob has promote_types(x.dtype, float32)."""
    for dtype in (torch.float64, torch.float32):
        distribution = copy.deepcopy(case.distribution).to(dtype)
        x, context = (cast(value, dtype) for value in (case.inputs, case.context))
        with torch.no_grad():
            log_prob = case.log_prob(x, context, distribution=distribution)
            samples = case.sample((2,), context, distribution=distribution)
        if log_prob.dtype != log_term_dtype(dtype):
            raise Finding(f"log_prob in {dtype} is {log_prob.dtype}, wanted {log_term_dtype(dtype)}")
        if samples.dtype != x.dtype:
            raise Finding(f"samples in {dtype} are {samples.dtype}, wanted {x.dtype}")


@of_distributions("a tensor that is neither a parameter nor a buffer; a lambda kept as an attribute", name="copies")
def density_copies(case: DistributionCase) -> None:
    """State dict, saved file, deepcopy and pickle give the same distribution, bit for bit; the repr names the class."""
    with torch.no_grad():
        wanted = case.log_prob(case.inputs, case.context)
        for how, copied in every_copy(case.distribution).items():
            got = case.log_prob(case.inputs, case.context, distribution=copied)
            same(f"log_prob after {how}", got, wanted)
    check_repr(case.distribution)
