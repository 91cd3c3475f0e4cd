"""A whole Flow++: compiled, in float32 at full size, pickled, under DDP's rules."""

import copy
import pickle

import pytest
import torch

import flowkit as fk
from flowkit.zoo import flowpp
from tests.support import perturb

TINY = {
    "config": "digits",
    "filters": 4,
    "heads": 2,
    "blocks": 1,
    "components": 2,
    "layout": (("columns", 1), ("squeeze", 1), ("channels", 1)),
    "dequant_blocks": 1,
    "dequant_couplings": 1,
    "context_filters": 4,
    "dropout": 0.0,
}


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return perturb(flowpp(**TINY))


def test_compiled_without_graph_breaks(tiny):
    """log_prob, a training step and sampling, each one graph."""
    torch.compiler.reset()
    x = torch.randint(17, (4, 1, 8, 8))
    compiled = torch.compile(tiny, fullgraph=True, backend="aot_eager")
    results = []
    for flow in (tiny, compiled):
        torch.manual_seed(1)
        log_prob = flow(x)
        gradients = torch.autograd.grad(-log_prob.mean(), list(tiny.parameters()))
        results.append((log_prob, *gradients))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager, rtol=1e-4, atol=1e-4)
    sampled = []
    for sample in (tiny.sample, torch.compile(tiny.sample, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(2)
        sampled.append(sample((3,)))
    assert (sampled[0] != sampled[1]).double().mean() < 0.02  # a pixel at the edge of its bin may round the other way


def test_every_direction_has_its_shape(tiny):
    x = tiny.sample((3,))
    z = tiny.to_latent(x)
    assert z.shape == (3, *tiny.base.event_shape)
    assert torch.equal(tiny.from_latent(z), x)
    assert tiny.log_prob(x[0]).shape == () and tiny.log_prob(x[:0]).shape == (0,)
    assert tiny.log_prob(x.reshape(3, 1, 1, 8, 8)).shape == (3, 1)


def test_both_directions_agree_in_double(tiny):
    """Law 1 of the whole model: the way back gives the integers and the negative log-term."""
    tiny.double()
    x = torch.randint(17, (32, 1, 8, 8))
    z, term = tiny.transform(x)
    back, minus = tiny.transform.inverse(z)
    assert torch.equal(back, x)
    torch.testing.assert_close(minus, -term, rtol=0, atol=1e-7)


def test_copies_and_pickles_are_equal_to_the_bit(tiny):
    x = torch.randint(17, (4, 1, 8, 8))
    wanted = tiny.log_prob(x, generator=torch.Generator().manual_seed(0))
    for other in (copy.deepcopy(tiny), pickle.loads(pickle.dumps(tiny))):
        assert torch.equal(other.log_prob(x, generator=torch.Generator().manual_seed(0)), wanted)
        assert other.transform["columns1"][1]["couple"].path == "transform.columns1.1.couple"


def test_autocast_reaches_the_conditioners_alone(tiny):
    x = torch.randint(17, (4, 1, 8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_prob = tiny.log_prob(x)
        z, term = tiny.transform(x)
    assert log_prob.dtype == z.dtype == term.dtype == torch.float32


def images(number):
    """Smooth random fields with a little noise: as correlated as photographs, from no data set."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(number, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic")
    noisy = 128 + 50 * smooth + 4 * torch.randn(number, 3, 32, 32, generator=generator)
    return noisy.round().clamp(0, 255).long()


@pytest.mark.thorough
def test_round_trip_at_full_size_in_float32():
    """The published CIFAR-10 main flow, initialized on 128 images: v -> z -> v within 5e-3 on the 0..256 scale."""
    torch.manual_seed(0)
    flow = flowpp(config="cifar10")
    fk.initialize(flow, images(144)[:128])
    flow.eval()
    with torch.no_grad():
        v, _ = flow.transform["dequantize"](images(144)[128:])
        main = fk.Chain(*list(flow.transform)[1:])
        z, term = main(v)
        back, minus = main.inverse(z)
    worst = 256 * (back - v).abs().max().item()
    print(f"round trip {worst:.1e} of 256; log-dets {(term + minus).abs().max():.1e} nats apart")
    assert worst < 5e-3
