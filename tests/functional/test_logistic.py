"""The logit of a mixture-of-logistics CDF: digits, gradients, inverse, and every way in which PyTorch may call it."""

import functools
import math
import statistics

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

from flowkit.errors import DomainError, ShapeError
from flowkit.functional import logistic, logistic_linear
from flowkit.functional.logistic import logit_mix_logistic_cdf, logit_mix_logistic_cdf_inverse
from flowkit.functional.rootfind import solve_increasing

DTYPES = (torch.float32, torch.float64)
FUNCTIONS = (logit_mix_logistic_cdf, logit_mix_logistic_cdf_inverse)
SCALES = {  # log-scales; means and logits are N(0, 1)
    "init": lambda *shape: 0.3 * torch.randn(*shape),
    "wide": lambda *shape: 10 * torch.rand(*shape) - 7,
    "sharpish": lambda *shape: 4 * torch.rand(*shape) - 7,
    "sharp": lambda *shape: torch.full(shape, -7.0),
    "broad": lambda *shape: 2 * torch.rand(*shape) + 1,
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def mixture(regime, *shape, dtype=torch.float64):
    return [t.to(dtype) for t in (torch.randn(*shape), torch.randn(*shape), SCALES[regime](*shape))]


def small_case(components=3, shape=(4,), dtype=torch.float64):
    parts = [2 * torch.randn(shape), *(torch.randn(*shape, components) for _ in range(3))]
    return [t.to(dtype).requires_grad_() for t in parts]


def gradients(outputs, inputs, create_graph=False):
    cotangents = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view(t.shape) + 0.3 for t in outputs]
    return torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True, create_graph=create_graph)


# Digits


def exact(x, logits, means, log_scales):
    """y and log dy/dx of one element with 40 digits, at exactly the numbers given."""
    with mpmath.workdps(40):
        x, below, above, density = mpmath.mpf(x), mpmath.mpf(0), mpmath.mpf(0), mpmath.mpf(0)
        for logit, mean, log_scale in zip(logits, means, log_scales, strict=True):
            weight, rate = mpmath.exp(logit), mpmath.exp(-mpmath.mpf(log_scale))
            odds = mpmath.exp((mpmath.mpf(mean) - x) * rate)
            below += weight / (1 + odds)
            above += weight * odds / (1 + odds)
            density += weight * rate * odds / (1 + odds) ** 2
        return mpmath.log(below / above), mpmath.log(density / below + density / above)


