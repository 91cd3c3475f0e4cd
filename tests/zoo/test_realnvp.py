"""RealNVP: what is its own."""

import pytest
import torch

import flowkit as fk
from flowkit.zoo import realnvp, realnvp_tabular
from flowkit.zoo.realnvp import LearnedScale, Masked, diagonal_first
from tests.support import after_dequantizer, log_prob_by_jacobian, perturb, trained

TINY = {"shape": (1, 4, 4), "levels": 7, "filters": 4, "blocks": 1}


def tiny(**sizes):
    torch.manual_seed(0)
    flow = perturb(realnvp(**{**TINY, **sizes}), scale=0.1).double()
    for part in flow.modules():  # as after training
        if isinstance(part, fk.BatchNorm | torch.nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)
    return flow.eval()


def images(count, shape=(1, 4, 4), levels=7):
    torch.manual_seed(1)
    smooth = torch.nn.functional.interpolate(torch.randn(count, shape[0], 2, 2), shape[1:], mode="bilinear")
    return (levels / 2 + 2 * smooth).round().clamp(0, levels - 1).long()


def test_defaults_are_the_papers_model_of_cifar10():
    """8 residual blocks, 64 features and 128 after the squeeze; 3, 3 and 4 couplings; half factored out once."""
    with torch.device("meta"):
        flow = realnvp()
    nets = [part for part in flow.modules() if isinstance(part, fk.nets.ResidualConvNet)]
    assert [len(net.blocks) for net in nets] == [8] * 10
    assert [net.enter.direction.shape[0] for net in nets] == [64] * 3 + [128] * 3 + [128] * 4
    assert [net.shape for net in nets] == [(3, 32, 32)] * 3 + [(6, 16, 16)] * 3 + [(6, 16, 16)] * 4
    assert sum(isinstance(part, fk.Slice) for part in flow.modules()) == 1
    assert flow.event_shape == (3, 32, 32) and flow.base.event_shape == (6, 16, 16)
    assert flow.transform["logit"].margin == 0.05


def test_the_last_scale_of_the_other_sizes_is_4_by_4():
    with torch.device("meta"):
        assert realnvp(scales=4, filters=32, blocks=4).base.event_shape[1:] == (4, 4)


def test_the_net_of_a_checkerboard_sees_the_image_with_the_other_half_at_zero():
    """Equation 9, by a net that keeps what it is given."""
    seen = []

    class Watch(torch.nn.Module):
        def forward(self, image, context=None):
            seen.append(image)
            return torch.stack([image, torch.arange(16.0).reshape(1, 4, 4).expand_as(image)], -1)

    x = torch.randn(2, 1, 4, 4)
    odd_squares = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 1
    pair, _ = fk.PairCheckerboard()(x)
    for odd in (False, True):
        other = Masked(Watch(), odd)(pair.narrow(-4, int(odd), 1))
        assert torch.equal(seen[-1], torch.where(odd_squares == odd, x, 0.0))
        places, _ = fk.PairCheckerboard()(torch.arange(16.0).reshape(1, 4, 4))
        assert torch.equal(other[..., 1], places.narrow(-4, int(not odd), 1).expand(2, 1, 1, 4, 2))
        assert (other[..., 0] == 0).all()


def test_checkerboard_couplings_leave_alternating_squares_unchanged():
    flow = tiny(scales=1)
    odd_squares = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 1
    x = torch.randn(1, 4, 4).double()
    view, *couplings, _ = flow.transform["scale1"]["checkerboard"]
    assert len(couplings) == 4
    for i, part in enumerate(couplings):
        couple = fk.within(view, fk.Chain(*list(part)[:2], part[-1]) if i % 2 else part[0])  # without its norm
        changed = ~torch.isclose(couple(x)[0], x)[0]
        assert torch.equal(changed, odd_squares if i % 2 == 0 else ~odd_squares)


def test_the_diagonal_of_each_block_goes_on():
    x = torch.arange(32.0).reshape(2, 4, 4)
    z, _ = fk.Chain(fk.Squeeze(), diagonal_first(2))(x)
    odd_squares = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 1
    assert set(z[:4].flatten().tolist()) == set(x[:, ~odd_squares].flatten().tolist())
    assert set(z[4].flatten().tolist()) <= set(x[0].flatten().tolist())  # colours of one square side by side


def test_the_scale_is_a_tanh_times_a_learned_one():
    scaled = LearnedScale(lambda half, context: torch.tensor([[100.0, 7.0], [-0.5, -7.0]]))
    with torch.no_grad():
        scaled.scale.fill_(3.0)
    params = scaled(torch.zeros(2))
    torch.testing.assert_close(params, torch.tensor([[3.0, 7.0], [3 * torch.tanh(torch.tensor(-0.5)), -7.0]]))


