"""Bounds are bounds, and bits/dim is kept by the book."""

import math

import numpy as np
import pytest
import torch

import flowkit as fk
from tests.support import FixedBase, perturb

LEVELS = 4
STATES = torch.cartesian_prod(torch.arange(LEVELS), torch.arange(LEVELS))


def behind():
    """From the unit square to a normal latent."""
    net = fk.nets.MLP((1,), (1, 8), hidden=(16,))
    return [fk.Logit(margin=0.05), fk.MixLogisticCDFCoupling(net, 2, dim=-1), fk.Flip(-1), fk.ActNorm((2,))]


def toy(variational, seed=0):
    torch.manual_seed(seed)
    if variational:
        net = fk.nets.MLP((1,), (1, 2), hidden=(16,), context=3)
        noise = fk.Flow(
            fk.Chain(fk.AffineCoupling(net, dim=-1), fk.Flip(-1), fk.ActNorm((2,)), fk.Sigmoid()).inv,
            fk.Normal((2,)),
            context_shape=(3,),
        )
        dequantize = fk.VariationalDequantizer(noise, LEVELS, Encoder())
    else:
        dequantize = fk.UniformDequantizer(LEVELS)
    return perturb(fk.Flow(fk.Chain(dequantize, *behind()), fk.Normal((2,))).double(), scale=0.4, seed=seed)


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 3)

    def forward(self, x, context=None):
        return torch.tanh(self.linear(x))


def draws(flow, number):
    with torch.no_grad():
        return flow.log_prob(STATES.expand(number, -1, -1))


@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_mean_log_prob_is_a_lower_bound(variational, seed):
    """Sum over all states of exp(mean log_prob) is at most 1."""
    flow = toy(variational, seed)
    assert draws(flow, 4000).mean(0).exp().sum() <= 1


@pytest.mark.parametrize("variational", [False, True])
def test_mean_of_exp_is_the_mass_inside_the_cube(variational):
    """E exp(log_prob) is P(x) exactly; the sum is the share of latents that come from inside the cube, below 1."""
    flow = toy(variational)
    masses = draws(flow, 40_000).exp().sum(1)
    cube = fk.Flow(fk.Chain(*list(flow.transform)[1:]), flow.base)
    with torch.no_grad():
        z = cube.sample((400_000,))
    inside = ((z >= 0) & (z < 1)).all(-1).double()
    error = math.hypot(masses.std() / len(masses) ** 0.5, inside.std() / len(inside) ** 0.5)
    assert inside.mean() < 0.999  # else the test would show nothing
    assert abs(masses.mean() - inside.mean()) < 3 * error


@pytest.mark.parametrize("variational", [False, True])
def test_importance_weighted_bound_grows_with_the_draws(variational):
    flow = toy(variational)
    generator = torch.Generator().manual_seed(0)
    x = STATES.repeat(200, 1)
    with torch.no_grad():
        bounds = [fk.metrics.log_prob_bound(flow, x, draws=k, generator=generator).mean() for k in (1, 4, 16, 64)]
        exact = draws(flow, 40_000).exp().mean(0).log().mean()
    gaps = [(exact - bound).item() for bound in bounds]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] > -1e-3, gaps
    assert gaps[-1] < 0.25 * gaps[0], gaps


@pytest.mark.parametrize(("levels", "bits"), [(256, 8.207529), (32, 5.207529), (17, 4.294992)])
def test_identity_flow_on_uniform_data(levels, bits):
    """Trap 5: the logit's margin and the levels, each counted once; by quadrature over the noise."""
    nodes, weights = (torch.tensor(part) for part in np.polynomial.legendre.leggauss(16))
    u, weights = (nodes + 1) / 2, weights / 2
    x = torch.arange(levels)[:, None].expand(levels, 16).reshape(-1, 1)
    noise = FixedNoise(u.repeat(levels)[:, None])
    flow = fk.Flow(fk.Chain(fk.VariationalDequantizer(noise, levels), fk.Logit(margin=0.05)), fk.Normal((1,))).double()
    found = fk.metrics.bits_per_dim(flow, x).reshape(levels, 16)
    assert abs((found * weights).sum(1).mean() - bits) < 1e-6


