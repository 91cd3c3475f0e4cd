"""Flow++ against the paper's figures, and the traps of its re-implementation that no other test covers."""

import math

import pytest
import torch

import flowkit as fk
from flowkit.zoo import CONFIGS, flowpp
from tests.support import FixedBase, at_identity, perturb

PUBLISHED = {
    "cifar10": (31_443_440, 3_466_976),
    "cifar10-noattention": (31_443_440, 3_466_976),
    "cifar10-uniform": (32_324_408, 0),
    "cifar10-affine": (32_045_708, 3_035_168),
    "imagenet32": (168_955_724, 35_549_536),
    "imagenet64": (73_489_960, 5_654_440),
    "imagenet64-5bit": (73_489_960, 5_654_440),
    "celeba64-5bit": (73_489_960, 5_654_440),
    "celeba64-3bit": (73_489_960, 5_654_440),
    "celeba128-5bit": (122_790_952, 8_308_648),
}


def count(module, trainable=False):
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


@pytest.fixture(scope="module")
def on_meta():
    """Each published model, without memory."""
    made = {}

    def make(config):
        if config not in made:
            with torch.device("meta"):
                made[config] = flowpp(config=config)
        return made[config]

    return make


@pytest.mark.parametrize("config", PUBLISHED)
def test_parameter_counts_are_the_published_ones(config, on_meta):
    flow = on_meta(config)
    assert (count(flow), count(flow.transform["dequantize"])) == PUBLISHED[config]


@pytest.mark.parametrize("config", CONFIGS)
def test_event_and_latent_have_as_many_elements(config, on_meta):
    flow = on_meta(config)
    assert tuple(flow.event_shape) == CONFIGS[config].shape
    assert flow.event_shape.numel() == flow.base.event_shape.numel()
    assert not flow.exact


def test_components_of_the_cifar10_count(on_meta):
    """Trap 9: the norm is per element, for both halves; trap 12: where the other parameters are."""
    flow = on_meta("cifar10")
    main = [module for name, module in flow.named_modules() if "dequantize" not in name]
    noise = list(flow.transform["dequantize"].modules())
    for part, wanted in ((main, 55_296), (noise, 24_576)):
        assert sum(count(module) for module in part if isinstance(module, fk.ActNorm)) == wanted
    for part, wanted in ((main, 1_080), (noise, 72)):
        assert sum(count(module) for module in part if isinstance(module, fk.Conv1x1)) == wanted
    assert flow.transform["columns1"][1]["norm"].gain.shape == (2, 3, 32, 16)
    nets = [module for module in main if isinstance(module, fk.nets.GatedConvAttention)]
    assert [len(nets), sum(net.positions.numel() for net in nets)] == [9, 282_624]
    assert sum(count(net.exit) for net in nets) == 5_086_200


def test_switches_of_the_families(on_meta):
    """Trap 12: weight norm in ImageNet 32 alone, concat-ELU before the last convolution outside CIFAR-10 alone."""
    for config in PUBLISHED:
        nets = [module for module in on_meta(config).modules() if isinstance(module, fk.nets.GatedConvAttention)]
        assert all((net.enter.gain is not None) == (config == "imagenet32") for net in nets)
        assert all(net.final_concat_elu == (not config.startswith("cifar10")) for net in nets)
        mixing = [module for module in on_meta(config).modules() if isinstance(module, fk.Conv1x1)]
        assert bool(mixing) == config.startswith("cifar10")


def test_unused_embeddings_are_the_only_parameters_without_gradient(on_meta):
    """Trap 14: four dead embeddings where the dequantizer has no attention; without gradient DDP ignores them."""
    assert count(on_meta("imagenet64"), trainable=True) == 72_703_528
    flow = flowpp(config="imagenet64", shape=(3, 16, 16), filters=8, blocks=1, dequant_blocks=1, heads=2)
    perturb(flow)
    flow(torch.randint(256, (2, 3, 16, 16))).sum().backward()
    dead = [name for name, p in flow.named_parameters() if p.grad is None]
    assert len(dead) == 4
    assert all(name.endswith("positions") and not dict(flow.named_parameters())[name].requires_grad for name in dead)


