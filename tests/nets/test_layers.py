"""The layers of Flow++'s nets against their formulas, written out in channels-last."""

import pytest
import torch
from torch.nn import functional as F

import flowkit as fk
from flowkit.nets import gated
from flowkit.nets.layers import concat_elu, gate
from tests.support import perturb


def linear(layer, x):
    """A 1x1 `Conv2d` as a matrix product over the last axis."""
    return x @ layer._effective_weight()[:, :, 0, 0].T + layer.bias


def last(x):
    return x.movedim(1, -1)


def test_concat_elu_and_gate():
    x = torch.tensor([-1.0, 2.0]).reshape(1, 2, 1, 1)
    e = torch.tensor(-1.0).expm1(), torch.tensor(2.0), torch.tensor(1.0), torch.tensor(-2.0).expm1()
    torch.testing.assert_close(concat_elu(x).flatten(), torch.stack(e))
    torch.testing.assert_close(gate(x).flatten(), torch.sigmoid(torch.tensor([2.0])) * -1)


def test_channel_norm_normalizes_each_pixel():
    x = 5 + 3 * torch.randn(2, 6, 3, 3)
    out = fk.nets.ChannelNorm(6)(x)
    assert out.mean(1).abs().max() < 1e-6
    torch.testing.assert_close(out.var(1, correction=0), x.var(1, correction=0) / (x.var(1, correction=0) + 1e-5))


def test_weight_norm_is_gain_times_direction():
    layer = perturb(fk.nets.Conv2d(3, 5, 3, weight_norm=True), scale=0.5)
    norm = layer.direction.flatten(1).norm(dim=1)
    effective = (layer.gain / norm)[:, None, None, None] * layer.direction
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(layer(x), F.conv2d(x, effective, layer.bias, padding=1))