class FixedNoise(fk.Uniform):
    """Uniform noise whose draw is given."""

    def __init__(self, u):
        super().__init__(u.shape[1:])
        self.u = u

    def rsample(self, sample_shape=(), context=None, *, generator=None):
        return self.u


def test_bound_of_an_exact_flow_is_its_density():
    flow = fk.Flow(fk.ActNorm((2,)), fk.Normal((2,)))
    x = torch.randn(3, 2)
    assert torch.equal(fk.metrics.log_prob_bound(flow, x, draws=7), flow.log_prob(x).double())


def test_one_draw_is_log_prob_itself():
    flow = toy(True)
    one = fk.metrics.log_prob_bound(flow, STATES, draws=1, generator=torch.Generator().manual_seed(3))
    assert torch.equal(one, flow.log_prob(STATES, generator=torch.Generator().manual_seed(3)))


def test_bits_per_dim_is_one_value_per_example():
    flow = toy(False)
    assert fk.metrics.bits_per_dim(flow, STATES[0]).shape == ()
    assert fk.metrics.bits_per_dim(flow, STATES.reshape(4, 4, 2), draws=2).shape == (4, 4)


def test_no_draws_are_refused():
    with pytest.raises(ValueError, match="draws is 0, wanted a whole number of at least 1"):
        fk.metrics.log_prob_bound(toy(False), STATES, draws=0)
    with pytest.raises(ValueError, match="log_prob_bound: draws is 2.0, wanted a whole number of at least 1"):
        fk.metrics.log_prob_bound(toy(False), STATES, draws=2.0)


def test_fixed_base_serves_as_noise():
    """A base that returns a given draw fixes the dequantizer's noise, in initialize too."""
    eps = torch.randn(16, 2, dtype=torch.double)
    flow = toy(True)
    flow.transform[0].noise.base = FixedBase(eps)
    assert torch.equal(flow.log_prob(STATES), flow.log_prob(STATES))
    fk.initialize(flow, STATES)
    assert flow.to_latent(STATES).mean(0).abs().max() < 1e-10


# ---------------------------------------------------------------------------------------------------------------------
# One interface: every dequantizer, on data with few states