def test_columns_and_squeeze_move_elements_as_the_reference_does():
    """Trap 1: the split is of columns, the squeeze keeps colour fastest; both by a value that encodes its place."""
    c, y, x = torch.meshgrid(torch.arange(3), torch.arange(2), torch.arange(2), indexing="ij")
    block = (100 * c + 10 * y + x).double()
    squeezed = fk.Squeeze(color_fastest=True)(block)[0].flatten().tolist()
    assert squeezed == [0, 100, 200, 1, 101, 201, 10, 110, 210, 11, 111, 211]
    assert torch.equal(fk.Squeeze()(block)[0], torch.nn.functional.pixel_unshuffle(block, 2))
    pair = fk.PairColumns()(block)[0]
    assert torch.equal(pair[0], block[..., 0::2]) and torch.equal(pair[1], block[..., 1::2])
    # A channel split right after a squeeze separates even rows from odd ones.
    rows = fk.PairChannels()(fk.Squeeze(color_fastest=True)(block)[0])[0]
    assert set(rows[0].flatten().tolist()) == set(block[:, 0].flatten().tolist())


def test_identity_layers_leave_the_predicted_permutation():
    """Trap 1: with identity layers the latent is a permutation; the odd count of steps exchanges the last columns."""
    flow = at_identity(flowpp(config="cifar10", filters=4, blocks=1, components=1, dequant_blocks=1, heads=1))
    x = torch.randn(2, 3, 32, 32)
    z, log_det = fk.Chain(*list(flow.transform)[2:])(x)
    predicted = fk.Squeeze(color_fastest=True)(x)[0]
    predicted = predicted.unflatten(-1, (8, 2)).flip(-1).flatten(-2)
    torch.testing.assert_close(z, predicted, rtol=1e-5, atol=1e-5)
    assert log_det.abs().max() < 1e-3


def test_outputs_of_the_conditioner_have_the_data_channel_slow():
    """Trap 7: distinct biases on the last convolution, weights 0: where each parameter of the map comes from."""
    components, channels = 2, 2
    mix = fk.maps.MixLogistic(components)
    net = fk.nets.GatedConvAttention((channels, 4, 4), out=mix.num_params, filters=8, blocks=1)
    with torch.no_grad():
        net.exit.weight.zero_()
        net.exit.bias.copy_(torch.arange(channels * mix.num_params))
    params = net(torch.randn(1, channels, 4, 4))[0, :, 1, 2]
    affine, (logits, means, log_scales) = mix._split(params)
    for channel in range(channels):
        first = channel * (2 + 3 * components)
        assert affine[channel].tolist() == [first, first + 1]
        assert logits[channel].tolist() == [first + 2, first + 3]
        assert means[channel].tolist() == [first + 4, first + 5]
        assert log_scales[channel].tolist() == [first + 6, first + 7]