@pytest.mark.parametrize("weight_norm", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution_initializes_itself(weight_norm, kernel):
    layer = fk.nets.Conv2d(3, 5, kernel, weight_norm=weight_norm, init_scale=0.1).double()
    before = layer.direction.clone() if weight_norm else None
    x = 4 + 2 * torch.randn(16, 3, 6, 6, dtype=torch.double)
    layer.initialize_(x)
    out = layer(x)
    assert out.mean((0, 2, 3)).abs().max() < 1e-12
    assert (out.std((0, 2, 3), correction=0) - 0.1).abs().max() < 1e-6
    if weight_norm:
        assert torch.equal(layer.direction, before)  # the gain is set, not the direction


@pytest.mark.parametrize("kernel", [1, 3])
def test_gated_convolution_is_its_formula(kernel):
    net = perturb(fk.nets.GatedConv(4, context=3, kernel=kernel)).double()
    x, c = torch.randn(2, 4, 5, 3, dtype=torch.double), torch.randn(2, 3, 5, 3, dtype=torch.double)
    h = net.conv(concat_elu(x)) + net.context(concat_elu(c))
    torch.testing.assert_close(net(x, c), x + gate(net.gate(concat_elu(h))))


def test_attention_is_its_formula():
    """Queries, keys and values in this order, heads contiguous in each, logits over sqrt(F / heads)."""
    filters, heads = 6, 3
    net = perturb(fk.nets.GatedAttention(filters, heads), scale=0.5).double()
    x, positions = torch.randn(2, filters, 3, 4, dtype=torch.double), torch.randn(filters, 3, 4, dtype=torch.double)
    h = linear(net.project, last(x + positions)).flatten(1, 2)
    q, k, v = (part.unflatten(-1, (heads, filters // heads)) for part in h.split(filters, dim=-1))
    weights = torch.einsum("bihd,bjhd->bhij", q, k).div((filters / heads) ** 0.5).softmax(-1)
    mixed = torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2).unflatten(1, (3, 4))
    wanted = x + gate(linear(net.gate, mixed).movedim(-1, 1))
    torch.testing.assert_close(net(x, positions), wanted)


@pytest.mark.parametrize("positions", [32, 512, 513])
def test_attention_in_bfloat16(positions):
    """Few positions are plain products, many the kernel of float32: both as near to float64 as PyTorch's own."""
    tensors = [torch.randn(2, 3, positions, 8).bfloat16().requires_grad_() for _ in range(3)]
    weights = torch.randn(2, 3, positions, 8)

    def found(function, tensors) -> list[torch.Tensor]:
        result = function(*tensors)
        return [result, *torch.autograd.grad((result * weights).sum(), tensors)]

    exact = found(F.scaled_dot_product_attention, [t.detach().double().requires_grad_() for t in tensors])
    with torch.autocast("cpu", torch.bfloat16):
        ours = found(gated.attention, tensors)
    torchs = found(F.scaled_dot_product_attention, tensors)
    for one, other, truth in zip(ours, torchs, exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one - truth).norm() <= max(1.5 * (other - truth).norm(), 0.01 * truth.norm())


def test_maxout_takes_adjacent_triples_and_has_as_many_parameters():
    net = perturb(fk.nets.GatedMaxout(4, 2), scale=0.5).double()
    x, positions = torch.randn(2, 4, 3, 2, dtype=torch.double), torch.randn(4, 3, 2, dtype=torch.double)
    h = linear(net.project, last(x + positions))
    best = torch.stack([h[..., 3 * i : 3 * i + 3].amax(-1) for i in range(4)], dim=-1)
    torch.testing.assert_close(net(x, positions), x + gate(linear(net.gate, best).movedim(-1, 1)))
    count = [sum(p.numel() for p in kind(4, 2).parameters()) for kind in (fk.nets.GatedMaxout, fk.nets.GatedAttention)]
    assert count[0] == count[1]


def test_conditioner_aligns_its_context_with_the_pair_axis():
    net = perturb(fk.nets.GatedConvAttention((2, 4, 3), out=5, filters=4, blocks=1, heads=1, context=3))
    half, context = torch.randn(6, 7, 1, 2, 4, 3), torch.randn(6, 7, 3, 4, 3)
    whole = net(half, context)
    assert whole.shape == (6, 7, 1, 2, 4, 3, 5)
    torch.testing.assert_close(whole[3, 5], net(half[3, 5], context[3, 5]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net(half, context[2, 3])[1, 1], net(half[1, 1], context[2, 3]), rtol=1e-4, atol=1e-5)


def test_unfitting_halves_and_contexts_are_refused():
    net = fk.nets.GatedConvAttention((2, 4, 3), out=5, filters=4, blocks=1, context=3)
    with pytest.raises(fk.ShapeError, match=r"half has shape \(1, 2, 4, 4\)"):
        net(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 3))
    with pytest.raises(fk.ShapeError, match="context is missing"):
        net(torch.zeros(1, 2, 4, 3))
    with pytest.raises(fk.ShapeError, match=r"context has shape \(1, 2, 4, 3\), wanted \(\*batch, 3, 4, 3\)"):
        net(torch.zeros(1, 2, 4, 3), torch.zeros(1, 2, 4, 3))
    with pytest.raises(ValueError, match="filters is 6 and heads is 4"):
        fk.nets.GatedAttention(6, 4)
    mlp = fk.nets.MLP((2,), (3,), context=4)
    with pytest.raises(fk.ShapeError, match="context is missing"):
        mlp(torch.zeros(1, 2))
    with pytest.raises(fk.ShapeError, match=r"input has shape \(1, 3\)"):
        mlp(torch.zeros(1, 3), torch.zeros(1, 4))


def test_a_context_fits_every_batch_rank():
    mlp = perturb(fk.nets.MLP((2,), (3,), context=4))
    assert mlp(torch.zeros(5, 6, 2), torch.zeros(4)).shape == (5, 6, 3)
    assert mlp(torch.zeros(2), torch.zeros(4)).shape == (3,)
    image = fk.nets.ImageContext((1, 4, 6), out=8, blocks=1)
    for batch in [(), (3,), (2, 3), (0,)]:
        assert image(torch.zeros(*batch, 1, 4, 6)).shape == (*batch, 8, 4, 3)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda start: fk.nets.MLP(3, (3, 14), hidden=(8,), start=start), (3,)),
        (lambda start: fk.nets.MADE(3, 14, hidden=(8,), start=start), (3,)),
        (lambda start: fk.nets.MADE(3, 14, hidden=(8,), residual=True, order=(2, 0, 1), start=start), (3,)),
        (lambda start: fk.nets.ConvNet((3, 4, 4), 14, filters=8, start=start), (3, 4, 4)),
        (lambda start: fk.nets.ResidualConvNet((3, 4, 4), 14, filters=8, blocks=1, start=start).eval(), (3, 4, 4)),
    ],
)
def test_nets_start_where_they_are_told(make, shape):
    start = fk.maps.MixLogistic(4).start
    assert torch.equal(make(start)(torch.randn(5, *shape)), start.expand(5, *shape, 14))
    assert not make(None)(torch.randn(5, *shape)).any()
    for other in (torch.zeros(13), [0.0] * 14):
        with pytest.raises(fk.ShapeError, match=r"start .*, wanted a tensor that broadcasts to \(3, 14\)"):
            make(other)