class Read(torch.nn.Module):
    """An encoder: a vector off whatever code of x it is given."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.linear = torch.nn.Linear(size, 3)

    def forward(self, code, context=None):
        return torch.tanh(self.linear(code.reshape(*code.shape[: code.ndim - self.ndim], self.size)))


def encoder(size, ndim):
    net = Read(size)
    net.ndim = ndim
    return net


def noise_given(event, *squash):
    """A distribution over (*event), on the unit cube if told so, whose location and scale a net reads off 3 numbers."""
    net = fk.nets.MLP((3,), (*event, 2), hidden=(8,))
    shift = fk.FromContext(fk.maps.Affine(log_scale_bound=1.0), net, event_ndim=len(event))
    return fk.Flow(fk.Chain(*squash, shift), fk.Logistic(event), context_shape=(3,))


def uniform(levels):
    return fk.UniformDequantizer(levels), (2,)


def variational(levels):
    return fk.VariationalDequantizer(noise_given((2,), fk.Sigmoid().inv), levels, encoder(2, 1)), (2,)


def argmax(levels):
    return fk.ArgmaxDequantizer(noise_given((2, levels)), levels, encoder(2 * levels, 2)), (2, levels)


def binary(levels):
    digits = (levels - 1).bit_length()
    return fk.BinaryDequantizer(noise_given((2, digits)), levels, encoder(2 * digits, 2)), (2, digits)


ALL = {
    "uniform": (uniform, 3, (3, 3)),
    "uniform-each": (uniform, (2, 5), (2, 5)),
    "variational": (variational, 3, (3, 3)),
    "variational-each": (variational, (2, 4), (2, 4)),
    "argmax": (argmax, 3, (3, 3)),
    "binary": (binary, 3, (3, 3)),
}


def product_model(name):
    """A dequantizer before independent logistics, and the exact probability of each of its states."""
    make, levels, counts = ALL[name]
    torch.manual_seed(1)
    dequantize, event = make(levels)
    loc, scale = torch.randn(event).double(), 0.5 + torch.rand(event).double()
    on_cube = name.startswith(("uniform", "variational"))
    loc, scale = (0.5 + 0.3 * loc.tanh(), 0.4 * scale) if on_cube else (loc, scale)
    flow = fk.Flow(dequantize, fk.Logistic(event, loc, scale)).double()
    states = torch.cartesian_prod(*map(torch.arange, counts))
    perturb(flow, scale=0.2, seed=2)

    def below(value, i):
        return torch.sigmoid((value - loc[i]) / scale[i])

    def mass(i, k, count):
        """Of value k at place i."""
        if on_cube:
            return below((k + 1) / count, i) - below(k / count, i)
        if name == "binary":
            digits = [int(d) for d in f"{k:02b}"]
            above = 1 - below(0.0, i)
            return torch.stack([above[j] if d else 1 - above[j] for j, d in enumerate(digits)]).prod()
        t = torch.linspace(-60, 60, 60_001, dtype=torch.float64)[:, None]
        cdf = torch.sigmoid((t - loc[i]) / scale[i])
        density = cdf * (1 - cdf) / scale[i]
        others = [j for j in range(count) if j != k]
        return (density[:, k] * cdf[:, others].prod(-1)).sum() * (120 / 60_000)

    tables = [torch.stack([mass(i, k, count) for k in range(count)]) for i, count in enumerate(counts)]
    return flow, states, (tables[0][states[:, 0]] * tables[1][states[:, 1]]).log()


@pytest.mark.parametrize("name", ALL)
def test_every_dequantizer_has_bounds_that_converge_to_the_exact_probability(name):
    """Below it in the mean with one draw, nearer with more, and the mean of exp(log_prob) is the probability."""
    flow, states, exact = product_model(name)
    assert exact.exp().sum() <= 1 + 1e-9
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        terms = flow.log_prob(states.expand(20_000, -1, -1), generator=generator)
        repeated = states.repeat(400, 1)
        bounds = [
            fk.metrics.log_prob_bound(flow, repeated, draws=k, generator=generator).mean() for k in (1, 4, 16, 64)
        ]
    assert terms.mean(0).exp().sum() <= 1
    weights = (terms - exact).exp()
    assert ((weights.mean(0) - 1).abs() < 5 * weights.std(0) / len(weights) ** 0.5 + 1e-9).all()
    gaps = [(exact.mean() - bound).item() for bound in bounds]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 0.01, gaps
    assert -5e-3 < gaps[-1] < 0.1 * gaps[0], gaps


@pytest.mark.parametrize("name", ALL)
def test_samples_have_the_exact_frequencies(name):
    flow, states, exact = product_model(name)
    count = 50_000
    samples = flow.sample((count,), generator=torch.Generator().manual_seed(3))
    found = (samples[:, None] == states).all(-1).double().mean(0)
    # Mass outside the cube, or on digits that no integer has, goes to the nearest integer.
    outside = name.startswith(("uniform", "variational")) or name == "binary"
    error = 5 * (exact.exp() * (1 - exact.exp()) / count).sqrt()
    assert ((found - exact.exp()) > -error).all()
    assert outside or ((found - exact.exp()) < error).all()


# Entropy and divergence


def normals():
    lower = torch.tensor([[1.0, 0.0], [0.8, 0.5]], dtype=torch.float64)
    p = fk.MultivariateNormal(2, torch.tensor([1.0, 0.0]).double(), scale_tril=lower)
    q = fk.Normal(2, scale=torch.tensor([2.0, 1.0]).double())
    return p, q, torch.distributions.MultivariateNormal(p.loc, scale_tril=lower)


def test_estimates_and_their_errors_are_calibrated():
    """Over 200 seeds the deviations from the closed form, in standard errors, have mean 0 and deviation 1."""
    p, q, reference = normals()
    other = torch.distributions.MultivariateNormal(q.loc.expand(2), scale_tril=torch.diag(q.scale))
    divergence = torch.distributions.kl_divergence(reference, other)
    scores = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        entropy = fk.metrics.entropy(p, draws=500, chunk=128, generator=generator)
        kl = fk.metrics.kl_divergence(p, q, draws=500, generator=generator)
        scores.append([
            (entropy.mean - reference.entropy()) / entropy.standard_error,
            (kl.mean - divergence) / kl.standard_error,
        ])  # fmt: skip
    scores = torch.tensor(scores)
    assert scores.mean(0).abs().max() < 4 / math.sqrt(200)
    assert (scores.std(0) - 1).abs().max() < 0.2


def test_chunks_change_memory_and_not_the_estimate():
    p, q, _ = normals()
    for chunk in (1, 7, 64, 1000):
        found = fk.metrics.kl_divergence(p, q, draws=64, chunk=chunk, generator=torch.Generator().manual_seed(0))
        x = torch.cat([
            p.sample((min(chunk, 64 - start),), generator=generator)
            for generator in [torch.Generator().manual_seed(0)] for start in range(0, 64, chunk)
        ])  # fmt: skip
        terms = p.log_prob(x) - q.log_prob(x)
        torch.testing.assert_close(found.mean, terms.mean(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.standard_error, terms.std() / 8, rtol=1e-12, atol=1e-12)


def test_a_tiny_error_on_a_large_mean_is_kept():
    """Entropies of 1e6 with a deviation of order 1: differences of sums of squares in float32 would lose it."""
    p = fk.Normal(3, scale=math.exp(80.0)).double()
    found = fk.metrics.entropy(p, draws=4000, chunk=100, generator=torch.Generator().manual_seed(0))
    assert found.standard_error * math.sqrt(4000) == pytest.approx(math.sqrt(1.5), rel=0.05)


def test_conditional_estimates_have_the_batch_of_the_context():
    base = fk.Given(fk.Normal(2), torch.nn.Embedding(3, 4), context_ndim=0)
    with torch.no_grad():
        base.net.weight.copy_(torch.tensor([[0.0, 0, 0, 0], [0, 1, 0, 1], [5, 0, 5, 0]]))  # (loc, log-scale) each
    labels = torch.arange(3)
    entropy = fk.metrics.entropy(base, labels, draws=4000, generator=torch.Generator().manual_seed(0))
    wanted = 1 + math.log(2 * math.pi) + torch.tensor([0.0, 2.0, 0.0])
    assert entropy.mean.shape == (3,) and ((entropy.mean - wanted).abs() < 4 * entropy.standard_error).all()
    standard = fk.Normal(2)
    kl = fk.metrics.kl_divergence(base, standard, labels, draws=4000, generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor([0.0, 2 * (math.e**2 - 1) / 2 - 2, 25.0])
    assert ((kl.mean - wanted).abs() <= 4 * kl.standard_error + 1e-6).all()
    # The other way round, draws of one density meet every context.
    kl = fk.metrics.kl_divergence(standard, base, labels, draws=4000, generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor([0.0, 2 * (math.e**-2 - 1) / 2 + 2, 25.0])
    assert ((kl.mean - wanted).abs() <= 4 * kl.standard_error + 1e-6).all()


def test_a_divergence_without_bound_is_infinite():
    found = fk.metrics.kl_divergence(fk.Normal(1), fk.Uniform(1), draws=100, chunk=10)
    assert found.mean == torch.inf and found.standard_error == torch.inf


def test_estimates_want_exact_densities_and_enough_draws():
    bound = fk.Flow(fk.UniformDequantizer(4), fk.Uniform(1))
    with pytest.raises(fk.NotExact, match="entropy: distribution has only a bound"):
        fk.metrics.entropy(bound, draws=10)
    with pytest.raises(fk.NotExact, match="kl_divergence: q has only a bound"):
        fk.metrics.kl_divergence(fk.Uniform(1), bound, draws=10)
    with pytest.raises(ValueError, match="draws is 1, wanted a whole number of at least 2"):
        fk.metrics.entropy(fk.Normal(1), draws=1)
    with pytest.raises(ValueError, match="chunk is 0"):
        fk.metrics.entropy(fk.Normal(1), draws=10, chunk=0)
    with pytest.raises(fk.ShapeError, match="neither p nor q is conditional"):
        fk.metrics.kl_divergence(fk.Normal(1), fk.Normal(1), torch.zeros(3), draws=10)
    with pytest.raises(fk.ShapeError, match="x has shape"):
        fk.metrics.kl_divergence(fk.Normal(1), fk.Normal(2), draws=10)