@pytest.mark.parametrize("config", ["cifar10", "imagenet32", "imagenet64"])
def test_initialization_normalizes_every_response(config):
    """Trap 8: responses of mean 0 and deviation 1, or 0.1 before a gate and at the end; norms per element."""
    small = {"shape": (3, 16, 16), "filters": 8, "blocks": 2, "components": 2, "dequant_blocks": 1, "dropout": 0.0}
    torch.manual_seed(0)
    flow = flowpp(config=config, **small, context_filters=8, dequant_couplings=2, context_blocks=1).double()
    x = torch.randint(256, (32, 3, 16, 16))
    noise = flow.transform["dequantize"].noise
    noise.base = FixedBase(torch.randn(32, 3, 16, 16, dtype=torch.double))

    seen = {}
    hooks = [
        module.register_forward_hook(lambda module, args, out: seen.setdefault(module, []).append(out))
        for module in flow.modules()
        if hasattr(module, "initialize_")
    ]
    fk.initialize(flow, x)
    for hook in hooks:
        hook.remove()
    first = {module: outs[0] for module, outs in seen.items()}
    assert len(first) == sum(hasattr(module, "initialize_") for module in flow.modules())
    for module, out in first.items():
        if isinstance(module, fk.nets.Conv2d):
            scale = module.init_scale
            mean, deviation = out.mean((0, 2, 3)), out.std((0, 2, 3), correction=0)
        else:
            scale = 1.0
            mean, deviation = out[0].mean(0), out[0].std(0, correction=0)
        assert mean.abs().max() < 1e-8
        torch.testing.assert_close(deviation, torch.full_like(deviation, scale), rtol=1e-3, atol=1e-3)
    gates = [m for name, m in flow.named_modules() if name.endswith((".gate", ".exit")) and m in first]
    assert gates and all(module.init_scale == 0.1 for module in gates)

    second = {}
    hooks = [m.register_forward_hook(lambda m, a, out: second.__setitem__(m, out)) for m in first]
    flow.log_prob(x)
    for module, out in first.items():
        torch.testing.assert_close(second[module], out, rtol=1e-7, atol=1e-7)


def test_levels_stand_in_three_places():
    """Trap 13: the bins of the dequantizer, what its net sees, and the range of samples."""
    flow = flowpp(config="digits", levels=32, filters=8, blocks=1)
    seen = []
    encoder = flow.transform["dequantize"].encoder
    encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    flow(torch.tensor([0, 31]).repeat(32).reshape(1, 1, 8, 8))
    assert seen[0].min() == -0.5 and seen[0].max() == 31 / 32 - 0.5
    with torch.no_grad():
        samples = flow.from_latent(20 * torch.randn(64, 4, 4, 4))
    assert samples.dtype == torch.int64 and samples.min() == 0 and samples.max() == 31


def test_dropout_is_elementwise_twice_a_block_and_off_in_eval():
    """Trap 16: scattered zeros, before the gate of the convolution and after the heads; active while initializing."""
    torch.manual_seed(0)
    flow = flowpp(config="digits", filters=16, blocks=1, dropout=0.2)
    zeros = {}
    for name, module in flow.named_modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda m, a, out, name=name: zeros.setdefault(name, []).append(out == 0))
    places = [name for name, _ in flow.named_modules() if name.endswith((".conv.dropout", ".attention.dropout"))]
    x = torch.randint(17, (64, 1, 8, 8))
    fk.initialize(flow, x)
    flow.train()(x)
    assert sorted(zeros) == sorted(places) and places
    for masks in zeros.values():
        for mask in masks:
            assert abs(mask.double().mean() - 0.2) < 0.02
            assert mask.flatten(2).all(-1).double().mean() < 0.01  # not whole channels
    zeros.clear()
    flow.eval()(x)
    assert not any(mask.any() for masks in zeros.values() for mask in masks)