@pytest.mark.parametrize("sizes", [{"scales": 1}, {"shape": (3, 4, 4)}, {"context_shape": (2,)}])
def test_both_directions_and_the_jacobian(sizes):
    flow = tiny(**sizes)
    context = torch.randn(3, 2).double() if "context_shape" in sizes else None
    x = flow.sample((3,) if context is None else (), context)
    assert x.shape == (3, *flow.event_shape) and x.dtype == torch.int64
    real = after_dequantizer(flow)
    value = (0.02 + 0.96 * torch.rand(*flow.event_shape)).double()
    one = None if context is None else context[0]
    torch.testing.assert_close(
        real.log_prob(value, one), log_prob_by_jacobian(real.transform, real.base, value, one), rtol=1e-9, atol=1e-8
    )
    # Without the logit, where latents far out lose digits that no arithmetic keeps.
    scales = fk.Chain(*list(real.transform)[1:])
    z = real.base.sample((3,))
    sampled, term = scales.inverse(z, context)
    again, minus = scales(sampled, context)
    torch.testing.assert_close(again, z, rtol=0, atol=1e-8)
    torch.testing.assert_close(minus, -term, rtol=0, atol=1e-7)
    if context is not None:
        assert real.log_prob(value, context).unique().numel() == 3


def test_keys_are_frozen():
    flow = realnvp(**TINY, scales=1)
    keys = {name: tuple(value.shape) for name, value in flow.state_dict().items()}
    part = "transform.scale1.checkerboard.1"
    net = f"{part}.0.conditioner.net"
    first = {name: shape for name, shape in keys.items() if name.startswith(part)}
    norm = {"weight": (4,), "bias": (4,), "running_mean": (4,), "running_var": (4,), "num_batches_tracked": ()}
    conv = {"direction": (4, 4, 3, 3), "gain": (4,), "bias": (4,)}
    assert first == {
        f"{net}.scale": (),
        **{f"{net}.net.enter.{name}": s for name, s in {**conv, "direction": (4, 1, 3, 3)}.items()},
        **{f"{net}.net.blocks.0.{layer}.{name}": s for layer in ("norm1", "norm2") for name, s in norm.items()},
        **{f"{net}.net.blocks.0.{layer}.{name}": s for layer in ("conv1", "conv2") for name, s in conv.items()},
        **{f"{net}.net.skips.{i}.{name}": s for i in (0, 1) for name, s in {**conv, "direction": (4, 4, 1, 1)}.items()},
        **{f"{net}.net.norm.{name}": s for name, s in norm.items()},
        f"{net}.net.exit.weight": (2, 4, 1, 1),
        f"{net}.net.exit.bias": (2,),
        f"{net}.net.exit.log_gain": (2,),
        **{f"{part}.1.{name}": (2, 1, 1, 1) for name in ("log_gain", "bias", "running_mean", "running_var")},
    }
    assert {name.split(".")[3] for name in keys if name.startswith("transform.scale1.checkerboard")} == set("1234")
    assert all(name.startswith("transform.scale1.checkerboard") for name in keys)


def test_a_few_steps_lower_the_loss():
    torch.manual_seed(0)
    before, after = trained(realnvp(**TINY), images(64), rate=1e-2)
    assert after > before + 1


def test_tabular_both_directions_and_the_jacobian():
    for features, batch_norm in ((2, False), (5, True)):
        flow = perturb(realnvp_tabular(features, hidden=(8,), batch_norm=batch_norm, context_shape=(3,)), 0.2).double()
        flow.eval()
        context = torch.randn(4, 3).double()
        x = flow.sample((), context)
        assert x.shape == (4, features) and flow.sample((7,), context).shape == (7, 4, features)
        torch.testing.assert_close(flow.from_latent(flow.to_latent(x, context), context), x, rtol=1e-9, atol=1e-9)
        for i in range(4):
            wanted = log_prob_by_jacobian(flow.transform, flow.base, x[i], context[i])
            torch.testing.assert_close(flow.log_prob(x[i], context[i]), wanted, rtol=1e-9, atol=1e-9)
        assert flow.log_prob(x[0], context).unique().numel() == 4


@pytest.mark.parametrize("batch_norm", [False, True])
def test_tabular_learns_a_few_steps(batch_norm):
    torch.manual_seed(0)
    x = torch.randn(256, 1) ** 2 + 0.3 * torch.randn(256, 3)
    before, after = trained(realnvp_tabular(3, batch_norm=batch_norm), x)
    assert after > before + 0.3


def test_tabular_keys_are_frozen():
    keys = set(realnvp_tabular(2, couplings=2, hidden=(4,)).state_dict())
    ends = ["scale", "net.layers.0.weight", "net.layers.0.bias", "net.layers.2.weight", "net.layers.2.bias"]
    steps = ("0.0", "1.1")  # the odd couplings stand between two flips
    assert keys == {"transform.split.order"} | {
        f"transform.couplings.{step}.conditioner.{end}" for step in steps for end in ends
    }


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"shape": (3, 32)}, r"shape is \(3, 32\), wanted \(C, H, W\)"),
        ({"shape": (3, 6, 4), "scales": 3}, "wanted a height that is a multiple of 4 and a width that is one of 8"),
        ({"scales": 0}, "scales is 0, wanted a whole number of at least 1"),
        ({"filters": 0}, "filters is 0, wanted"),
        ({"blocks": -1}, "blocks is -1, wanted"),
        ({"levels": 1}, "levels is 1, wanted"),
    ],
)
def test_impossible_sizes_say_why(sizes, message):
    with pytest.raises(ValueError, match=message):
        realnvp(**{**TINY, **sizes})
    with pytest.raises(ValueError, match="features is 1, wanted"):
        realnvp_tabular(1)
