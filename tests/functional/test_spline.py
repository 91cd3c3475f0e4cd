"""The rational-quadratic spline: digits, knots, extremes, gradients, and every way in which PyTorch may call it."""

import functools
import itertools
import math

import mpmath
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

from flowkit.errors import DomainError, ShapeError
from flowkit.functional import spline
from flowkit.functional.spline import rational_quadratic_spline, rational_quadratic_spline_inverse
from flowkit.functional.spline_bin import Grid

DTYPES = (torch.float32, torch.float64)
TAILS = {"linear": -1, "circular": 0, "bounded": 1}
FUNCTIONS = (rational_quadratic_spline, rational_quadratic_spline_inverse)
LOWER, UPPER = -2.0, 3.0


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def bound(function, tails):
    return functools.partial(function, lower=LOWER, upper=UPPER, tails=tails)


def parameters(tails, bins, *shape, scale=1.0, dtype=torch.float64):
    sizes = (bins, bins, bins + TAILS[tails])
    return [(scale * torch.randn(*shape, size)).to(dtype).requires_grad_() for size in sizes]


def places(tails, *shape, dtype=torch.float64):
    """In the interval, and some of them outside."""
    reach = 0.5 if tails == "bounded" else 4.0
    return (LOWER - reach + (UPPER - LOWER + 2 * reach) * torch.rand(shape)).to(dtype)


def gradients(outputs, inputs):
    cotangents = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view(t.shape) + 0.3 for t in outputs]
    return torch.autograd.grad(outputs, inputs, cotangents)


# Digits


def exact(x, widths, heights, slopes):
    """z and log dz/dx of one x in the interval with 40 digits, by the paper's formulas, bounded tails."""
    with mpmath.workdps(40):

        def knots(raw):
            exponentials = [mpmath.exp(r) for r in raw]
            total, least = sum(exponentials), mpmath.mpf(1e-3)
            shares = [least + (1 - len(raw) * least) * e / total for e in exponentials]
            return [LOWER + (UPPER - LOWER) * sum(shares[:i], mpmath.mpf(0)) for i in range(len(raw) + 1)]

        least = mpmath.mpf(1e-3)
        d = [least + mpmath.log1p(mpmath.exp(r) * mpmath.expm1(1 - least)) for r in slopes]
        xs, zs, x = knots(widths), knots(heights), mpmath.mpf(x)
        k = max(i for i in range(len(widths)) if xs[i] <= x or i == 0)
        s = (zs[k + 1] - zs[k]) / (xs[k + 1] - xs[k])
        t = (x - xs[k]) / (xs[k + 1] - xs[k])
        bottom = s + (d[k + 1] + d[k] - 2 * s) * t * (1 - t)
        z = zs[k] + (zs[k + 1] - zs[k]) * (s * t**2 + d[k] * t * (1 - t)) / bottom
        slope = s**2 * (d[k + 1] * t**2 + 2 * s * t * (1 - t) + d[k] * (1 - t) ** 2) / bottom**2
        return float(z), float(mpmath.log(slope))


def errors(got, wanted, swing, bins, dtype):
    """Those of z and log dz/dx, in units of what the docstring allows; `swing` is d log slope / dx."""
    eps, length = torch.finfo(dtype).eps, UPPER - LOWER
    shift = 2 * bins * eps * length  # of the knots
    error_z, error_log = ((one.double() - other).abs() for one, other in zip(got, wanted, strict=True))
    return (
        (error_z / (4 * shift * (1 + wanted[1].exp()))).max().item(),
        (error_log / (16 * eps * (1 + wanted[1].abs()) + 2 * shift * swing)).max().item(),
    )