def test_overrides_make_another_size_in_one_line():
    flow = flowpp(
        config="cifar10", shape=(1, 12, 8), levels=5, filters=12, blocks=1, components=3, heads=3, dequant_blocks=1,
        dequant_couplings=2, context_filters=6, dropout=0.1,
    )  # fmt: skip
    x = flow.sample((3,))
    assert x.shape == (3, 1, 12, 8) and x.min() >= 0 and x.max() <= 4
    assert flow.log_prob(x).shape == (3,)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"shape": (3, 32, 31)}, "width 31 is odd"),
        ({"shape": (3, 31, 32)}, r"\(3, 31, 32\) at 'squeeze': a side is odd"),
        ({"shape": (3, 30, 30)}, "width 15 is odd"),
        ({"shape": (3, 32)}, "wanted \\(C, H, W\\)"),
        ({"levels": 1}, "levels is 1"),
        ({"filters": 90}, "filters is 90, wanted a multiple of heads, 4"),
        ({"heads": 0}, "heads is 0"),
        ({"blocks": 0}, "blocks is 0"),
        ({"components": -1}, "components is -1"),
        ({"dequant_couplings": 0}, "dequant_couplings is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"filter": 8}, "'filter' is no size of this model"),
        ({"attention": "linear"}, "attention is 'linear'"),
        ({"config": "cifar100"}, "config is 'cifar100', wanted one of cifar10"),
        ({"pretrained": "cifar11"}, "pretrained is 'cifar11', wanted one of cifar10-small, digits"),
        ({"pretrained": "digits", "config": "digits"}, "brings its own config"),
        ({"pretrained": "digits", "filters": 8}, "brings its own config; filters"),
    ],
)
def test_impossible_sizes_say_why(overrides, message):
    with pytest.raises(ValueError, match=message):
        flowpp(**overrides)


def test_a_flow_is_the_same_after_its_state_dict_went_round():
    torch.manual_seed(0)
    flow = flowpp(config="digits", filters=8, blocks=1).eval()
    perturb(flow)
    other = flowpp(config="digits", filters=8, blocks=1).eval()
    other.load_state_dict(flow.state_dict())
    x = flow.sample((4,))
    draws = [f.log_prob(x, generator=torch.Generator().manual_seed(1)) for f in (flow, other)]
    assert torch.equal(*draws)


def test_identity_dequantizer_has_the_entropy_of_its_noise():
    """Trap 6: with identity layers the dequantizer's share is -0.278700 bits per dimension in the mean."""
    flow = at_identity(flowpp(config="digits", levels=256, filters=4, blocks=1, heads=1, components=1)).double()
    dequantize = flow.transform["dequantize"]
    # Every pixel of image i has the same noise, the i-th node of a quadrature over the normal.
    nodes = torch.linspace(-12, 12, 4001, dtype=torch.double)
    weights = torch.exp(-0.5 * nodes**2) * (nodes[1] - nodes[0]) / math.sqrt(2 * math.pi)
    dequantize.noise.base = FixedBase(nodes[:, None, None, None].expand(-1, 1, 8, 8))
    _, term = dequantize(torch.randint(256, (4001, 1, 8, 8)))
    share = ((term + 64 * math.log(256)) * weights).sum() / (64 * math.log(2))
    assert abs(share + 0.278700) < 1e-6


SMALL = {
    "config": "digits",
    "filters": 4,
    "heads": 2,
    "blocks": 1,
    "components": 2,
    "context_filters": 4,
    "embedding": 3,
}


@pytest.fixture(params=[{"classes": 5}, {"context_shape": (5,)}], ids=["classes", "vector"])
def conditional(request):
    """A conditional model and a batch of images with their contexts."""
    torch.manual_seed(0)
    flow = flowpp(**SMALL, **request.param, dropout=0.0)
    context = torch.arange(6) % 5 if "classes" in request.param else torch.randn(6, 5)
    return perturb(flow), torch.randint(17, (6, 1, 8, 8)), context


def test_conditional_samples_and_scores_have_the_batch_of_the_context(conditional):
    flow, x, context = conditional
    flow.eval()
    assert tuple(flow.event_shape) == (1, 8, 8)
    assert flow.sample((2,), context).shape == (2, 6, 1, 8, 8) and flow.sample((), context[0]).shape == (1, 8, 8)
    assert flow.log_prob(x, context).shape == (6,)
    assert flow.log_prob(x[0], context).shape == flow.log_prob(x, context[0]).shape == (6,)
    assert flow.log_prob(x, context.unsqueeze(0).expand(2, *context.shape)).shape == (2, 6)
    bits = fk.metrics.bits_per_dim(flow, x, context, draws=2, generator=torch.Generator().manual_seed(0))
    assert bits.shape == (6,) and bits.isfinite().all()
    z = flow.to_latent(x, context)
    assert torch.equal(flow.from_latent(z, context), x)


