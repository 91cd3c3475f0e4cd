"""Transforms of `torch.func` and the compiler, one within the other: derivatives are those of the eager code."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from flowkit.functional import (
    logit_mix_logistic_cdf,
    logit_mix_logistic_cdf_inverse,
    probit_mix_gaussian_cdf,
    probit_mix_gaussian_cdf_inverse,
    rational_quadratic_spline,
    rational_quadratic_spline_inverse,
)

SPLINES = [
    functools.partial(f, lower=-3.0, upper=2.0) for f in (rational_quadratic_spline, rational_quadratic_spline_inverse)
]
MIXTURES = [
    logit_mix_logistic_cdf,
    logit_mix_logistic_cdf_inverse,
    probit_mix_gaussian_cdf,
    probit_mix_gaussian_cdf_inverse,
]


@pytest.fixture(autouse=True)
def _no_limit_to_compiling_again():
    torch.compiler.reset()


class Square(torch.autograd.Function):
    """An `autograd.Function` as PyTorch's documentation has it."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient

    @staticmethod
    def vmap(info, in_dims, x: Tensor) -> tuple[Tensor, int]:
        return Square.apply(x), 0


def refused(x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        raise NotImplementedError
    return Square.apply(x)


def compiled_jacobian_of_refused() -> Tensor:
    return torch.compile(lambda x: torch.func.jacrev(refused)(x), backend="aot_eager")(torch.ones(3))


def arguments(function) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    sizes = (4, 4, 3) if function in SPLINES else (4, 4, 4)
    return torch.randn(3, dtype=torch.double), *(torch.randn(3, size, dtype=torch.double) for size in sizes)


def loss(function, *tensors: Tensor) -> Tensor:
    y, log_derivative = function(*tensors)
    return (y * log_derivative).sum() + log_derivative.exp().sum()


def score_penalty(function, x: Tensor, *parameters: Tensor) -> Tensor:
    """What a gradient is taken of that holds a gradient itself."""
    return torch.func.grad(lambda x: loss(function, x, *parameters))(x).pow(2).sum()


def within(function):
    """By name, what is compiled as a whole."""
    _, *parameters = arguments(function)
    return {
        "gradient": lambda x: torch.func.grad(lambda x: loss(function, x, *parameters))(x),
        "gradient of a gradient": lambda x: torch.func.grad(lambda x: score_penalty(function, x, *parameters))(x),
        "hessian": torch.func.hessian(lambda x: loss(function, x, *parameters)),
        "jacobian": torch.func.jacrev(lambda x: function(x, *parameters)[0]),
        "vmap": lambda x: torch.vmap(lambda x, *p: function(x, *p)[1])(x, *parameters),
    }


@pytest.mark.parametrize("name", ["gradient", "gradient of a gradient", "hessian", "jacobian", "vmap"])
@pytest.mark.parametrize("function", [*SPLINES, *MIXTURES])
def test_transforms_within_compiled_code(function, name):
    if name == "hessian" and function in MIXTURES:
        pytest.skip("forward mode, which mixtures do not define")
    if name == "jacobian" and function in MIXTURES and not compiled_jacobian_of_refused().any():
        pytest.skip("this torch loses the gradient of an `autograd.Function` that it leaves out of a compiled Jacobian")
    x, *_ = arguments(function)
    transform = within(function)[name]
    torch.testing.assert_close(torch.compile(transform, backend="aot_eager")(x), transform(x))


@pytest.mark.parametrize("name", ["penalty", "vmap"])
@pytest.mark.parametrize("function", [*SPLINES, *MIXTURES])
def test_gradients_of_compiled_transforms(function, name):
    def run(*tensors: Tensor) -> Tensor:
        if name == "penalty":
            return score_penalty(function, *tensors) + loss(function, *tensors)
        return torch.vmap(lambda *each: function(*each)[1])(*tensors).sum()

    def gradients(run) -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in arguments(function)]
        return torch.autograd.grad(run(*leaves), leaves)

    torch.testing.assert_close(gradients(torch.compile(run, backend="aot_eager")), gradients(run))


@pytest.mark.parametrize("function", [*SPLINES, *MIXTURES])
def test_transforms_of_compiled_code(function):
    """After a call that had none: what was compiled for it does not serve."""
    tensors = arguments(function)
    compiled = torch.compile(function, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), function(*tensors))
    torch.testing.assert_close(torch.vmap(compiled)(*tensors), torch.vmap(function)(*tensors))


@pytest.mark.parametrize("function", SPLINES)
def test_one_tensor_for_two_parameters(function):
    x, shares, _, slopes = arguments(function)
    compiled = torch.compile(lambda *t: function(t[0], t[1], t[1], t[2]), backend="aot_eager", fullgraph=True)
    leaves = [t.requires_grad_() for t in (x, shares, slopes)]
    wanted = torch.autograd.grad(loss(lambda x, s, d: function(x, s, s, d), *leaves), leaves)
    torch.testing.assert_close(torch.autograd.grad(loss(compiled, *leaves), leaves), wanted)