def hard_cases(components, dtype):
    """x near the means, in the tails up to 1e4 scales out, and in the gaps between neighbouring means."""
    count, cases = max(12, 120 // components), []
    rows = torch.arange(count)
    for regime in SCALES:
        logits, means, log_scales = mixture(regime, count, components, dtype=dtype)
        means[::4] *= 25
        sorted_means, one = means.sort(-1).values, torch.randint(components, (count,))
        left, right = sorted_means[rows, one], sorted_means[rows, (one + 1) % components]
        scale = log_scales[rows, one].exp()
        for x in (
            torch.randn(count),
            60 * torch.rand(count) - 30,
            means[rows, one] + scale * torch.randn(count).sign() * 10 ** (6 * torch.rand(count) - 2),
            left + (right - left) * torch.rand(count),
        ):
            cases.append((x.to(dtype), logits, means, log_scales))
    return [torch.cat(parts) for parts in zip(*cases, strict=True)]


@functools.cache
def hard_cases_and_exact_values(components, dtype):
    torch.manual_seed(components)
    inputs = hard_cases(components, dtype)
    return inputs, [exact(*row) for row in zip(*(t.tolist() for t in inputs), strict=True)]


@pytest.mark.parametrize("function", [logit_mix_logistic_cdf, logistic._log_space], ids=["eager", "log_space"])
@pytest.mark.parametrize("components", [1, 2, 8, 32, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_digits(dtype, components, function):
    inputs, wanted = hard_cases_and_exact_values(components, dtype)
    y, log_derivative = (t.tolist() for t in function(*inputs))
    worst, log_errors = 1e-6 if dtype == torch.float32 else 1e-12, []
    for got, got_log, (value, log_value) in zip(y, log_derivative, wanted, strict=True):
        assert abs(got - value) <= worst * max(1, abs(value))
        # In a gap the log-derivative alone is large, and its dtype holds it no better than this.
        log_error = abs(got_log - log_value)
        assert log_error <= 2 * worst * max(1, abs(value), abs(log_value))
        if abs(log_value) <= 100:
            assert log_error <= 100 * worst * max(1, abs(value) / 100)
        log_errors.append(log_error / max(1, abs(log_value)))
    assert statistics.median(log_errors) <= worst


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [logit_mix_logistic_cdf, logistic._log_space], ids=["eager", "log_space"])
def test_one_standard_component_is_the_identity(function, dtype):
    """Trap 2 of flowpp-spec: the CDF saturates at 17, its logit never does."""
    x = torch.tensor([0.0, 10.0, 17.0, 18.0, 40.0, 80.0, 1e4], dtype=dtype)
    x = torch.cat([-x, x]).requires_grad_()
    parameters = [torch.zeros(*x.shape, 1, dtype=dtype, requires_grad=True) for _ in range(3)]
    y, log_derivative = function(x, *parameters)
    torch.testing.assert_close(y, x)
    assert log_derivative.abs().max() <= 4 * torch.finfo(dtype).eps
    on_x, on_logits, on_means, on_scales = torch.autograd.grad(y.sum() + log_derivative.sum(), [x, *parameters])
    eps = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(on_x, torch.ones_like(x), rtol=eps, atol=eps)
    torch.testing.assert_close(on_means[:, 0], -torch.ones_like(x), rtol=eps, atol=eps)
    torch.testing.assert_close(on_scales[:, 0], -x - 1, rtol=eps, atol=eps)
    assert on_logits.abs().max() <= eps
    back, log_back = logit_mix_logistic_cdf_inverse(y.detach(), *parameters)
    torch.testing.assert_close(back, x)
    assert log_back.abs().max() <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("create_graph", [False, True])
def test_derivative_at_the_mean_is_one(create_graph):
    """Zero-initialized nets start here, and autograd through min, max or abs would give 2 or 0."""
    x = torch.zeros(3, requires_grad=True)
    y, _ = logit_mix_logistic_cdf(x, *(torch.zeros(3, 4) for _ in range(3)))
    assert torch.equal(torch.autograd.grad(y.sum(), x, create_graph=create_graph)[0], torch.ones(3))


finite = functools.partial(st.floats, width=32)


@st.composite
def elements(draw, far, log_scale, y):
    components = draw(st.integers(1, 4))
    several = functools.partial(st.lists, min_size=components, max_size=components)
    mean, logit, scale = finite(-100, 100), finite(-50, 50), finite(*log_scale)
    parameters = [draw(several(each)) for each in (logit, mean, scale)]
    x = draw(finite(-far, far)) * math.exp(draw(st.sampled_from(parameters[2])))
    return [torch.tensor([t], dtype=torch.float32).requires_grad_() for t in (x, *parameters)], torch.tensor(
        [draw(finite(-y, y))]
    ).requires_grad_()


def check_finite(inputs, y, is_bad):
    for path in (logit_mix_logistic_cdf, logistic._log_space):
        outputs = path(*inputs)
        assert not any(is_bad(t) for t in (*outputs, *gradients(outputs, inputs)))
        assert not any(is_bad(t) for t in gradients(outputs, inputs, create_graph=True))
    inputs = [y, *inputs[1:]]
    for path in (logit_mix_logistic_cdf_inverse, logistic._solve):
        outputs = path(*inputs)
        assert not any(is_bad(t) for t in outputs)
        if path is logit_mix_logistic_cdf_inverse:
            assert not any(t.isnan().any() for t in gradients(outputs, inputs))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(elements(far=10000, log_scale=(-7, 3), y=10000))
def test_finite_in_the_working_range(case):
    check_finite(*case, lambda t: not t.isfinite().all())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(elements(far=1000, log_scale=(-80, 80), y=2.0**120))
def test_no_nan_far_beyond_it(case):
    check_finite(*case, lambda t: t.isnan().any())


# Inverse


def smallest_slope(x, other, parameters):
    """The smallest dy/dx between x and other: rounding y moves x by that much more."""
    points = [torch.lerp(x, other, t) for t in torch.linspace(0, 1, 33).tolist()]
    return torch.stack([logit_mix_logistic_cdf(p, *parameters)[1] for p in points]).amin(0).double().exp()


@pytest.mark.parametrize("function", [logit_mix_logistic_cdf_inverse, logistic._solve], ids=["eager", "fixed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("regime", SCALES)
@pytest.mark.parametrize("tail", [False, True])
def test_inverse(function, dtype, regime, tail):
    count, eps = 600, torch.finfo(dtype).eps
    x = (60 * torch.rand(count) - 30 if tail else torch.randn(count)).to(dtype)
    parameters = mixture(regime, count, 32, dtype=dtype)
    y, _ = logit_mix_logistic_cdf(x, *parameters)
    back, log_derivative = function(y, *parameters)
    again, log_slope = logit_mix_logistic_cdf(back, *parameters)
    assert ((again - y).abs() <= 6 * eps * (1 + y.abs() + log_slope.exp() * back.abs())).all()
    torch.testing.assert_close(log_derivative, -log_slope, rtol=16 * eps, atol=16 * eps)
    limit = eps * (1 + y.abs()) / smallest_slope(x, back, parameters) + eps * (1 + x.abs())
    assert ((back - x).abs() <= 4 * limit).all()


@pytest.mark.parametrize("compact", [False, True])
def test_solve_increasing_bisects_where_newton_cannot(compact):
    def cube(x, shift):  # flat at its root, and its slope is reported as zero on one side
        return (x - shift) ** 3, torch.where(x > shift, (3 * (x - shift) ** 2).log(), -torch.inf)

    shift, ones = torch.linspace(-2, 2, 9, dtype=torch.float64), torch.ones(9, dtype=torch.float64)
    x, _ = solve_increasing(
        cube, 8 * ones, -9 * ones, 5 * ones, -8 * ones, ones, (shift,), iterations=80, compact=compact
    )
    torch.testing.assert_close(x, shift + 2, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("function", [logit_mix_logistic_cdf_inverse, logistic._solve], ids=["eager", "fixed"])
@pytest.mark.parametrize("spread", [1.0, 50.0])
def test_inverse_of_large_logits(function, spread):
    """Trap 4 of flowpp-spec: logits of +-30, one scale at the floor, means 50 apart; a clip at 1e-5 fails at 11.51."""
    y = torch.linspace(-30, 30, 601, dtype=torch.float64)
    means = spread * torch.arange(4, dtype=torch.float64).expand(601, 4)
    logits, log_scales = torch.randn(601, 4).double(), torch.tensor([0.5, -7.0, 0.0, 1.0]).double().expand(601, 4)
    x, _ = function(y, logits, means, log_scales)
    again, log_slope = logit_mix_logistic_cdf(x, logits, means, log_scales)
    eps = torch.finfo(y.dtype).eps
    torch.testing.assert_close(again, y, rtol=0, atol=1e-6)
    back, _ = function(again, logits, means, log_scales)
    possible = 4 * eps * ((1 + y.abs()) / log_slope.exp() + 1 + x.abs()) <= 1e-6
    assert possible.double().mean() > 0.95
    assert ((back - x).abs()[possible] <= 1e-6).all()


# Gradients


PLACES = {  # x, logits, means, log_scales of one element, in float64
    "middle": (0.3, [0.1, -0.4, 0.7], [0.2, -1.0, 1.5], [0.3, -0.5, 0.1]),
    "at a mean": (0.2, [0.1, -0.4], [0.2, -1.0], [0.3, -0.5]),
    "one component": (-1.2, [0.1], [0.5], [-0.3]),
    "left tail": (-900.0, [0.1, -0.4], [0.2, -1.0], [0.05, 0.0]),
    "right tail": (1500.0, [0.1, -0.4], [0.2, -1.0], [0.3, 0.3]),
    "gap": (0.1, [0.1, -0.4], [-800.0, 700.0], [0.0, -0.1]),
}


@pytest.mark.parametrize("place", PLACES)
def test_gradients(place):
    inputs = [torch.tensor([t], dtype=torch.float64, requires_grad=True) for t in PLACES[place]]
    assert gradcheck(logit_mix_logistic_cdf, inputs)
    assert gradgradcheck(logit_mix_logistic_cdf, inputs)
    if place != "gap":  # where x is not a differentiable function of a rounded y
        inputs[0] = logit_mix_logistic_cdf(*inputs)[0].detach().requires_grad_()
        assert gradcheck(logit_mix_logistic_cdf_inverse, inputs)
        assert gradgradcheck(logit_mix_logistic_cdf_inverse, inputs)


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("regime", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_lean_backward_equals_log_space(dtype, regime, tail):
    x = (60 * torch.rand(300) - 30 if tail else torch.randn(300)).to(dtype)
    inputs = [t.requires_grad_() for t in (x, *mixture(regime, 300, 8, dtype=dtype))]
    outputs = logit_mix_logistic_cdf(*inputs)
    lean, composite = gradients(outputs, inputs), gradients(outputs, inputs, create_graph=True)
    precise = [t.detach().double().requires_grad_() for t in inputs]
    truth = gradients(logistic._log_space(*precise), precise)
    eps, (y, _) = torch.finfo(dtype).eps, outputs
    for lean_part, composite_part, true_part in zip(lean, composite, truth, strict=True):
        # shares of components that compete far out are known to eps * abs(z)
        scale = 1 + y.abs().view(-1, *[1] * (lean_part.ndim - 1)) + true_part.abs()
        size = 64 * eps * scale * (1 if true_part is truth[1] else true_part.abs().max())
        assert ((lean_part - true_part).abs() <= size).all()
        assert ((composite_part - true_part).abs() <= size).all()


# Ways to call


@pytest.mark.parametrize("function", FUNCTIONS)
def test_jacrev(function):
    inputs = small_case()
    got = torch.func.jacrev(function, argnums=(0, 1, 2, 3))(*inputs)
    wanted = torch.autograd.functional.jacobian(function, tuple(inputs))
    batched = torch.autograd.functional.jacobian(function, tuple(inputs), vectorize=True)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(batched, wanted)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_second_derivatives_in_torch_func(function):
    inputs = small_case()

    def total(*tensors):
        first, second = function(*tensors)
        return (first * second).sum()

    got = torch.func.jacrev(torch.func.jacrev(total))(*inputs)
    torch.testing.assert_close(got, torch.autograd.functional.hessian(lambda x: total(x, *inputs[1:]), inputs[0]))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_vmap(function):
    x, logits, means, log_scales = (t.detach() for t in small_case(shape=(5, 2)))
    got = torch.vmap(function, in_dims=(0, 1, None, 2))(x, logits.movedim(0, 1), means[0], log_scales.movedim(0, 2))
    wanted = [function(x[i], logits[i], means[0], log_scales[i]) for i in range(5)]
    torch.testing.assert_close(got, tuple(torch.stack(parts) for parts in zip(*wanted, strict=True)))
    per_sample = torch.vmap(torch.func.grad(lambda *tensors: function(*tensors)[1].sum()))(x, logits, means, log_scales)
    inputs = [t.clone().requires_grad_() for t in (x, logits, means, log_scales)]
    torch.testing.assert_close(per_sample, torch.autograd.grad(function(*inputs)[1].sum(), inputs[0])[0])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_compile(function, dtype):
    inputs = small_case(dtype=dtype)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    got, wanted = compiled(*inputs), function(*inputs)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(gradients(got, inputs), gradients(wanted, inputs))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_compiled_in_linear_and_in_log_space(function, backend):
    """What leaves linear space is done by an operator that the compiled code calls; views of a convolution's output."""
    compiled, numbers = torch.compile(function, backend=backend, fullgraph=True), torch.finfo(torch.float64)
    for regime, far in (("init", 3.0), ("broad", 30.0), ("sharpish", 3.0), ("sharp", 30.0)):
        views = [t.movedim(2, -1) for t in mixture(regime, 4, 2, 5, 4, 2)]
        inputs = [t.requires_grad_() for t in (far * torch.randn(4, 2, 4, 2).double(), *views)]
        got, wanted = compiled(*inputs), function(*inputs)
        # an x is known up to the rounding of y by the slope
        limit = 1e-12 + 32 * numbers.eps * wanted[1].detach().clamp(min=0).exp() * (1 + inputs[0].detach().abs())
        if function is logit_mix_logistic_cdf:
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
        assert ((got[0] - wanted[0]).abs() <= limit * (1 + wanted[0].abs())).all()
        known = limit < 1e-9
        mask = known.to(torch.float64)
        sums = [(outputs[0] * mask).sum() + (outputs[1] * mask).sum() for outputs in (got, wanted)]
        for one, other in zip(*(torch.autograd.grad(t, inputs) for t in sums), strict=True):
            torch.testing.assert_close(one[known], other[known], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_fake_and_meta(function):
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = torch.randn(4, requires_grad=True)
        outputs = function(fake, *(t.detach() for t in small_case(dtype=torch.float32)[1:]))
        outputs[0].sum().backward()
    assert [t.shape for t in (*outputs, fake.grad)] == [(4,)] * 3
    meta = [t.detach().to("meta").requires_grad_() for t in small_case()]
    outputs = function(*meta)
    (outputs[0] + outputs[1]).sum().backward()
    assert all(t.is_meta and t.shape == (4,) for t in outputs)
    assert [t.grad.shape for t in meta] == [t.shape for t in meta]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), ()])
def test_empty_and_scalar(function, shape):
    inputs = small_case(shape=shape)
    outputs = function(*inputs)
    sum(t.sum() for t in outputs).backward()
    assert [t.shape for t in outputs] == [shape] * 2
    assert [t.grad.shape for t in inputs] == [t.shape for t in inputs]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("regime", ["wide", "sharpish"])
def test_layout_tiles_and_batch_do_not_matter(function, regime, monkeypatch):
    """A view of a convolution's output, in tiles of any size, and every element alone."""
    components, shape, eps = 8, (3, 2, 5, 4), torch.finfo(torch.float32).eps
    net_output = torch.randn(3, 3, 2, components, 5, 4)
    net_output[:, 2] = SCALES[regime](3, 2, components, 5, 4)
    x, views = torch.randn(shape), [t.movedim(2, -1).detach().requires_grad_() for t in net_output.unbind(1)]
    inputs = [x.requires_grad_(), *views]
    wanted = function(*(t.detach().contiguous().requires_grad_() for t in inputs))
    single = torch.stack(
        [
            torch.stack(function(*(t[i, j, k, l] for t in inputs)))
            for i in range(3)
            for j in range(2)
            for k in range(5)
            for l in range(4)
        ]
    )
    results = [function(*inputs), single.unbind(-1)]
    full_gradients = gradients(results[0], inputs)
    tolerance = 1e-4 if function is logit_mix_logistic_cdf else 1e-3  # x itself differs by the rounding of y / slope
    for tile in (1, 3 * components, 7 * components, 30 * components):
        monkeypatch.setattr(logistic_linear, "_TILE", tile)
        results.append(function(*inputs))
        torch.testing.assert_close(gradients(results[-1], inputs), full_gradients, rtol=tolerance, atol=tolerance)
    slope = (wanted[1] if function is logit_mix_logistic_cdf_inverse else torch.zeros(())).clamp(min=0).exp()
    for first, _ in results:
        limit = 8 * eps * (slope * (1 + inputs[0].abs()) + 1 + wanted[0].abs())
        assert ((first.view(shape) - wanted[0]).abs() <= limit).all()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_autocast_does_not_reach_it(function):
    inputs = small_case(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = function(*inputs)
        composite = (logistic._log_space if function is logit_mix_logistic_cdf else logistic._solve)(*inputs)
    torch.testing.assert_close(got, function(*inputs), rtol=0, atol=0)
    assert all(t.dtype == torch.float32 for t in (*got, *composite))


# Refusals


@pytest.mark.parametrize(("function", "first"), list(zip(FUNCTIONS, "xy", strict=True)))
def test_refusals(function, first):
    x, parameter = torch.zeros(4), torch.zeros(4, 3)
    for bad in (torch.zeros(4, 0), torch.zeros(3), torch.zeros(1, 3), torch.zeros(())):
        with pytest.raises(ShapeError, match=rf"^logits: got shape .* since {first} has shape \(4,\)"):
            function(x, bad, parameter, parameter)
    with pytest.raises(ShapeError, match=r"^means: got shape \(4, 1\), wanted \(4, 3\)"):
        function(x, parameter, parameter[:, :1], parameter)
    with pytest.raises(ShapeError, match=r"^log_scales: got shape \(3,\), wanted \(4, 3\)"):
        function(x, parameter, parameter, parameter[0])
    for dtype in (torch.float16, torch.bfloat16, torch.int64):
        with pytest.raises(DomainError, match=f"^{first}: got dtype {dtype}"):
            function(x.to(dtype), parameter.to(dtype), parameter.to(dtype), parameter.to(dtype))
    with pytest.raises(DomainError, match=r"^means: got dtype torch\.float64, wanted torch.float32"):
        function(x, parameter, parameter.double(), parameter)


def test_nan_stays_nan():
    for function in (logit_mix_logistic_cdf, logit_mix_logistic_cdf_inverse):
        for poisoned in range(4):
            arguments = [torch.zeros(2), *torch.zeros(3, 2, 2)]
            arguments[poisoned][0] = math.nan
            value, log_derivative = function(*arguments)
            assert value[0].isnan() and log_derivative[0].isnan() and value[1] == 0
