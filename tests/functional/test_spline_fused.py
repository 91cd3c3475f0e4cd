"""The spline of compiled code: values and gradients are those of the eager code, and little is kept for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowkit.functional.eager import compiled_for_cpu
from flowkit.functional.spline import rational_quadratic_spline, rational_quadratic_spline_inverse
from flowkit.functional.spline_fused import MOST_BINS


@pytest.fixture(autouse=True)
def _no_limit_to_compiling_again():
    torch.compiler.reset()


@pytest.fixture
def fused():
    """For tests of the form that the compiler is given."""
    if not torch.compile(lambda x: x * compiled_for_cpu(x), backend="eager")(torch.ones(())):
        pytest.skip("this torch takes all that it compiles for an export, which has the eager form")


def arguments(bins: int, tails: str, shape: tuple[int, ...] = (5, 7)) -> tuple[Tensor, ...]:
    torch.manual_seed(bins)
    slopes = bins + {"linear": -1, "circular": 0, "bounded": 1}[tails]
    x = 2 * torch.randn(shape, dtype=torch.float64)
    return x, *(2 * torch.randn(*shape, size, dtype=torch.float64) for size in (bins, bins, slopes))


@pytest.mark.parametrize("tails", ["linear", "circular", "bounded"])
@pytest.mark.parametrize("bins", [1, 2, 8, MOST_BINS, MOST_BINS + 1])
@pytest.mark.parametrize("function", [rational_quadratic_spline, rational_quadratic_spline_inverse])
def test_compiled_values_and_gradients_are_the_eager_ones(function, bins, tails, request):
    if bins == 1:
        request.getfixturevalue("fused")  # of the eager form with one bin, old compilers fail on an empty tensor

    def both(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        return function(x, *parameters, lower=-3.0, upper=2.0, tails=tails)

    def found(f) -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in arguments(bins, tails)]
        y, log_derivative = f(*leaves)
        loss = (y * y).sum() + (y * log_derivative).sum()
        return y, log_derivative, *torch.autograd.grad(loss, leaves, materialize_grads=True)

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    for one, other in zip(found(compiled), found(both), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def assert_as_near_to_float64(function, scale: float, tails: str, backend: str) -> None:
    """Values and gradients of compiled code, in float32, as those of the eager code: on knots and ends too."""

    def both(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        return function(x, *parameters, lower=-3.0, upper=2.0, tails=tails)

    def found(f, tensors) -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in tensors]
        y, log_derivative = f(*leaves)
        return y, log_derivative, *torch.autograd.grad((y + log_derivative).sum(), leaves)

    x, *parameters = (scale * t for t in arguments(8, tails, (40, 50)))
    x = torch.cat([x[1:] / scale, torch.tensor([-3.0, 2.0]).repeat(25).double()[None]])
    narrow = [t.float() for t in (x, *parameters)]
    exact = found(both, [t.double() for t in narrow])
    compiled = torch.compile(both, backend=backend, fullgraph=True)
    for here, eager, truth in zip(found(compiled, narrow), found(both, narrow), exact, strict=True):
        assert here.isfinite().all()
        # Quantiles: beside a knot, rounding chooses another bin, whose gradient is another one.
        size = truth.abs() + truth.abs().mean()
        mine, autograd = (((t - truth).abs() / size).flatten() for t in (here, eager))
        for share in (0.5, 0.9, 0.98):
            assert mine.quantile(share) <= 2 * autograd.quantile(share) + 1e-7


@pytest.mark.parametrize("tails", ["linear", "circular", "bounded"])
@pytest.mark.parametrize("scale", [1.0, 8.0, 100.0])
@pytest.mark.parametrize("function", [rational_quadratic_spline, rational_quadratic_spline_inverse])
def test_float32_at_any_scale(function, scale, tails):
    assert_as_near_to_float64(function, scale, tails, "aot_eager")


@pytest.mark.thorough
@pytest.mark.parametrize("function", [rational_quadratic_spline, rational_quadratic_spline_inverse])
def test_by_the_compiler_of_kernels(function):
    assert_as_near_to_float64(function, 2.0, "linear", "inductor")


def test_the_backward_pass_keeps_little_but_the_inputs(fused):
    tensors = [t.requires_grad_() for t in arguments(8, "linear")]
    kept = []
    step = torch.compile(rational_quadratic_spline, backend="aot_eager_decomp_partition", fullgraph=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        step(*tensors, lower=-3.0, upper=2.0)
    inputs = {t.data_ptr() for t in tensors}
    assert sum(t.numel() for t in kept if t.data_ptr() not in inputs) <= tensors[0].numel()  # x within the interval


def test_vmap_within_compiled_code():
    x, *parameters = arguments(4, "linear", (3, 5))

    def each(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic_spline(x, *parameters, lower=-3.0, upper=2.0)

    found = torch.compile(torch.vmap(each), backend="aot_eager", fullgraph=True)(x, *parameters)
    for one, other in zip(found, each(x, *parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
