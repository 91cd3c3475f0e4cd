"""NICE: what is its own."""

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.zoo import nice
from tests.support import after_dequantizer, log_prob_by_jacobian, perturb, trained

TINY = {"levels": 7, "hidden": (8,)}


def test_defaults_are_the_papers_model_of_mnist():
    with torch.device("meta"):
        flow = nice()
    nets = [part for part in flow.modules() if isinstance(part, fk.nets.MLP)]
    assert len(nets) == 4
    for net in nets:
        layers = [layer for layer in net.layers if isinstance(layer, nn.Linear)]
        assert [layer.in_features for layer in layers] == [392, *[1000] * 5] and layers[-1].out_features == 392
        assert all(isinstance(layer, nn.ReLU) for layer in net.layers[1::2])
    assert flow.transform["dequantize"].levels == 256
    assert isinstance(flow.base, fk.Logistic) and isinstance(nice(4, hidden=(2,), base="normal").base, fk.Normal)


def test_couplings_alternate_between_odd_and_even_components():
    """Which components change in each coupling, by the places they came from."""
    flow = perturb(nice(6, levels=None, hidden=(8,)), scale=0.3)
    x = torch.arange(6.0)
    places, _ = flow.transform["split"](x)
    for i, step in enumerate(flow.transform["couplings"]):
        changed = step["couple"](x)[0] != x
        assert set(places[changed].int().tolist()) == ({1, 3, 5} if i % 2 == 0 else {0, 2, 4})
        places, _ = step["flip"](places)


def test_three_couplings_let_every_component_reach_every_other():
    def reaches(couplings):
        flow = perturb(nice(4, levels=None, hidden=(8,), couplings=couplings), scale=0.5)
        jacobian = torch.autograd.functional.jacobian(lambda x: flow.to_latent(x), torch.randn(4))
        return bool((jacobian != 0).all())

    assert reaches(3) and not reaches(2)


@pytest.mark.parametrize("features", [4, 5])
@pytest.mark.parametrize("context", [None, torch.randn(3, 2).double()])
def test_both_directions_and_the_jacobian(features, context):
    flow = perturb(nice(features, **TINY, context_shape=None if context is None else (2,)), scale=0.3).double()
    x = flow.sample((3,) if context is None else (), context)
    assert x.shape == (3, features) and x.dtype == torch.int64
    z, term = flow.transform(x, context)
    back, minus = flow.transform.inverse(z, context)
    assert torch.equal(back, x)
    torch.testing.assert_close(minus, -term, rtol=0, atol=1e-9)
    real = after_dequantizer(flow)
    value = torch.rand(features).double()
    one = None if context is None else context[0]
    torch.testing.assert_close(
        real.log_prob(value, one), log_prob_by_jacobian(real.transform, real.base, value, one), rtol=1e-9, atol=1e-9
    )
    if context is not None:
        assert (real.log_prob(value, context).unique()).numel() == 3


def test_keys_are_frozen():
    keys = {name: tuple(value.shape) for name, value in nice(4, hidden=(8,), couplings=1).state_dict().items()}
    net = "transform.couplings.0.couple.conditioner.layers"
    assert keys == {
        "transform.split.order": (4,),
        f"{net}.0.weight": (8, 2),
        f"{net}.0.bias": (8,),
        f"{net}.2.weight": (2, 8),
        f"{net}.2.bias": (2,),
        "transform.rescale.params": (4, 1),
    }


def test_a_few_steps_lower_the_loss():
    torch.manual_seed(0)
    x = (torch.randn(256, 1) * 2 + torch.arange(4) + torch.randn(256, 4)).round().clamp(0, 6).long()
    before, after = trained(nice(4, **TINY), x)
    assert after > before + 0.2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"features": 1}, "features is 1, wanted a whole number of at least 2"),
        ({"couplings": 0}, "couplings is 0, wanted"),
        ({"hidden": (8, 0)}, "hidden is 0, wanted"),
        ({"base": "student"}, "base is 'student', wanted 'logistic' or 'normal'"),
        ({"levels": 1}, "levels is 1, wanted"),
        ({"context_shape": (2, 3)}, r"context_shape is \(2, 3\), wanted \(size,\)"),
    ],
)
def test_impossible_sizes_say_why(sizes, message):
    with pytest.raises(ValueError, match=message):
        nice(**{"features": 4, "hidden": (8,), **sizes})
