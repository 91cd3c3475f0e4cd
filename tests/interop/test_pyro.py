"""Flows in Pyro's models and guides, against posteriors in closed form."""

import copy
import importlib.util
import sys

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.interop import as_pyro_distribution, as_torch_transform
from flowkit.interop import pyro as bridge
from tests.support import perturb

if importlib.util.find_spec("pyro") is None:
    pytest.skip("needs Pyro: pip install pyro-ppl", allow_module_level=True)

import pyro
import pyro.distributions as dist
from pyro.infer import SVI, Trace_ELBO


@pytest.fixture(autouse=True)
def alone():
    """Pyro's store of parameters and its checks are global: every test starts anew, and leaves nothing."""
    validation = torch.distributions.Distribution._validate_args
    pyro.clear_param_store()
    pyro.enable_validation(True)
    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        yield
    pyro.clear_param_store()
    torch.distributions.Distribution.set_default_validate_args(validation)


def trained(model, guide, *args, steps, particles=16, rate=0.05, dims=1):
    loss = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=dims)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": rate, "lrd": 0.01 ** (1 / steps)}), loss)
    for _ in range(steps):
        svi.step(*args)


class Counted(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.runs = net, 0

    def forward(self, *args):
        self.runs += 1
        return self.net(*args)


def test_a_guide_finds_the_posterior_of_a_conjugate_normal():
    """y = A w + noise, w standard normal: the posterior is normal, with precision I + A'A / s^2."""
    generator = torch.Generator().manual_seed(1)
    design = torch.randn(15, 2, generator=generator) @ torch.tensor([[1.0, 0.7], [0.0, 0.5]])
    y, scale = design @ torch.tensor([1.0, -2.0]) + 0.8 * torch.randn(15, generator=generator), 0.8
    flow = fk.Flow(fk.Chain(fk.Elementwise(fk.maps.Affine(), (2,)), fk.LULinear(2)), fk.Normal((2,)))

    def model():
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", 15):
            pyro.sample("y", dist.Normal((w * design).sum(-1), scale), obs=y)

    def guide():
        pyro.module("flow", flow)
        pyro.sample("w", as_pyro_distribution(flow))

    trained(model, guide, steps=400, rate=0.1)
    covariance = torch.linalg.inv(torch.eye(2) + design.T @ design / scale**2)
    mean = covariance @ design.T @ y / scale**2
    w = flow.sample((40000,))
    torch.testing.assert_close(w.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(w.T.cov(), covariance, atol=0.01, rtol=0.05)
    # Not only the moments: the density itself, and so the evidence.
    posterior = torch.distributions.MultivariateNormal(mean, covariance)
    assert (flow.log_prob(w) - posterior.log_prob(w)).mean().abs() < 0.01


def test_a_conditional_flow_amortizes():
    """z standard normal, x = z + noise: z given x is normal with mean x / (1 + s^2) and variance s^2 / (1 + s^2)."""
    scale = 0.5
    flow = fk.Flow(
        fk.FromContext(fk.maps.Affine(), fk.nets.MLP((1,), (1, 2), hidden=(16,)), event_ndim=1),
        fk.Normal((1,)),
        context_shape=(1,),
    )

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    def guide(x):
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            pyro.sample("z", as_pyro_distribution(flow, context=x))

    trained(model, guide, 1.2 * torch.randn(256, 1), steps=400, particles=4)
    x = torch.tensor([[-1.5], [0.0], [1.0]])
    z = flow.sample((20000,), context=x)
    torch.testing.assert_close(z.mean(0), x / (1 + scale**2), atol=0.06, rtol=0)
    torch.testing.assert_close(z.std(0), torch.full((3, 1), scale / (1 + scale**2) ** 0.5), atol=0.04, rtol=0)


def test_a_flow_in_a_model_learns_the_data():
    """The likelihood of an affine flow is largest at the mean and the deviation of the data."""
    data = torch.randn(200, 2) * torch.tensor([0.5, 2.0]) + torch.tensor([1.0, -3.0])
    flow = fk.Flow(fk.Elementwise(fk.maps.Affine(), (2,)), fk.Normal((2,)))

    def model():
        pyro.module("flow", flow)
        with pyro.plate("data", 200):
            pyro.sample("x", as_pyro_distribution(flow), obs=data)

    trained(model, lambda: None, steps=300, particles=1)
    wanted = torch.distributions.Normal(data.mean(0), data.std(0, unbiased=False)).log_prob(data).sum(-1).mean()
    assert wanted - 0.01 < flow.log_prob(data).mean() <= wanted + 1e-5


def test_a_guide_runs_every_net_once_in_a_step():
    net = Counted(fk.nets.MLP((1,), (1, 2), hidden=(8,)))
    flow = perturb(fk.Flow(fk.AffineCoupling(net, dim=-1), fk.Normal((2,))), 0.3)

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    for cache_size, runs in ((1, 1), (0, 2)):

        def guide(cache_size=cache_size):
            pyro.module("flow", flow)
            pyro.sample("z", as_pyro_distribution(flow, cache_size=cache_size))

        net.runs = 0
        SVI(model, guide, pyro.optim.Adam({"lr": 0.0}), Trace_ELBO()).step()
        assert net.runs == runs


def test_what_pyro_asks_of_a_distribution():
    flow = fk.Flow(
        fk.FromContext(fk.maps.Affine(), fk.nets.MLP((3,), (2, 2)), event_ndim=1), fk.Normal((2,)), context_shape=(3,)
    )
    d = as_pyro_distribution(flow, torch.randn(4, 3))
    assert isinstance(d, torch.distributions.Distribution)
    assert (d.event_dim, d.shape((5,)), d().shape) == (1, (5, 4, 2), (4, 2))
    assert d.expand_by((6,)).batch_shape == (6, 4) and type(d.expand_by((6,))) is type(d)
    x = torch.randn(4, 2)
    assert d.to_event(1).log_prob(x).shape == ()
    masked = d.mask(torch.tensor([True, False, True, False])).log_prob(x)
    assert (masked == 0).tolist() == [False, True, False, True]
    torch.testing.assert_close(copy.deepcopy(d).log_prob(x), d.log_prob(x))
    with pytest.raises(fk.NotExact):
        as_pyro_distribution(fk.Flow(fk.Chain(fk.UniformDequantizer(2), fk.Logit(margin=0.1)), fk.Normal((2,))))


def test_a_transform_in_a_transformed_distribution_of_pyro():
    bijector = perturb(fk.AffineCoupling(fk.nets.MLP((1,), (1, 2), hidden=(8,)), dim=-1), 0.3)
    d = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0), [as_torch_transform(bijector)])
    x = d()
    torch.testing.assert_close(d.log_prob(x), fk.Flow(bijector, fk.Normal((2,))).log_prob(x))
    with pyro.plate("n", 3):
        assert pyro.sample("x", d).shape == (3, 2)


def test_without_pyro_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyro.distributions.torch_distribution", None)
    with pytest.raises(ImportError, match="pip install pyro-ppl"):
        bridge._pyro_distribution.__wrapped__()