def test_the_condition_reaches_every_conditioner_and_the_encoder(conditional):
    """Each net that has a gated block answers to it; its embedding and all other parameters learn from it."""
    flow, x, context = conditional
    flow.train()
    log_prob = flow.log_prob(x, context, generator=torch.Generator().manual_seed(0))
    other = flow.log_prob(x, context.roll(2, 0), generator=torch.Generator().manual_seed(0))
    assert ((log_prob - other).abs() > 1e-4).all()
    log_prob.sum().backward()
    for name, parameter in flow.named_parameters():
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0 or name.endswith("positions"), name
    condition = torch.randn(6, 3, 1, 1)
    main = [
        net for name, net in flow.named_modules() if isinstance(net, fk.nets.GatedConvAttention) and "noise" not in name
    ]
    assert len(main) == 9
    for net in main:
        half = torch.randn(6, *net.shape)
        assert not torch.allclose(net(half, condition), net(half, condition.flip(0)))
    encoder, half = flow.transform["dequantize"].encoder, torch.rand(6, 1, 8, 8) - 0.5
    assert not torch.allclose(encoder(half, condition), encoder(half, condition.flip(0)))


def test_a_condition_of_one_pixel_is_that_of_all_pixels():
    torch.manual_seed(0)
    net = perturb(fk.nets.GatedConvAttention((1, 4, 2), out=2, filters=8, blocks=2, context=3))
    half, condition = torch.randn(5, 1, 4, 2), torch.randn(5, 3, 1, 1)
    torch.testing.assert_close(net(half, condition), net(half, condition.expand(5, 3, 4, 2)))


def test_conditional_models_are_initialized_and_compiled():
    few = {"layout": (("columns", 1), ("squeeze", 1), ("channels", 1)), "dequant_couplings": 1}
    flow = flowpp(**SMALL, **few, classes=5, dropout=0.0)
    x, context = torch.randint(17, (6, 1, 8, 8)), torch.arange(6) % 5
    fk.initialize(flow, x, context)
    torch.compiler.reset()
    compiled = torch.compile(flow, fullgraph=True, backend="aot_eager")
    scores = []
    for model in (flow, compiled):
        torch.manual_seed(1)
        scores.append(model(x, context))
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-4, atol=1e-4)


def test_one_class_alone_does_not_initialize_a_conditional_model():
    flow = flowpp(**SMALL, classes=5)
    with pytest.raises(ValueError, match="all 6 inputs are one and the same pixel"):
        fk.initialize(flow, torch.randint(17, (6, 1, 8, 8)), torch.full((6,), 2))


def test_wrong_labels_and_vectors_are_refused():
    flow, x = flowpp(**SMALL, classes=5), torch.zeros(2, 1, 8, 8, dtype=torch.long)
    with pytest.raises(fk.DomainError, match="labels go from 1 to 5, wanted integers from 0 to 4"):
        flow.log_prob(x, torch.tensor([1, 5]))
    with pytest.raises(fk.DomainError, match="labels are torch.float32, wanted integers from 0 to 4"):
        flow.sample((), torch.zeros(2))
    with pytest.raises(fk.ShapeError, match="context is missing"):
        flow.log_prob(x)
    with pytest.raises(fk.ShapeError, match=r"context has shape \(2, 4\), wanted \(\*batch, 5\)"):
        flowpp(**SMALL, context_shape=(5,)).log_prob(x, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"classes is 5 and context_shape is \(5,\), wanted one of them"):
        flowpp(**SMALL, classes=5, context_shape=(5,))
    with pytest.raises(ValueError, match="context_blocks is 0, wanted at least 1 to tell"):
        flowpp(**SMALL, classes=5, context_blocks=0)