def swing_of(x, raw):
    """The largest |d log slope / dx| at x and beside it, where another bin may be."""
    near = []
    for step in (-1e-4, -1e-6, 0.0, 1e-6, 1e-4):
        at = (x.double() + step).clamp(LOWER, UPPER).requires_grad_()
        log_slope = bound(rational_quadratic_spline, "bounded")(at, *raw)[1]
        near.append(torch.autograd.grad(log_slope.sum(), at)[0].abs())
    return torch.stack(near).amax(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bins", [2, 8, 32])
@pytest.mark.parametrize("scale", [0.3, 3.0, 8.0])
def test_digits(scale, bins, dtype):
    raw = [t.detach() for t in parameters("bounded", bins, 60, scale=scale, dtype=dtype)]
    x = (LOWER + (UPPER - LOWER) * torch.rand(60)).to(dtype)
    got = bound(rational_quadratic_spline, "bounded")(x, *raw)
    rows = zip(*(t.tolist() for t in (x, *raw)), strict=True)
    wanted = torch.tensor([exact(*row) for row in rows], dtype=torch.float64).T
    assert max(errors(got, wanted, swing_of(x, [t.double() for t in raw]), bins, dtype)) <= 1


@pytest.mark.parametrize("tails", TAILS)
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_float32_against_float64(tails, scale):
    raw = [t.detach().float() for t in parameters(tails, 8, 100_000, scale=scale)]
    x = (LOWER + (UPPER - LOWER) * torch.rand(100_000)).clamp(LOWER, UPPER)
    got = bound(rational_quadratic_spline, tails)(x, *raw)
    at = x.double().requires_grad_()
    wanted = bound(rational_quadratic_spline, tails)(at, *(t.double() for t in raw))
    error = (got[1] - wanted[1]).abs().detach()
    assert error.median() < 3e-6
    assert ((got[0] - wanted[0]).abs() <= 64 * 6e-8 * (UPPER - LOWER) * (1 + wanted[1].exp())).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tails", TAILS)
@pytest.mark.parametrize("bins", [1, 3, 8, 16])
def test_zero_is_the_identity(bins, tails, dtype):
    x = torch.linspace(LOWER, UPPER, 101, dtype=dtype)
    raw = [torch.zeros(101, size, dtype=dtype) for size in (bins, bins, bins + TAILS[tails])]
    for function in FUNCTIONS:
        z, log_derivative = bound(function, tails)(x, *raw)
        torch.testing.assert_close(z, x, rtol=0, atol=4 * torch.finfo(dtype).eps)
        assert log_derivative.abs().max() <= 8 * torch.finfo(dtype).eps


# Knots, ends and beyond


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tails", TAILS)
@pytest.mark.parametrize("scale", [0.3, 3.0, 10.0])
def test_knots_and_ends_are_exact(scale, tails, dtype):
    raw = [t.detach() for t in parameters(tails, 8, 500, scale=scale, dtype=dtype)]
    knots = spline._spline(*raw, Grid(LOWER, UPPER, tails, 1e-3, 1e-3, 1e-3))
    assert (knots.x[:, 0] == LOWER).all() and (knots.x[:, -1] == UPPER).all()
    assert (knots.x.diff() > 0).all() and (knots.z.diff() > 0).all()
    wide = [t.unsqueeze(1).expand(-1, 9, -1) for t in raw]
    z, log_derivative = bound(rational_quadratic_spline, tails)(knots.x, *wide)
    x, log_back = bound(rational_quadratic_spline_inverse, tails)(knots.z, *wide)
    assert torch.equal(z, knots.z) and torch.equal(x, knots.x)
    torch.testing.assert_close(log_derivative, knots.d.log(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_back, -log_derivative, rtol=1e-6, atol=1e-6)


def test_beyond_the_ends():
    x = torch.tensor([-7.0, -2.0, 3.0, 4.0, 500.0], dtype=torch.float64)
    for function in FUNCTIONS:
        z, log_derivative = bound(function, "linear")(x, *parameters("linear", 4, 5))
        assert torch.equal(z, x) and torch.equal(log_derivative, torch.zeros_like(x))
        raw = [t[:1].expand(5, -1) for t in parameters("circular", 4, 5)]
        z, log_derivative = bound(function, "circular")(x, *raw)
        turned, log_turned = bound(function, "circular")(torch.tensor([-2.0, -2.0, -2.0, -1.0, 0.0]).double(), *raw)
        torch.testing.assert_close(z, turned + torch.tensor([-5.0, 0.0, 5.0, 5.0, 500.0]))
        torch.testing.assert_close(log_derivative, log_turned)
        raw = [t[:1].expand(5, -1) for t in parameters("bounded", 4, 5)]
        z, log_derivative = bound(function, "bounded")(x, *raw)
        torch.testing.assert_close(log_derivative[[0, 3, 4]], log_derivative[[1, 2, 2]])
        torch.testing.assert_close(z[0], -2 - 5 * log_derivative[1].exp())


@pytest.mark.parametrize("tails", ["linear", "circular"])
def test_slope_is_continuous_at_the_ends(tails):
    raw = [t[:1].expand(2, -1) for t in parameters(tails, 8, 1)]
    x = torch.tensor([LOWER, math.nextafter(UPPER, 0)], dtype=torch.float64)
    _, log_derivative = bound(rational_quadratic_spline, tails)(x, *raw)
    wanted = log_derivative.new_zeros(2) if tails == "linear" else log_derivative[:1].expand(2)
    torch.testing.assert_close(log_derivative, wanted, rtol=1e-10, atol=1e-10)


# Extremes: failures 5 and 6 of NUMERICS.md


@pytest.mark.parametrize("tails", TAILS)
def test_round_trip_at_any_scale(tails):
    """50 x 4096 elements of 16 bins, raw parameters N(0, 8^2): no exception, no NaN, and x as well as rounding lets."""
    eps, length = torch.finfo(torch.float32).eps, UPPER - LOWER
    worst_residual = 0.0
    for _ in range(50):
        raw = [t.detach() for t in parameters(tails, 16, 4096, scale=8.0, dtype=torch.float32)]
        x = places(tails, 4096, dtype=torch.float32)
        z, log_derivative = bound(rational_quadratic_spline, tails)(x, *raw)
        back, log_back = bound(rational_quadratic_spline_inverse, tails)(z, *raw)
        assert all(t.isfinite().all() for t in (z, log_derivative, back, log_back))
        again, log_slope = bound(rational_quadratic_spline, tails)(back, *raw)
        residual = (again - z).abs() / (length * eps * (1 + log_slope.exp() + log_derivative.exp()))
        worst_residual = max(worst_residual, residual.max().item())
        # the flattest place between x and what came back: where dz/dx is small, rounding z moves x far
        points = torch.stack([torch.lerp(x, back, t) for t in torch.linspace(0, 1, 9).tolist()])
        wide = [t.expand(9, *t.shape) for t in raw]
        flattest = bound(rational_quadratic_spline, tails)(points, *wide)[1].amin(0)
        assert ((back - x).abs() <= 8 * length * eps * (1 + (-flattest).exp())).all()
    assert worst_residual <= 2


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("tails", TAILS)
@pytest.mark.parametrize("scale", [8.0, 100.0, 1e4])
def test_gradients_are_finite_at_any_scale(scale, tails, function):
    raw = parameters(tails, 8, 4096, scale=scale, dtype=torch.float32)
    knots = spline._spline(*(t.detach() for t in raw), Grid(LOWER, UPPER, tails, 1e-3, 1e-3, 1e-3))
    on_knots = (knots.x if function is rational_quadratic_spline else knots.z)[:2048, ::4].reshape(-1)[:2048]
    x = torch.cat([places(tails, 2048, dtype=torch.float32), on_knots]).requires_grad_()
    outputs = bound(function, tails)(x, *raw)
    assert all(t.isfinite().all() for t in (*outputs, *gradients(outputs, [x, *raw])))


# Gradients


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("tails", TAILS)
def test_gradients(tails, function):
    raw = parameters(tails, 3, 6)
    x = torch.tensor([-3.0, -1.7, 0.1, 1.3, 2.9, 3.2], dtype=torch.float64, requires_grad=True)
    assert gradcheck(bound(function, tails), [x, *raw])
    assert gradgradcheck(bound(function, tails), [x, *raw])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("tails", TAILS)
def test_gradient_on_knots_is_the_slope(tails, function):
    """On the ends too; and in the middle of a bin of the identity, where the inverse changes its formula."""
    raw = parameters(tails, 4, 9)
    with torch.no_grad():
        for parameter in raw:
            parameter[5:] = 0
    knots = spline._spline(*(t.detach() for t in raw), Grid(LOWER, UPPER, tails, 1e-3, 1e-3, 1e-3))
    ends = knots.x if function is rational_quadratic_spline else knots.z
    middle = 0.5 * (ends[5:, :-1] + ends[5:, 1:]).diagonal()
    x = torch.cat([ends[:5].diagonal(), middle]).requires_grad_()
    outputs = bound(function, tails)(x, *raw)
    (slope,) = torch.autograd.grad(outputs[0].sum(), x, retain_graph=True)
    torch.testing.assert_close(slope, outputs[1].exp())
    assert all(t.isfinite().all() for t in gradients(outputs, [x, *raw]))


# Ways to call


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("tails", TAILS)
def test_vmap_and_jacrev(tails, function):
    function = bound(function, tails)
    x, raw = places(tails, 5, 2), [t.detach() for t in parameters(tails, 3, 5, 2)]
    got = torch.vmap(function, in_dims=(0, 1, 0, None))(x, raw[0].movedim(0, 1), raw[1], raw[2][0])
    wanted = function(x, raw[0], raw[1], raw[2][:1].expand(5, -1, -1))
    torch.testing.assert_close(got, wanted)
    jacobians = torch.func.jacrev(function, argnums=(0, 1, 2, 3))(x, *raw)
    torch.testing.assert_close(jacobians, torch.autograd.functional.jacobian(function, (x, *raw)))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("tails", TAILS)
def test_compile(tails, function):
    raw, x = parameters(tails, 3, 6), places(tails, 6).requires_grad_()
    compiled = torch.compile(bound(function, tails), backend="aot_eager", fullgraph=True)
    got, wanted = compiled(x, *raw), bound(function, tails)(x, *raw)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(gradients(got, [x, *raw]), gradients(wanted, [x, *raw]))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_fake_meta_empty_and_scalar(function):
    with FakeTensorMode(allow_non_fake_inputs=True):
        outputs = bound(function, "linear")(torch.randn(4).double(), *parameters("linear", 3, 4))
        assert [t.shape for t in outputs] == [(4,)] * 2
    meta = [t.to("meta") for t in (places("linear", 4), *parameters("linear", 3, 4))]
    assert all(t.is_meta for t in bound(function, "linear")(*meta))
    for tails, shape in itertools.product(TAILS, [(0,), (3, 0, 2), ()]):
        outputs = bound(function, tails)(places(tails, *shape), *parameters(tails, 3, *shape))
        sum(t.sum() for t in outputs).backward()
        assert [t.shape for t in outputs] == [shape] * 2


# Refusals


@pytest.mark.parametrize("function", FUNCTIONS)
def test_refusals(function):
    x, raw = torch.zeros(4), [torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(4, 2)]
    call = functools.partial(function, lower=-1.0, upper=1.0)
    with pytest.raises(ShapeError, match=r"^widths: got shape \(1, 3\), wanted \(4, 'K'\)"):
        call(x, raw[0][:1], *raw[1:])
    with pytest.raises(ShapeError, match=r"^slopes: got shape \(4, 2\), wanted \(4, 4\): bounded tails and 3 bins"):
        call(x, *raw, tails="bounded")
    with pytest.raises(DomainError, match=r"wanted torch.float32 or torch.float64"):
        call(x.bfloat16(), *raw)
    with pytest.raises(DomainError, match=r"^heights: got dtype torch.float64, wanted torch.float32"):
        call(x, raw[0], raw[1].double(), raw[2])
    for wrong, named in (({"tails": "cubic"}, "tails"), ({"upper": -1.0}, "interval"), ({"min_width": 0.4}, "min_wid")):
        with pytest.raises(ValueError, match=f"^{named}.*wanted"):
            call(x, *raw, **wrong)
