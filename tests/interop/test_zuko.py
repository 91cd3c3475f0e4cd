"""zuko's flows with their weights, against zuko."""

import copy
import functools
import importlib.util
import pickle
import sys

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.interop import from_zuko
from flowkit.testing import check_distribution
from tests.support import perturb

if importlib.util.find_spec("zuko") is None:
    pytest.skip("needs zuko: pip install zuko", allow_module_level=True)


@pytest.fixture(scope="module")
def zuko():
    """Importing it changes how torch validates arguments, everywhere: that is undone."""
    kind = torch.distributions.Distribution
    before = {name: vars(kind)[name] for name in ("_validate_args", "arg_constraints") if name in vars(kind)}
    import zuko

    for name, value in before.items():
        setattr(kind, name, value)
    return zuko


def unconditional(zuko, f, *args, **options):
    return zuko.lazy.UnconditionalTransform(f, *args, **options)


def composed(zuko):
    """Every layer that is brought over, and a base with parameters."""
    transforms, univariate = zuko.transforms, functools.partial(zuko.transforms.MonotonicRQSTransform, bound=2.0)
    layers = [
        unconditional(zuko, transforms.PermutationTransform, torch.tensor([2, 0, 1]), buffer=True),
        unconditional(zuko, transforms.RotationTransform, torch.randn(3, 3)),
        unconditional(zuko, transforms.LULinearTransform, torch.randn(3, 3) + 4 * torch.eye(3)),
        zuko.flows.gaussianization.ElementWiseTransform(3),
        zuko.flows.gaussianization.ElementWiseTransform(3, univariate=univariate, shapes=[(4,), (4,), (3,)]),
        zuko.lazy.LazyInverse(zuko.flows.GeneralCouplingTransform(3, mask=torch.tensor([True, False, True]))),
        zuko.flows.GeneralCouplingTransform(3, univariate=zuko.transforms.AdditiveTransform, shapes=((),)),
    ]
    loc, scale = torch.randn(3), torch.rand(3) + 0.5
    return zuko.lazy.Flow(layers, zuko.lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, loc, scale))


def graph(zuko):
    """A masked autoregressive layer along a graph whose depth is 2, not the number of features."""
    adjacency = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]], dtype=torch.bool)
    layer = zuko.flows.MaskedAutoregressiveTransform(4, adjacency=adjacency, hidden_features=(12,))
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.ones(4), 2 * torch.ones(4), buffer=True
    )
    return zuko.lazy.Flow([layer], base)


MODELS = {
    "MAF": (lambda zuko: zuko.flows.MAF(5, transforms=3), 0),
    "MAF-context": (lambda zuko: zuko.flows.MAF(5, 3, randperm=True, hidden_features=(17, 9), activation=nn.Tanh), 3),
    "MAF-linear": (lambda zuko: zuko.flows.MAF(3, 2, hidden_features=()), 2),
    "MAF-narrow": (lambda zuko: zuko.flows.MAF(9, hidden_features=(4, 3)), 0),
    "MAF-graph": (graph, 0),
    "NSF": (lambda zuko: zuko.flows.NSF(4, transforms=2), 0),
    "NSF-coupling-context": (lambda zuko: zuko.flows.NSF(4, 2, transforms=2, passes=2, bins=5, slope=1e-2), 2),
    "NSF-one": (lambda zuko: zuko.flows.NSF(1, 2), 2),
    "NICE": (lambda zuko: zuko.flows.NICE(5, activation=functools.partial(nn.LeakyReLU, 0.1)), 0),
    "RealNVP-context": (lambda zuko: zuko.flows.RealNVP(5, 2, randmask=True), 2),
    "composed": (composed, 0),
}


def made(zuko, name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make, context = MODELS[name]
        model = perturb(make(zuko), 0.1).double()
    return model, context


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MODELS)
def test_equal_densities_and_samples(zuko, name):
    model, width = made(zuko, name)
    flow = from_zuko(model)
    context = draw(200, width, seed=1) if width else None
    peer = model(context)
    x = 2 * draw(200, *flow.event_shape)
    torch.testing.assert_close(flow.log_prob(x, context), peer.log_prob(x), rtol=1e-10, atol=1e-10)
    noise = draw(200, *flow.event_shape, seed=2)
    base = model.base().base_dist
    # The latent of a trained base stands behind a layer of its own.
    trained = any(True for _ in model.base.parameters())
    wanted = peer.transform.inv(base.loc + base.scale * noise)
    latent = noise if trained else flow.base.loc + flow.base.scale * noise
    torch.testing.assert_close(flow.from_latent(latent, context), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["MAF-context", "NSF", "composed"])
