"""The normal quantile of a mixture-of-Gaussians CDF: digits, inverse, gradients, and every way to call it."""

import functools

import mpmath
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

from flowkit.errors import DomainError, ShapeError
from flowkit.functional import mix_gaussian
from flowkit.functional.mix_gaussian import probit_mix_gaussian_cdf, probit_mix_gaussian_cdf_inverse

DTYPES = (torch.float32, torch.float64)
FUNCTIONS = (probit_mix_gaussian_cdf, probit_mix_gaussian_cdf_inverse)
INVERSES = [
    pytest.param(probit_mix_gaussian_cdf_inverse, id="eager"),
    pytest.param(mix_gaussian._solve, id="fixed"),
]
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


def gradients(outputs, inputs):
    cotangents = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view(t.shape) + 0.3 for t in outputs]
    return torch.autograd.grad(outputs, inputs, cotangents)


# Digits


def normal_cdf(z):
    return mpmath.erfc(-z / mpmath.sqrt(2)) / 2


def exact(x, logits, means, log_scales, guess):
    """y, log dy/dx and the condition of the latter, of one element with 40 digits; `guess` is near y."""
    with mpmath.workdps(40):
        x, total = mpmath.mpf(x), mpmath.fsum(mpmath.exp(w) for w in logits)
        below, above, density, swing = (mpmath.mpf(0) for _ in range(4))
        for logit, mean, log_scale in zip(logits, means, log_scales, strict=True):
            weight, rate = mpmath.exp(logit) / total, mpmath.exp(-mpmath.mpf(log_scale))
            z = (x - mpmath.mpf(mean)) * rate
            below += weight * normal_cdf(z)
            above += weight * normal_cdf(-z)
            density += weight * rate * mpmath.npdf(z)
            swing += weight * rate * mpmath.npdf(z) * z * z
        sign, tail = (1, below) if below < above else (-1, above)
        v = mpmath.mpf(sign * guess)
        for _ in range(6):
            v -= (mpmath.log(normal_cdf(v)) - mpmath.log(tail)) * normal_cdf(v) / mpmath.npdf(v)
        return tuple(float(t) for t in (sign * v, mpmath.log(density / mpmath.npdf(v)), swing / density))


