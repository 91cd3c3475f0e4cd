"""nflows' flows with their weights, against nflows."""

import importlib.util
import pickle
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import flowkit as fk
from flowkit.interop import from_nflows
from flowkit.testing import check_distribution
from tests.support import perturb

if importlib.util.find_spec("nflows") is None:
    pytest.skip("needs nflows: pip install nflows", allow_module_level=True)

from nflows import distributions, transforms
from nflows.flows.autoregressive import MaskedAutoregressiveFlow
from nflows.flows.base import Flow
from nflows.flows.realnvp import SimpleRealNVP
from nflows.nn import nets
from nflows.transforms.standard import IdentityTransform

pytestmark = pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated", "ignore:Inputs to the softmax")

MASK = torch.tensor([1, -1, -1, 1, 1])


def residual(before, after, **options):
    return nets.ResidualNet(before, after, **{"hidden_features": 16, "num_blocks": 2, **options})


def spline(mask=MASK, **options):
    make = transforms.PiecewiseRationalQuadraticCouplingTransform
    return make(mask, residual, **{"num_bins": 6, "tails": "linear", "tail_bound": 3.0, **options})


def autoregressive_spline(**options):
    return transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(5, 16, num_bins=6, **options)


def of(*layers, base=None):
    return Flow(transforms.CompositeTransform(layers), base or distributions.StandardNormal([5]))


MODELS = {
    "MAF": lambda: MaskedAutoregressiveFlow(5, 16, 3, 2),
    "MAF-feedforward": lambda: MaskedAutoregressiveFlow(
        5,
        16,
        2,
        2,
        use_residual_blocks=False,
        use_random_masks=True,
        use_random_permutations=True,
        activation=torch.tanh,
        batch_norm_between_layers=True,
    ),
    "MAF-no-blocks": lambda: MaskedAutoregressiveFlow(5, 16, 1, 0),
    "RealNVP": lambda: SimpleRealNVP(5, 16, 3, 2, batch_norm_between_layers=True, activation=F.elu),
    "NICE": lambda: SimpleRealNVP(5, 16, 3, 1, use_volume_preserving=True),
    "NSF-coupling": lambda: of(
        transforms.RandomPermutation(5),
        transforms.LULinear(5, identity_init=False),
        spline(),
        transforms.ActNorm(5),
        spline(-MASK),
    ),
    "NSF": lambda: of(
        autoregressive_spline(tails="linear", tail_bound=3.0),
        transforms.InverseTransform(transforms.ReversePermutation(5)),
        base=distributions.DiagonalNormal([5]),
    ),
    "NSF-bounded": lambda: of(
        autoregressive_spline(),
        transforms.InverseTransform(transforms.MaskedAffineAutoregressiveTransform(5, 16)),
    ),
    "NSF-coupling-bounded": lambda: of(
        spline(tails=None),
        transforms.InverseTransform(transforms.MaskedAffineAutoregressiveTransform(5, 16)),
    ),
}


def made(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = perturb(MODELS[name](), 0.2).double().eval()
        for key, buffer in model.named_buffers():
            if key.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
            if key.endswith("running_mean"):
                buffer.normal_()
    return model


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MODELS)
def test_equal_densities_and_samples(name):
    model = made(name)
    flow = from_nflows(model)
    x = draw(100, 5).sigmoid() if "bounded" in name else 2 * draw(100, 5)
    torch.testing.assert_close(flow.log_prob(x), model.log_prob(x), rtol=1e-10, atol=1e-10)
    noise = model.transform_to_noise(x) if "bounded" in name else draw(100, 5, seed=2)
    base = model._distribution
    latent = (noise - base.mean_) * (-base.log_std_).exp() if hasattr(base, "mean_") else noise
    torch.testing.assert_close(flow.from_latent(latent), model._transform.inverse(noise)[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["MAF", "NSF-coupling"])
def test_what_comes_over_is_flowkits_own(name):
    model = made(name)
    flow = from_nflows(model)
    assert [p for p in flow.modules() if type(p).__module__.startswith("nflows")] == []
    x = draw(3, 5)
    wanted = flow.log_prob(x)
    perturb(model, 1.0)
    assert torch.equal(flow.log_prob(x), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(flow)).log_prob(x), wanted)
    assert not flow.training


def test_they_keep_the_laws_and_train():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = from_nflows(MaskedAutoregressiveFlow(2, 8, 2, 1).eval())
    check_distribution(flow, perturb=0.02, skip=["compiles"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: of(spline(tails=None, apply_unconditional_transform=True)), "unconditional_transform is a Piecewise"),
        (lambda: MaskedAutoregressiveFlow(5, 16, 1, 1, dropout_probability=0.1), "MaskedResidualBlock with dropout"),
        (lambda: SimpleRealNVP(5, 16, 1, 1, batch_norm_within_layers=True), "ResidualBlock with batch normalization"),
        (
            lambda: of(transforms.MaskedAffineAutoregressiveTransform(5, 16, context_features=2)),
            r"_transforms.0.autoregressive_net is a MADE with a context",
        ),
        (lambda: of(transforms.HouseholderSequence(5, 2)), "_transforms.0 is a HouseholderSequence"),
        (lambda: of(IdentityTransform()), "_transforms.0 is a IdentityTransform"),
        (lambda: of(transforms.AffineCouplingTransform(MASK, nn.Linear)), "transform_net is a Linear"),
        (lambda: of(transforms.RandomPermutation(5, dim=2)), "along dim 2"),
        (lambda: SimpleRealNVP(5, 16, 1, 1, activation=torch.sin), "the nonlinearity .*sin"),
        (
            lambda: Flow(transforms.ReversePermutation(5), distributions.ConditionalDiagonalNormal([5])),
            "_distribution is a ConditionalDiagonalNormal",
        ),
        (
            lambda: Flow(transforms.ReversePermutation(5), distributions.StandardNormal([5]), nn.Linear(2, 2)),
            "_embedding_net is a Linear",
        ),
    ],
)
def test_what_has_no_equivalent_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        from_nflows(make())


def test_what_is_no_flow():
    with pytest.raises(TypeError, match=r"wanted an nflows.flows.Flow"):
        from_nflows(fk.Flow(fk.ActNorm((2,)), fk.Normal((2,))))


def test_without_nflows_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "nflows.flows.base", None)
    with pytest.raises(ImportError, match="pip install nflows"):
        from_nflows(nn.Identity())