def test_what_comes_over_is_flowkits_own(zuko, name):
    model, width = made(zuko, name)
    flow = from_zuko(model)
    foreign = [type(part).__module__ for part in flow.modules() if type(part).__module__.startswith("zuko")]
    assert foreign == []
    context = draw(3, width) if width else None
    x = draw(3, *flow.event_shape)
    wanted = flow.log_prob(x, context)
    # Copies of the weights: what happens to either does not reach the other.
    perturb(model, 1.0)
    assert torch.equal(flow.log_prob(x, context), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(flow)).log_prob(x, context), wanted)
    twin = copy.deepcopy(perturb(from_zuko(made(zuko, name)[0]), 0.3))
    twin.load_state_dict(flow.state_dict())
    assert torch.equal(twin.log_prob(x, context), wanted)


def test_they_keep_the_laws_and_train(zuko):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = from_zuko(zuko.flows.NSF(2, transforms=2, hidden_features=(8,), bins=4))
    check_distribution(flow, perturb=0.02, skip=["compiles"])


def test_single_precision(zuko):
    model = from_zuko(zuko.flows.NSF(4, transforms=2))
    assert {t.dtype for t in model.parameters()} == {torch.float32}
    double = copy.deepcopy(model).double()
    x = draw(100, 4)
    torch.testing.assert_close(model.log_prob(x.float()).double(), double.log_prob(x), rtol=1e-4, atol=1e-4)


def test_samples_cost_one_run_of_the_net(zuko):
    """Where zuko runs it once for each feature."""
    model, _ = made(zuko, "MAF-graph")
    (layer,) = [part for part in from_zuko(model).modules() if isinstance(part, fk.Autoregressive)]
    assert [len(group) for group in layer.conditioner.groups] == [2, 2]
    net, runs = layer.conditioner, []
    net.register_forward_hook(lambda *_: runs.append(1))
    layer.inverse(draw(3, 4))
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda z: z.flows.NCSF(3), r"transform.transforms.0.univariate is CircularRQSTransform"),
        (lambda z: z.flows.NAF(3), r"transform.transforms.0.univariate is MNN|is a .*NAF|univariate"),
        (lambda z: z.flows.MAF(3, residual=True, hidden_features=(8, 8)), r"hyper.1 is a Residual in that place"),
        (lambda z: z.flows.NICE(3, normalize=True), r"hyper.2 is a LayerNorm in that place"),
        (lambda z: z.flows.CNF(3), r"transform.* is a FFJTransform"),
        (lambda z: z.flows.GF(3), r"transform.transforms.0.univariate is GaussianizationTransform"),
    ],
    ids=["NCSF", "NAF", "residual", "normalized", "CNF", "GF"],
)
def test_what_has_no_equivalent_is_named(zuko, make, message):
    with pytest.raises(ValueError, match=message):
        from_zuko(make(zuko))


def test_bases_and_signs_without_equivalent(zuko):
    layer = zuko.flows.MaskedAutoregressiveTransform(2)
    cube = zuko.lazy.UnconditionalDistribution(zuko.distributions.BoxUniform, torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match="base is a BoxUniform, which has no equivalent"):
        from_zuko(zuko.lazy.Flow([layer], cube))
    normal = zuko.lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, torch.zeros(2), torch.ones(2))
    mirror = unconditional(zuko, zuko.transforms.LULinearTransform, -torch.eye(2))
    with pytest.raises(ValueError, match="LULinearTransform with a diagonal that is not positive"):
        from_zuko(zuko.lazy.Flow([mirror], normal))
    with pytest.raises(TypeError, match="wanted a zuko.flows.Flow"):
        from_zuko(fk.Flow(fk.ActNorm((2,)), fk.Normal((2,))))


def test_without_zuko_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ImportError, match="pip install zuko"):
        from_zuko(nn.Identity())
