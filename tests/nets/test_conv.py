"""Convolutional conditioners: where they start, what they read, what they refuse."""

import pytest
import torch

import flowkit as fk
from flowkit.nets import ConvNet, ResidualConvNet, ZeroConv2d
from tests.support import perturb

NETS = [
    lambda **options: ConvNet((2, 4, 3), out=3, filters=5, **options),
    lambda **options: ResidualConvNet((2, 4, 3), out=3, filters=5, blocks=2, **options),
]


@pytest.mark.parametrize("make", NETS)
def test_it_starts_at_zero_and_leaves_it_by_its_last_layer(make):
    net = make()
    params = net(torch.randn(7, 2, 4, 3))
    assert params.shape == (7, 2, 4, 3, 3) and (params == 0).all()
    params.sum().backward()
    assert net.exit.weight.grad.abs().sum() > 0 and net.exit.bias.grad.abs().min() > 0


@pytest.mark.parametrize("make", NETS)
def test_any_batch_and_a_pair_axis(make):
    """A context belongs to the leading batch dims."""
    net = perturb(make(context=4).eval(), 0.3)
    x, context = torch.randn(2, 3, 1, 2, 4, 3), torch.randn(2, 3, 4)
    out = net(x, context)
    assert out.shape == (2, 3, 1, 2, 4, 3, 3)
    torch.testing.assert_close(out[1, 2, 0], net(x[1, 2, 0], context[1, 2]))
    assert not torch.allclose(out, net(x, context.flip(0)))
    assert net(x[:0], context[:0]).shape == (0, 3, 1, 2, 4, 3, 3)


@pytest.mark.parametrize("make", NETS)
def test_the_data_channel_is_the_slow_index_of_the_outputs(make):
    net = make()
    with torch.no_grad():
        net.exit.bias.copy_(torch.arange(6.0))
    assert net(torch.randn(1, 2, 4, 3))[0, :, 1, 2].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("make", NETS)
def test_what_does_not_fit_is_refused(make):
    name = type(make()).__name__
    with pytest.raises(fk.ShapeError, match=rf"{name}: half has shape \(1, 2, 4, 4\), wanted \(\*batch, 2, 4, 3\)"):
        make()(torch.zeros(1, 2, 4, 4))
    with pytest.raises(fk.ShapeError, match=rf"{name}: context is missing, wanted \(\*batch, 4\)"):
        make(context=4)(torch.zeros(1, 2, 4, 3))
    with pytest.raises(fk.ShapeError, match=rf"{name}: context has shape \(1, 5\), wanted \(\*batch, 4\)"):
        make(context=4)(torch.zeros(1, 2, 4, 3), torch.zeros(1, 5))


def test_the_gain_of_the_last_layer_learns_three_times_as_fast():
    conv = ZeroConv2d(1, 2)
    with torch.no_grad():
        conv.bias.copy_(torch.tensor([1.0, 2.0]))
        conv.log_gain.copy_(torch.tensor([0.0, 0.5]))
    out = conv(torch.randn(1, 1, 2, 2))
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([1.0, 2 * torch.tensor(1.5).exp()]))


def test_without_batch_norm_examples_do_not_influence_one_another():
    net = perturb(ResidualConvNet((1, 4, 4), out=2, filters=4, blocks=1, norm=False), 0.3)
    x = torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(net(x)[1], net(x[1:2])[0])
    net = perturb(ResidualConvNet((1, 4, 4), out=2, filters=4, blocks=1), 0.3)
    assert not torch.allclose(net(x)[1], net(x[1:2])[0])
