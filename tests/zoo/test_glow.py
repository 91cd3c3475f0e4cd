"""Glow: what is its own."""

import math

import pytest
import torch

import flowkit as fk
from flowkit.zoo import glow
from flowkit.zoo.glow import rotation
from tests.support import after_dequantizer, log_prob_by_jacobian, perturb, trained
from tests.zoo.test_realnvp import images

TINY = {"shape": (1, 4, 4), "levels": 7, "scales": 2, "steps": 2, "filters": 4}


def tiny(**sizes):
    torch.manual_seed(0)
    return perturb(glow(**{**TINY, **sizes}), scale=0.05).double()


def published(scales, steps, filters, channels=3):
    """Parameters of the published code (affine, plain 1x1 convolutions, no last prior), layer by layer."""
    total, n = 0, channels
    for i in range(scales):
        n *= 4
        norm, mix = 2 * n, n * n
        first = 9 * (n // 2 + 1) * filters + 2 * filters  # one more channel in, which marks the padding
        middle = filters * filters + 2 * filters
        last = 9 * (filters + 1) * n + 2 * n
        total += steps * (norm + mix + first + middle + last)
        if i < scales - 1:
            total += 9 * (n // 2 + 1) * n + 2 * n
            n //= 2
    return total


@pytest.mark.parametrize("sizes", [{}, {"steps": 2, "filters": 64, "scales": 4, "shape": (3, 64, 64)}])
def test_parameters_are_those_of_the_published_code_but_for_its_padding_channel(sizes):
    with torch.device("meta"):
        flow = glow(**sizes, learned_prior=False)
    scales, steps, filters = sizes.get("scales", 3), sizes.get("steps", 32), sizes.get("filters", 512)
    channels = [3 * 2 ** (i + 2) for i in range(scales)]
    padding = sum(steps * 9 * (filters + n) for n in channels) + sum(9 * n for n in channels[:-1])
    assert sum(p.numel() for p in flow.parameters()) == published(scales, steps, filters) - padding
    if not sizes:
        assert published(scales, steps, filters) == 44_519_604


@pytest.mark.parametrize("lu", [False, True])
def test_it_starts_as_rotations_of_channels(lu):
    """All nets start at 0, so that the latents are the squeezed image turned: lengths stay."""
    torch.manual_seed(0)
    flow = glow(**{**TINY, "scales": 1}, coupling="additive", lu=lu, learned_prior=False).double()
    mixed = after_dequantizer(flow)
    x = torch.rand(5, 1, 4, 4).double()
    z, term = mixed.transform(x)
    squeezed, _ = fk.Squeeze()(x - 0.5)
    torch.testing.assert_close(z.norm(dim=-3), squeezed.norm(dim=-3), rtol=1e-5, atol=0)  # rotations in float32
    assert term.abs().max() < 1e-5 and not torch.allclose(z, squeezed)


def test_couplings_start_with_the_scale_of_the_published_code():
    couple = glow(**TINY).double().transform["scale1"]["steps"][0]["couple"]
    x = torch.randn(3, 4, 2, 2).double()
    z, term = couple(x)
    torch.testing.assert_close(z[:, 2:] / x[:, 2:], torch.full((3, 2, 2, 2), 1 / (1 + math.exp(-2))).double())
    torch.testing.assert_close(term, torch.full((3,), -8 * math.log1p(math.exp(-2))).double())


def test_no_image_breaks_a_trained_model():
    """Images unlike those of the training: with scales of exp(raw) the density was NaN after 100 steps."""
    torch.manual_seed(0)
    flow = glow((1, 4, 4), levels=7, scales=2, steps=6, filters=8)
    trained(flow, images(64))
    board = (torch.arange(4)[:, None] + torch.arange(4)) % 2 * 6
    strange = [torch.randint(7, (32, 1, 4, 4)), 6 - images(16), board.expand(1, 1, 4, 4)]
    nets = [net for net in flow.modules() if isinstance(net, fk.nets.ConvNet)]
    for gain in (1.0, 10.0, 100.0):  # as of a training that went on for long
        with torch.no_grad():
            for net in nets:
                next(net.parameters()).mul_(gain)
        for x in strange:
            assert bool(flow.log_prob(x).isfinite().all()), gain


def test_the_lu_form_starts_as_the_rotation_it_was_made_from():
    shape = (12, 2, 2)
    torch.manual_seed(5)
    plain = rotation(shape, lu=False).weight
    torch.manual_seed(5)
    torch.randn(144)  # where a plain one draws its noise
    by_lu = rotation(shape, lu=True)
    columns = torch.eye(12).reshape(12, 12, 1, 1).expand(12, *shape)
    torch.testing.assert_close(by_lu(columns)[0][..., 0, 0].T, plain, rtol=1e-4, atol=1e-5)


def test_initialization_makes_every_activation_standard():
    torch.manual_seed(0)
    flow = glow(**TINY)
    x = images(64)
    fk.initialize(flow, x, generator=torch.Generator().manual_seed(0))
    norms = [part for part in flow.modules() if isinstance(part, fk.ActNorm)]
    seen = []
    hooks = [norm.register_forward_hook(lambda m, a, out: seen.append(out[0])) for norm in norms]
    flow.log_prob(x, generator=torch.Generator().manual_seed(0))
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(norms) == 5
    for out in seen:
        assert out.mean((0, 2, 3)).abs().max() < 1e-4
        assert (out.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-3


@pytest.mark.parametrize(
    "sizes", [{}, {"lu": True}, {"coupling": "additive"}, {"context_shape": (3,)}, {"shape": (3, 4, 4), "steps": 1}]
)
def test_both_directions_and_the_jacobian(sizes):
    flow = tiny(**sizes)
    context = torch.randn(3, 3).double() if "context_shape" in sizes else None
    x = flow.sample((3,) if context is None else (), context)
    assert x.shape == (3, *flow.event_shape) and x.dtype == torch.int64 and x.min() >= 0 and x.max() <= 6
    real = after_dequantizer(flow)
    value = torch.rand(*flow.event_shape).double()
    one = None if context is None else context[0]
    torch.testing.assert_close(
        real.log_prob(value, one), log_prob_by_jacobian(real.transform, real.base, value, one), rtol=1e-9, atol=1e-8
    )
    z = real.base.sample((3,))
    sampled, term = real.transform.inverse(z, context)
    again, minus = real.transform(sampled, context)
    torch.testing.assert_close(again, z, rtol=0, atol=1e-8)
    torch.testing.assert_close(minus, -term, rtol=0, atol=1e-8)


def test_what_is_factored_out_is_normal_given_what_is_kept():
    """Mean and log-deviation as the net gives them, of the second half of the channels; the latter kept within 7."""
    flow = tiny()
    factor_out = flow.transform["factor_out1"]
    h = torch.randn(5, 4, 2, 2).double()
    kept, term = factor_out(h)
    assert torch.equal(kept, h[:, :2])
    raw, mean = factor_out.base.transform.transform.net(kept).unbind(-1)
    assert mean.abs().max() > 0 and raw.abs().max() > 0
    log_deviation = 7 * (raw / 7).tanh()
    wanted = torch.distributions.Normal(mean, log_deviation.exp()).log_prob(h[:, 2:]).sum((1, 2, 3))
    torch.testing.assert_close(term, wanted)


def test_the_context_moves_the_prior_and_the_couplings():
    flow = tiny(context_shape=(3,))
    classes = torch.eye(3).double()
    x = images(1)[0]
    noise = {"generator": torch.Generator().manual_seed(0)}
    assert flow.log_prob(x, classes, **noise).unique().numel() == 3
    assert flow.sample((2,), classes).shape == (2, 3, 1, 4, 4)
    with pytest.raises(fk.ShapeError, match="context is missing"):
        flow.log_prob(x)
    real = after_dequantizer(flow)
    v = torch.rand(1, 4, 4).double()
    for name in ("scale1", "prior"):
        start = v if name == "scale1" else torch.rand(8, 1, 1).double()
        outs = [real.transform[name](start, context)[0] for context in classes]
        assert not torch.allclose(outs[0], outs[1])


def test_keys_are_frozen():
    keys = {name: tuple(value.shape) for name, value in glow(**{**TINY, "steps": 1}).state_dict().items()}
    wanted = {"transform.center.scale": (), "transform.center.shift": ()}
    wanted |= {"transform.prior.gain": (8, 1, 1), "transform.prior.bias": (8, 1, 1)}
    for i, n in ((1, 4), (2, 8)):
        step, net = f"transform.scale{i}.steps.0", f"transform.scale{i}.steps.0.couple.conditioner.net"
        wanted |= {f"{step}.norm.gain": (n, 1, 1), f"{step}.norm.bias": (n, 1, 1), f"{step}.mix.weight": (n, n)}
        wanted |= {f"{net}.enter.direction": (4, n // 2, 3, 3), f"{net}.middle.direction": (4, 4, 1, 1)}
        wanted |= {f"{net}.{layer}.{name}": (4,) for layer in ("enter", "middle") for name in ("gain", "bias")}
        wanted |= {f"{net}.exit.weight": (n, 4, 3, 3), f"{net}.exit.bias": (n,), f"{net}.exit.log_gain": (n,)}
    prior = "transform.factor_out1.base.transform.transform.net.conv"
    wanted |= {f"{prior}.weight": (4, 2, 3, 3), f"{prior}.bias": (4,), f"{prior}.log_gain": (4,)}
    assert keys == wanted


@pytest.mark.parametrize("sizes", [{}, {"coupling": "additive", "lu": True}])
def test_a_few_steps_lower_the_loss(sizes):
    torch.manual_seed(0)
    before, after = trained(glow(**TINY, **sizes), images(64))
    assert after > before + 0.5


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"shape": (1, 4, 6)}, "wanted a height and a width that are multiples of 4, for 2 scales"),
        ({"shape": 3}, r"shape is 3, wanted \(C, H, W\)"),
        ({"scales": 0}, "scales is 0, wanted"),
        ({"steps": 0}, "steps is 0, wanted"),
        ({"filters": 1.5}, "filters is 1.5, wanted"),
        ({"coupling": "spline"}, "coupling is 'spline', wanted 'affine' or 'additive'"),
        ({"levels": 0}, "levels is 0, wanted"),
        ({"context_shape": (1, 2)}, r"context_shape is \(1, 2\), wanted \(size,\)"),
    ],
)
def test_impossible_sizes_say_why(sizes, message):
    with pytest.raises(ValueError, match=message):
        glow(**{**TINY, **sizes})