def hard_cases(components, dtype):
    """x near the means, in the tails up to 1e3 scales out, and in the gaps between neighbouring means."""
    count, cases = max(8, 60 // components), []
    rows = torch.arange(count)
    for regime in SCALES:
        logits, means, log_scales = mixture(regime, count, components, dtype=dtype)
        means[::4] *= 25
        ordered, one = means.sort(-1).values, torch.randint(components, (count,))
        left, right = ordered[rows, one], ordered[rows, (one + 1) % components]
        scale = log_scales[rows, one].exp()
        for x in (
            torch.randn(count),
            means[rows, one] + scale * torch.randn(count).sign() * 10 ** (5 * torch.rand(count) - 2),
            left + (right - left) * torch.rand(count),
        ):
            cases.append((x.to(dtype), logits, means, log_scales))
    return [torch.cat(parts) for parts in zip(*cases, strict=True)]


@pytest.mark.parametrize("components", [1, 2, 8, 32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_digits(dtype, components):
    """y to 10 eps; the log-slope to 16 eps, or what rounding z by an ulp costs: the mean of z^2 over the density."""
    inputs, eps = hard_cases(components, dtype), torch.finfo(dtype).eps
    got = probit_mix_gaussian_cdf(*inputs)
    rows = zip(*(t.tolist() for t in inputs), got[0].tolist(), strict=True)
    y, log_slope, condition = torch.tensor([exact(*row) for row in rows], dtype=torch.float64).T
    assert ((got[0] - y).abs() <= 10 * eps * (1 + y.abs())).all()
    error = (got[1] - log_slope).abs() / (1 + log_slope.abs())
    assert (error <= 16 * eps * (1 + y * y + condition)).all()
    assert error.median() <= 4 * eps


@pytest.mark.parametrize("function", [*FUNCTIONS, mix_gaussian._solve])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_standard_components_are_the_identity(function, dtype):
    """Where Phi itself is 0 or 1, from 9 deviations on, too."""
    x = torch.tensor([0.0, 1e-3, 1.0, 5.0, 10.0, 40.0, 1e3, 1e6], dtype=dtype)
    x = torch.cat([-x, x])
    y, log_derivative = function(x, *(torch.zeros(16, 4, dtype=dtype) for _ in range(3)))
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y, x, rtol=8 * eps, atol=8 * eps)
    assert log_derivative.abs().max() <= 12 * eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantile_against_mpmath(dtype):
    v = torch.cat([-torch.linspace(0, 8, 33), -(10 ** torch.linspace(1, 6, 21))]).to(dtype)
    with mpmath.workdps(40):
        logs = [float(mpmath.log(mpmath.erfc(-mpmath.mpf(t) / mpmath.sqrt(2)) / 2)) for t in v.tolist()]
    got = mix_gaussian._quantile(torch.tensor(logs, dtype=dtype))
    torch.testing.assert_close(got, v, rtol=6 * torch.finfo(dtype).eps, atol=6 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("function", [*FUNCTIONS, mix_gaussian._solve])
@pytest.mark.parametrize("components", [1, 3, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_nan_out_to_a_thousand_scales(dtype, components, function):
    for regime in SCALES:
        parameters = [t.requires_grad_() for t in mixture(regime, 600, components, dtype=dtype)]
        reach = 10 ** (5 * torch.rand(600, dtype=dtype) - 2)
        x = (torch.randn(600, dtype=dtype).sign() * reach).requires_grad_()
        outputs = function(x, *parameters)
        assert all(t.isfinite().all() for t in outputs)
        if function is probit_mix_gaussian_cdf:
            assert all(t.isfinite().all() for t in gradients(outputs, [x, *parameters]))
        elif function is probit_mix_gaussian_cdf_inverse:
            assert not any(t.isnan().any() for t in gradients(outputs, [x, *parameters]))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("poisoned", range(4))
def test_nan_stays_nan(poisoned, function):
    arguments = [torch.zeros(2), *torch.zeros(3, 2, 2)]
    arguments[poisoned][0] = torch.nan
    value, log_derivative = function(*arguments)
    assert value[0].isnan() and log_derivative[0].isnan() and value[1].abs() < 1e-6


# Inverse


@pytest.mark.parametrize("function", INVERSES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("regime", SCALES)
def test_inverse(function, dtype, regime):
    eps = torch.finfo(dtype).eps
    x = torch.cat([60 * torch.rand(500) - 30, torch.randn(500)]).to(dtype)
    parameters = mixture(regime, 1000, 16, dtype=dtype)
    y, _ = probit_mix_gaussian_cdf(x, *parameters)
    back, log_derivative = function(y, *parameters)
    again, log_slope = probit_mix_gaussian_cdf(back, *parameters)
    assert ((again - y).abs() <= 12 * eps * (1 + y.abs() + log_slope.exp() * back.abs())).all()
    torch.testing.assert_close(log_derivative, -log_slope, rtol=16 * eps, atol=16 * eps)
    points = [probit_mix_gaussian_cdf(torch.lerp(x, back, t), *parameters)[1] for t in torch.linspace(0, 1, 17)]
    flattest = torch.stack(points).amin(0).double().exp()  # between x and what came back
    assert ((back - x).abs() <= 16 * (eps * (1 + y.abs()) / flattest + eps * (1 + x.abs()))).all()


# Gradients


PLACES = {  # x, logits, means, log_scales of one element, in float64
    "middle": (0.3, [0.1, -0.4, 0.7], [0.2, -1.0, 1.5], [0.3, -0.5, 0.1]),
    "other side": (1.9, [0.1, -0.4, 0.7], [0.2, -1.0, 1.5], [0.3, -0.5, 0.1]),
    "at a mean": (0.2, [0.1, -0.4], [0.2, -1.0], [0.3, -0.5]),
    "at the median": (0.0, [0.3, 0.3], [1.0, -1.0], [0.2, 0.2]),
    "one component": (-1.2, [0.1], [0.5], [-0.3]),
    "left tail": (-20.0, [0.1, -0.4], [0.2, -1.0], [0.05, 0.0]),
    "right tail": (30.0, [0.1, -0.4], [0.2, -1.0], [0.3, 0.3]),
}


@pytest.mark.parametrize("place", PLACES)
def test_gradients(place):
    inputs = [torch.tensor([t], dtype=torch.float64, requires_grad=True) for t in PLACES[place]]
    assert gradcheck(probit_mix_gaussian_cdf, inputs)
    assert gradgradcheck(probit_mix_gaussian_cdf, inputs)
    inputs[0] = probit_mix_gaussian_cdf(*inputs)[0].detach().requires_grad_()
    assert gradcheck(probit_mix_gaussian_cdf_inverse, inputs)
    assert gradgradcheck(probit_mix_gaussian_cdf_inverse, inputs)


# Ways to call


@pytest.mark.parametrize("function", FUNCTIONS)
def test_torch_func(function):
    inputs = small_case(shape=(3,))
    got = torch.func.jacrev(function, argnums=(0, 1, 2, 3))(*inputs)
    torch.testing.assert_close(got, torch.autograd.functional.jacobian(function, tuple(inputs)))

    def total(*tensors):
        first, second = function(*tensors)
        return (first * second).sum()

    got = torch.func.jacrev(torch.func.jacrev(total))(*inputs)
    wanted = torch.autograd.functional.hessian(lambda x: total(x, *inputs[1:]), inputs[0])
    torch.testing.assert_close(got, wanted)
    third = torch.func.jacrev(torch.func.jacrev(torch.func.grad(total)))(*(t[:1] for t in inputs))
    assert third.isfinite().all()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_vmap(function):
    x, logits, means, log_scales = (t.detach() for t in small_case(shape=(5, 2)))
    got = torch.vmap(function, in_dims=(0, 1, None, 2))(x, logits.movedim(0, 1), means[0], log_scales.movedim(0, 2))
    wanted = [function(x[i], logits[i], means[0], log_scales[i]) for i in range(5)]
    torch.testing.assert_close(got, tuple(torch.stack(parts) for parts in zip(*wanted, strict=True)))


@pytest.mark.parametrize(
    "function",
    [probit_mix_gaussian_cdf, pytest.param(probit_mix_gaussian_cdf_inverse, marks=pytest.mark.thorough)],
)
def test_compile(function):
    inputs = small_case()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    got, wanted = compiled(*inputs), function(*inputs)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(gradients(got, inputs), gradients(wanted, inputs))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_fake_meta_empty_and_scalar(function):
    with FakeTensorMode(allow_non_fake_inputs=True):
        outputs = function(torch.randn(4).double(), *(t.detach() for t in small_case()[1:]))
        assert [t.shape for t in outputs] == [(4,)] * 2
    meta = [t.detach().to("meta").requires_grad_() for t in small_case()]
    sum(t.sum() for t in function(*meta)).backward()
    assert [t.grad.shape for t in meta] == [t.shape for t in meta]
    for shape in ((0,), (3, 0, 2), ()):
        inputs = small_case(shape=shape)
        outputs = function(*inputs)
        sum(t.sum() for t in outputs).backward()
        assert [t.shape for t in outputs] == [shape] * 2


# Refusals


@pytest.mark.parametrize("function", FUNCTIONS)
def test_refusals(function):
    x, parameter = torch.zeros(4), torch.zeros(4, 3)
    call = functools.partial(function, x)
    with pytest.raises(ShapeError, match=r"^means: got shape \(4, 1\), wanted \(4, 3\)"):
        call(parameter, parameter[:, :1], parameter)
    with pytest.raises(DomainError, match=r"^log_scales: got dtype torch.float64, wanted torch.float32"):
        call(parameter, parameter, parameter.double())
