"""The kernels for a GPU: under Triton's interpreter, which needs none, and on a GPU where there is one."""

import os
import subprocess
import sys

import pytest
import torch

from flowkit.functional import logistic
from flowkit.functional.logistic import logit_mix_logistic_cdf, logit_mix_logistic_cdf_inverse

pytest.importorskip(
    "triton",
    reason="triton is not installed: torch for a GPU brings it along, and `pip install triton` for its interpreter",
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_under_the_interpreter")
DTYPES = (torch.float32, torch.float64)
SCALES = {  # log-scales; means and logits are N(0, 1)
    "init": lambda *shape: 0.3 * torch.randn(*shape),
    "wide": lambda *shape: 10 * torch.rand(*shape) - 7,
    "sharpish": lambda *shape: 4 * torch.rand(*shape) - 7,
    "sharp": lambda *shape: torch.full(shape, -7.0),
    "broad": lambda *shape: 2 * torch.rand(*shape) + 1,
}
LAYOUTS = {"of a convolution": 5, "side by side": 33, "apart": 1}  # and how many components


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.skipif(INTERPRETED, reason="is the process that it starts")
def test_under_the_interpreter():
    """Triton decides at its import whether it interprets."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def parameters(regime, layout, components=5, dtype=torch.float64):
    """Logits, means and log-scales of 3 x 2 x 4 x 4 elements, as views of what a net gave or as three tensors."""
    if layout == "of a convolution":
        net = torch.randn(3, 2, 3, components, 4, 4)
        net[:, :, 2] = SCALES[regime](3, 2, components, 4, 4)
        views = [t.movedim(2, -1) for t in net.to(dtype).unbind(2)]
    else:
        views = [*torch.randn(2, 3, 2, 4, 4, components).to(dtype), SCALES[regime](3, 2, 4, 4, components).to(dtype)]
    if layout == "apart":  # strides of more than two dims, unlike for the three
        views[0] = views[0].transpose(0, 2).contiguous().transpose(0, 2)
        views[1] = views[1].transpose(1, 3).contiguous().transpose(1, 3)
    return views


@pytest.fixture
def kernels(monkeypatch):
    """The public functions take the way of a GPU."""
    monkeypatch.setattr(logistic, "steered_by_values", lambda *_: False)
    monkeypatch.setattr(logistic, "_fused", lambda _: False)
    monkeypatch.setattr(logistic, "_on_gpu", lambda *_: True)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("regime", SCALES)
@pytest.mark.parametrize("far", [1.0, 30.0])
def test_forward_and_inverse(kernels, dtype, regime, far):
    eps = torch.finfo(dtype).eps
    for layout, components in LAYOUTS.items():
        x, mixture = (far * torch.randn(3, 2, 4, 4)).to(dtype), parameters(regime, layout, components, dtype)
        y, log_derivative = logit_mix_logistic_cdf(x, *mixture)
        wanted, wanted_log = logistic._log_space(x.double(), *(t.double() for t in mixture))
        size = wanted.abs().clamp(min=1)
        assert ((y - wanted).abs() <= 8 * eps * size).all()
        assert ((log_derivative - wanted_log).abs() <= 16 * eps * torch.maximum(size, wanted_log.abs())).all()
        back, log_back = logit_mix_logistic_cdf_inverse(y, *mixture)
        again, log_slope = logistic._log_space(back.double(), *(t.double() for t in mixture))
        residual = 6 * eps * (1 + y.abs() + log_slope.exp() * back.abs())
        assert ((again - y).abs() <= residual).all()
        bound = 16 * eps * torch.maximum(torch.maximum(y.abs(), log_slope.abs()), torch.ones_like(y))
        assert ((log_back + log_slope).abs() <= bound).all()


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("regime", SCALES)
@pytest.mark.parametrize("far", [1.0, 30.0])
def test_gradients(kernels, dtype, regime, far):
    eps = torch.finfo(dtype).eps
    for layout, components in LAYOUTS.items():
        x, mixture = (far * torch.randn(3, 2, 4, 4)).to(dtype), parameters(regime, layout, components, dtype)
        inputs = [t.detach().requires_grad_() for t in (x, *mixture)]
        outputs = logit_mix_logistic_cdf(*inputs)
        cotangents = [torch.randn_like(t) for t in outputs]
        got = torch.autograd.grad(outputs, inputs, cotangents)
        wanted = logistic._pull_back(*(t.detach().double() for t in (*cotangents, *inputs)))
        scale = 1 + outputs[0].detach().abs()
        for part, true_part in zip(got, wanted, strict=True):
            size = 64 * eps * (scale.view(*scale.shape, *[1] * (part.ndim - scale.ndim)) + true_part.abs())
            assert ((part - true_part).abs() <= size * (1 if part is got[1] else true_part.abs().max())).all()


@interpreted
def test_every_way_to_call(kernels):
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, *parameters("init", "of a convolution"))]
    for function in (logit_mix_logistic_cdf, logit_mix_logistic_cdf_inverse):
        wanted = function(*inputs)
        one = [t[:1, :1, :1, :1].detach().requires_grad_() for t in inputs]
        assert torch.autograd.gradcheck(function, one)
        assert torch.autograd.gradgradcheck(function, one)
        torch.testing.assert_close(torch.vmap(function)(*inputs), wanted)
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)(*inputs)
        torch.testing.assert_close(compiled, wanted)
        grads = [torch.autograd.grad(a + b, inputs, torch.ones_like(x)) for a, b in (compiled, wanted)]
        torch.testing.assert_close(*grads)
        empty = function(*(t[:0] for t in inputs))
        assert [t.shape for t in empty] == [(0, 2, 4, 4)] * 2


@interpreted
def test_operators_are_what_they_say():
    from flowkit.functional.logistic_triton import triton_backward, triton_forward, triton_solve

    x = torch.randn(3, 2, 4, 4)
    for layout in LAYOUTS:
        mixture = parameters("wide", layout, dtype=torch.float32)
        for operator, tensors in ((triton_forward, [x]), (triton_backward, [x, x, x]), (triton_solve, [x])):
            torch.library.opcheck(operator, (*tensors, mixture))


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("regime", SCALES)
def test_on_a_gpu(dtype, regime):
    eps = torch.finfo(dtype).eps
    on_cpu = [torch.randn(3, 2, 4, 4, dtype=dtype), *parameters(regime, "apart", dtype=dtype)]
    on_gpu = [t.cuda().requires_grad_() for t in on_cpu]
    on_cpu = [t.requires_grad_() for t in on_cpu]
    got, wanted = logit_mix_logistic_cdf(*on_gpu), logit_mix_logistic_cdf(*on_cpu)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=32 * eps, atol=32 * eps)
    grads = [torch.autograd.grad(a.sum() + b.sum(), t) for (a, b), t in ((got, on_gpu), (wanted, on_cpu))]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e3 * eps, atol=64 * eps * float(other.abs().max()))
    x, _ = logit_mix_logistic_cdf_inverse(got[0].detach(), *on_gpu[1:])
    again, log_slope = logit_mix_logistic_cdf(x.cpu(), *on_cpu[1:])
    y = got[0].detach().cpu()
    assert ((again - y).abs() <= 12 * eps * (1 + y.abs() + log_slope.exp() * x.cpu().abs())).all()
