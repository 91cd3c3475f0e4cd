"""Bases beside torch.distributions and scipy; trained and conditional ones; what is refused."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import flowkit as fk
from tests.support import perturb

td = torch.distributions


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def global_seed():
    torch.manual_seed(0)


LOC, SCALE = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.1, 3.0, 1.0]).double()
LOWER = torch.tensor([[2.0, 0, 0], [1.5, 0.1, 0], [-1.0, 3.0, 0.7]]).double()
WEIGHTS = torch.tensor([0.2, 0.5, 0.3]).double()
LOCS, SCALES = torch.randn(3, 2, generator=seeded()).double(), torch.rand(3, 2, generator=seeded()).double() + 0.1

BESIDE_TORCH = {
    "Normal": (lambda **o: fk.Normal(3, LOC, SCALE, **o), td.Independent(td.Normal(LOC, SCALE), 1)),
    "StudentT": (
        lambda **o: fk.StudentT(3, SCALE + 1, LOC, SCALE, **o),
        td.Independent(td.StudentT(SCALE + 1, LOC, SCALE), 1),
    ),
    "tril": (
        lambda **o: fk.MultivariateNormal(3, LOC, scale_tril=LOWER, **o),
        td.MultivariateNormal(LOC, scale_tril=LOWER),
    ),
    "covariance": (
        lambda **o: fk.MultivariateNormal(3, LOC, covariance=LOWER @ LOWER.mT, **o),
        td.MultivariateNormal(LOC, scale_tril=LOWER),
    ),
    "Mixture": (
        lambda **o: fk.Mixture(fk.Normal((3, 2), LOCS, SCALES, **o), 10 * WEIGHTS),
        td.MixtureSameFamily(td.Categorical(WEIGHTS), td.Independent(td.Normal(LOCS, SCALES), 1)),
    ),
}


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("name", BESIDE_TORCH)
def test_densities_are_those_of_torch_distributions(name, trainable):
    make, reference = BESIDE_TORCH[name]
    distribution = make(trainable=trainable)
    x = 4 * torch.randn(50, 7, *distribution.event_shape, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(distribution.log_prob(x), reference.log_prob(x), rtol=1e-10, atol=1e-10)
    assert bool(list(distribution.state_dict())) == trainable


def test_rows_of_a_multivariate_normal_are_independent():
    factors = torch.stack([LOWER, LOWER.diagonal().diag()])
    base = fk.MultivariateNormal((2, 3), LOC, scale_tril=factors)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    rows = [td.MultivariateNormal(LOC, scale_tril=factor).log_prob(x[:, i]) for i, factor in enumerate(factors)]
    torch.testing.assert_close(base.log_prob(x), rows[0] + rows[1])
    torch.testing.assert_close(base.scale_tril, factors)


def test_samples_of_a_multivariate_normal_have_its_covariance():
    base = fk.MultivariateNormal(3, LOC, scale_tril=LOWER)
    x = base.sample((200_000,), generator=seeded())
    u = torch.linalg.solve_triangular(LOWER, (x - LOC).mT, upper=False)
    assert (torch.cov(u) - torch.eye(3)).abs().max() < 0.02 and u.mean(1).abs().max() < 0.01


def test_samples_of_a_mixture_choose_components_by_weight():
    weights = torch.tensor([1.0, 2.0, 7.0])
    mixture = fk.Mixture(fk.Normal((3,), torch.tensor([-100.0, 0.0, 100.0])), weights)
    x = mixture.sample((100_000,), generator=seeded())
    found = torch.stack([(x < -50), (x > -50) & (x < 50), (x > 50)]).double().mean(1)
    assert (found - weights / 10).abs().max() < 0.006
    torch.testing.assert_close(mixture.weights, weights / 10)


def test_a_mixture_far_out_does_not_underflow():
    mixture = fk.Mixture(fk.Normal((2, 1), torch.tensor([[-1.0], [1.0]])))
    assert mixture.log_prob(torch.tensor([1e4])).item() == pytest.approx(-0.5 * 9999**2, rel=1e-6)


def test_logistic_samples_reach_both_tails_alike():
    """A 0 of the uniform generator is one draw in 2^24, not one at the end of the range of floats."""
    logistic = fk.Logistic(())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda shape, **options: torch.zeros(shape, dtype=options["dtype"]))
        assert logistic.sample().item() == pytest.approx(-math.log(2**25), rel=1e-6)
        assert fk.StudentT((), df=5.0).sample().isfinite()


def test_uniform_box_is_closed_and_holds_its_samples():
    box = fk.Uniform(2, low=torch.tensor([-1.0, 0.0]), high=torch.tensor([1e-8, 0.25]))
    inside = -math.log(1.0) - math.log(0.25)
    x = torch.tensor([[-1.0, 0.0], [1e-8, 0.25], [-1.1, 0.1], [-0.5, 0.26], [float("nan"), 0.1]])
    found = box.log_prob(x)
    torch.testing.assert_close(found[:2], torch.full((2,), inside), rtol=1e-6, atol=1e-6)
    assert found[2:4].tolist() == [-torch.inf] * 2 and found[4].isnan()
    assert box.log_prob(box.sample((100_000,), generator=seeded())).isfinite().all()


# Half precision, infinities, integers


def halves():
    spread = torch.linspace(-1.0, 1.0, 2)[:, None].expand(2, 1024)
    normal = fk.Normal(1024)
    net = torch.nn.Embedding(3, normal.params_shape.numel())
    torch.nn.init.zeros_(net.weight)
    return {
        "Normal": normal,
        "Normal-trained": fk.Normal(1024, trainable=True),
        "Logistic": fk.Logistic(1024),
        "StudentT": fk.StudentT(1024, df=3.0, trainable=True),
        "MultivariateNormal": fk.MultivariateNormal((512, 2), trainable=True),
        "Mixture": fk.Mixture(fk.Normal((2, 1024), spread, trainable=True), [1.0, 3.0]),
        "Uniform": fk.Uniform(1024, high=40000.0),
        "Given": fk.Given(normal, net, context_ndim=0),
        "Flow": fk.Flow(fk.ActNorm(1024), fk.Normal(1024)).eval(),
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", halves())
def test_log_densities_of_half_inputs_are_in_full_precision(name, dtype):
    """A sum over a large event leaves the range of float16, and its digits long before."""
    distribution = halves()[name]
    context = torch.tensor([1]) if distribution.context_ndim == 0 else None
    x = torch.full((1, *distribution.event_shape), 13.0)
    wanted = distribution.log_prob(x, context)
    found = distribution.to(dtype).log_prob(x.to(dtype), context)
    assert found.dtype == torch.float32
    # Half precision rounds the parameters alone, log_df of the t by 2^-9 in bfloat16.
    torch.testing.assert_close(found, wanted, rtol=4e-3, atol=0)
    assert distribution.sample((2,), context).dtype == dtype


def test_constant_bases_take_half_inputs_in_full_precision():
    for base in (fk.Normal(3072), fk.Logistic(3072), fk.StudentT(3072, df=3.0), fk.MultivariateNormal((1536, 2))):
        x = 10 * torch.ones(1, *base.event_shape)
        assert torch.equal(base.log_prob(x.half()), base.log_prob(x))


def infinite():
    return {
        "Normal": fk.Normal(2),
        "MultivariateNormal": fk.MultivariateNormal(2, scale_tril=torch.tensor([[1.0, 0.0], [-2.0, 1.0]])),
        "rows": fk.MultivariateNormal((2, 2), trainable=True),
        "Mixture": fk.Mixture(fk.MultivariateNormal((2, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))),
    }


@pytest.mark.parametrize("name", infinite())
def test_the_density_at_infinity_is_zero_and_of_nan_nan(name):
    base = infinite()[name]
    points = torch.tensor([[torch.inf, 0.0], [0.0, -torch.inf], [torch.inf, torch.inf], [torch.nan, torch.inf]])
    x = points if base.event_ndim == 1 else torch.stack([points, torch.zeros(4, 2)], 1)
    found = base.log_prob(x)
    assert found[:3].tolist() == [-torch.inf] * 3 and found[3].isnan()
    single = torch.stack([base.log_prob(one) for one in x])
    torch.testing.assert_close(found, single, equal_nan=True)


def test_far_rows_leave_the_gradients_of_others_finite():
    base = fk.MultivariateNormal(2, trainable=True)
    base.log_prob(torch.tensor([[torch.inf, 0.0], [1.0, 2.0]]))[1].backward()
    assert all(parameter.grad.isfinite().all() for parameter in base.parameters())


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
@pytest.mark.parametrize(
    ("make", "context"),
    [
        (lambda: fk.Normal(2), None),
        (lambda: fk.Normal(2, trainable=True), None),
        (lambda: fk.MultivariateNormal(2), None),
        (lambda: fk.Uniform(2), None),
        (lambda: fk.MixtureOfNormals(2, 3), None),
        (lambda: fk.Given(fk.Normal(2), torch.nn.Embedding(3, 4), 0), torch.tensor(1)),
    ],
)
def test_integers_are_refused_by_densities_of_real_numbers(make, context, dtype):
    distribution = make()
    message = f"{type(distribution).__name__}: x is {dtype}, wanted a floating dtype"
    with pytest.raises(fk.DomainError, match=message):
        distribution.log_prob(torch.zeros(3, 2, dtype=dtype), context)


# Trained


def test_trained_parameters_are_in_the_state_dict_under_stable_names():
    keys = {
        "loc log_scale": fk.Normal(2, trainable=True),
        "loc log_scale log_df": fk.StudentT(2, df=3.0, trainable=True),
        "loc log_diagonal lower": fk.MultivariateNormal(2, trainable=True),
        "logits family.loc family.log_scale": fk.MixtureOfNormals(2, components=3),
        "": fk.StudentT(2, df=3.0),
    }
    for wanted, distribution in keys.items():
        assert list(distribution.state_dict()) == wanted.split()
    student = keys["loc log_scale log_df"]
    torch.testing.assert_close(student.df, torch.full((2,), 3.0))
    other = fk.StudentT(2, df=1.0, trainable=True)
    other.load_state_dict(perturb(student).state_dict())
    assert torch.equal(other.df, student.df) and torch.equal(other.scale, student.scale)


def fitted(distribution, x, steps=300, rate=0.05):
    optimizer = torch.optim.Adam(distribution.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        fk.losses.forward_kl(distribution, x).backward()
        optimizer.step()
    return distribution


def test_maximum_likelihood_finds_the_moments_of_a_full_normal():
    x = fk.MultivariateNormal(3, LOC, scale_tril=LOWER).sample((2000,), generator=seeded())
    base = fitted(fk.MultivariateNormal(3, trainable=True).double(), x, steps=800)
    torch.testing.assert_close(base.loc.detach(), x.mean(0), rtol=1e-3, atol=1e-2)
    covariance = base.scale_tril @ base.scale_tril.mT
    torch.testing.assert_close(covariance.detach(), torch.cov(x.mT, correction=0), rtol=2e-2, atol=2e-2)


def test_maximum_likelihood_finds_df_as_scipy_does():
    x = fk.StudentT((), df=3.0, loc=1.0, scale=2.0).sample((4000,), generator=seeded()).double()
    base = fitted(fk.StudentT((), df=10.0, trainable=True).double(), x)
    df, loc, scale = stats.t.fit(x.numpy())
    assert [base.df.item(), base.loc.item(), base.scale.item()] == pytest.approx([df, loc, scale], rel=2e-2)


def test_a_mixture_learns_two_clusters():
    x = fk.Mixture(fk.Normal((2, 1), torch.tensor([[-4.0], [4.0]]), 0.5), [1.0, 3.0]).sample(
        (2000,), generator=seeded()
    )
    mixture = fitted(fk.MixtureOfNormals(1, components=2, spread=3.0), x)
    locs, order = mixture.family.loc.detach().flatten().sort()
    assert locs.tolist() == pytest.approx([-4, 4], abs=0.1)
    assert mixture.weights[order].tolist() == pytest.approx([0.25, 0.75], abs=0.03)


# Given a context


def every_family():
    return {
        "Normal": fk.Normal((2,), 1.0, 0.5),
        "Normal-image": fk.Normal((2, 3, 1)),
        "Logistic": fk.Logistic((2,), trainable=True),
        "StudentT": fk.StudentT((), df=4.0),
        "MultivariateNormal": fk.MultivariateNormal((2, 3)),
        "Mixture": fk.MixtureOfNormals((2,), 3, trainable=False),
        "Mixture-full": fk.Mixture(fk.MultivariateNormal((3, 2), torch.randn(3, 2))),
    }


@pytest.mark.parametrize("name", every_family())
def test_a_net_that_gives_zeros_gives_the_family_itself(name):
    family = every_family()[name]
    base = fk.Given(family, fk.nets.MLP((4,), family.params_shape), context_ndim=1)
    x = torch.randn(5, *family.event_shape)
    torch.testing.assert_close(base.log_prob(x, torch.randn(5, 4)), family.log_prob(x))


@pytest.mark.parametrize("name", every_family())
@pytest.mark.parametrize("context_batch", [(), (5,), (2, 1)])
def test_labels_by_an_embedding_broadcast_and_lead_the_samples(name, context_batch):
    family = every_family()[name]
    base = fk.Given(family, torch.nn.Embedding(10, family.params_shape.numel()), context_ndim=0)
    labels = torch.randint(10, context_batch)
    x = base.sample((3,), labels, generator=seeded())
    assert x.shape == (3, *context_batch, *family.event_shape)
    one = x[(0,) * (1 + len(context_batch))]
    assert base.log_prob(one, labels).shape == context_batch
    torch.testing.assert_close(base.log_prob(one, labels), base.log_prob(one.expand_as(x[0]), labels))
    x, log_prob = base.sample_and_log_prob(2, labels, generator=seeded())
    torch.testing.assert_close(log_prob, base.log_prob(x, labels))
    assert x.requires_grad == base.has_rsample and log_prob.requires_grad


def test_each_label_has_its_own_density():
    base = fk.Given(fk.Normal(1), torch.nn.Embedding(3, 2), context_ndim=0)
    with torch.no_grad():
        base.net.weight.copy_(torch.tensor([[0.0, 0.0], [10.0, math.log(2.0)], [-10.0, 1.0]]))
    x = base.sample((50_000,), torch.tensor([0, 1, 2]), generator=seeded()).squeeze(-1)
    torch.testing.assert_close(x.mean(0), torch.tensor([0.0, 10.0, -10.0]), rtol=0, atol=0.06)
    torch.testing.assert_close(x.std(0), torch.tensor([1.0, 2.0, math.e]), rtol=0.02, atol=0)


@pytest.mark.parametrize("context_net", [False, True])
def test_flow_on_a_conditional_base(context_net):
    """Each net runs once, and samples are sample shape + context batch + event."""
    calls = []
    normal = fk.Normal(2)
    net = fk.nets.MLP(4, normal.params_shape)
    net.register_forward_hook(lambda *_: calls.append("base"))
    embed = torch.nn.Embedding(10, 4) if context_net else None
    base = fk.Given(normal, net, context_ndim=1)
    flow = fk.Flow(fk.ActNorm(2), base, context_net=embed, context_ndim=0 if context_net else 1)
    context = torch.arange(3) if context_net else torch.randn(3, 4)
    x, log_prob = flow.sample_and_log_prob((5,), context, generator=seeded())
    assert x.shape == (5, 3, 2) and log_prob.shape == (5, 3) and calls == ["base"]
    torch.testing.assert_close(flow.log_prob(x, context), log_prob)


FLOWS = {
    "Normal": lambda: fk.Normal(2, trainable=True),
    "Logistic": lambda: fk.Logistic(2),
    "StudentT": lambda: fk.StudentT(2, df=5.0, trainable=True),
    "MultivariateNormal": lambda: fk.MultivariateNormal(2, trainable=True),
    "MixtureOfNormals": lambda: fk.MixtureOfNormals(2, components=3),
    "Mixture": lambda: fk.Mixture(fk.MultivariateNormal((3, 2), torch.randn(3, 2), trainable=True)),
    "Uniform": lambda: fk.Uniform(2, -1.0, torch.tensor([1.0, 2.0])),
    "Given": lambda: fk.Given(fk.Normal(2), fk.nets.MLP(3, (2, 2)), context_ndim=1),
    "Flow": lambda: fk.Flow(fk.ActNorm(2), fk.StudentT(2, df=5.0)),
}


@pytest.mark.parametrize("name", FLOWS)
def test_flow_works_on_each(name):
    base = FLOWS[name]()
    context = None if base.context_ndim is None else torch.randn(4, 3)
    flow = perturb(fk.Flow(fk.LULinear(2), base, context_ndim=base.context_ndim)).double()
    context = None if context is None else context.double()
    batch = () if context is None else (4,)
    x = flow.sample((7,), context, generator=seeded())
    assert x.shape == (7, *batch, 2)
    y, log_prob = flow.sample_and_log_prob((7,), context, generator=seeded())
    assert torch.equal(x, y)
    torch.testing.assert_close(flow.log_prob(x, context), log_prob)
    before = torch.get_rng_state()
    if flow.has_rsample:
        assert torch.equal(flow.rsample((7,), context, generator=seeded()), x)
    else:
        assert name.startswith("Mixture")
        with pytest.raises(fk.NotExact, match="carry no gradient"):
            flow.rsample((7,), context)
    assert torch.equal(torch.get_rng_state(), before)
    flow.log_prob(x, context).mean().backward()
    assert all(parameter.grad is not None for parameter in base.parameters())


def test_a_flow_that_draws_without_gradient_on_the_way_says_so():
    mixture = fk.MixtureOfNormals(1, components=2)
    assert not fk.Flow(fk.Slice(1, mixture, dim=-1), fk.Normal(1)).has_rsample
    assert fk.Flow(fk.Slice(1, fk.Normal(1), dim=-1), fk.Normal(1)).has_rsample
    assert not fk.Flow(fk.UniformDequantizer(4), fk.Uniform(1)).has_rsample


# Doors


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fk.Normal(2, scale=[1.0, 0.0]), fk.DomainError, "Normal: scale is .* wanted positive and finite"),
        (lambda: fk.Normal(2, loc=float("nan")), fk.DomainError, "Normal: loc is nan, wanted finite"),
        (
            lambda: fk.Normal(2, loc=torch.zeros(3)),
            fk.ShapeError,
            r"loc has shape \(3,\), wanted .* broadcasts to \(2,\)",
        ),
        (lambda: fk.Normal(2.5), fk.ShapeError, "Normal: event_shape is 2.5, wanted whole numbers"),
        (lambda: fk.Normal((2, -1)), fk.ShapeError, r"Normal: event_shape is \(2, -1\)"),
        (lambda: fk.StudentT(2, df=0.0), fk.DomainError, "StudentT: df is 0.0, wanted positive"),
        (lambda: fk.Uniform(2, 1.0, 1.0), fk.DomainError, "wanted low < high"),
        (lambda: fk.Uniform(2, 0.0, math.inf), fk.DomainError, "high is inf, wanted finite"),
        (lambda: fk.MultivariateNormal(()), fk.ShapeError, "wanted at least one dim"),
        (lambda: fk.MultivariateNormal(2, scale_tril=torch.ones(2, 2)), fk.DomainError, "wanted lower triangular"),
        (lambda: fk.MultivariateNormal(2, scale_tril=-torch.eye(2)), fk.DomainError, "diagonal is"),
        (lambda: fk.MultivariateNormal(2, covariance=-torch.eye(2)), fk.DomainError, "not symmetric and positive"),
        (lambda: fk.MultivariateNormal(2, covariance=LOWER[:2, :2]), fk.DomainError, "not symmetric and positive"),
        (lambda: fk.MultivariateNormal(2, 0, torch.eye(2), torch.eye(2)), ValueError, "not both"),
        (lambda: fk.Mixture(fk.Normal((3, 2))), ValueError, r"alike, .* such as loc=torch.randn\(3, 2\)"),
        (lambda: fk.Mixture(fk.Normal(())), fk.ShapeError, r"wanted \(components, \*event\)"),
        (lambda: fk.Mixture(fk.MultivariateNormal(3)), fk.ShapeError, r"wanted \(components, \*event\)"),
        (lambda: fk.Mixture(fk.Uniform(3)), TypeError, "family is a Uniform"),
        (lambda: fk.Mixture(fk.Normal(2, LOC[:2]), [1.0, -1.0]), fk.DomainError, "weights are .* wanted positive"),
        (
            lambda: fk.Mixture(fk.Normal(2, LOC[:2]), [1, 2, 3]),
            fk.ShapeError,
            r"Mixture: weights has shape \(3,\), wanted .* \(2,\)",
        ),
        (lambda: fk.StudentT(2, df=math.inf), fk.DomainError, "StudentT: df is inf, wanted finite"),
        (lambda: fk.Normal(3, trainble=True), TypeError, "'trainble'"),
        (lambda: fk.Normal(2, scales=3.0), TypeError, "'scales'"),
        (lambda: fk.Logistic(2, df=3.0), TypeError, "'df'"),
        (lambda: fk.MultivariateNormal(2, covariance=2.0), fk.ShapeError, r"covariance has shape \(\), wanted 2 x 2"),
        (
            lambda: fk.MultivariateNormal((3, 2), covariance=torch.ones(2)),
            fk.ShapeError,
            r"covariance has shape \(2,\), wanted 2 x 2 matrices that broadcast to \(3, 2, 2\)",
        ),
        (lambda: fk.MultivariateNormal(2, scale_tril=2.0), fk.ShapeError, r"scale_tril has shape \(\), wanted 2 x 2"),
        (lambda: fk.MixtureOfNormals(2, components=0), ValueError, "components is 0"),
        (lambda: fk.MixtureOfNormals(2, 2, spread=0.0), ValueError, "spread is 0.0"),
        (lambda: fk.Given(fk.Uniform(2), torch.nn.Identity(), 1), TypeError, "family is a Uniform"),
        (lambda: fk.Given(fk.Normal(2), torch.nn.Identity(), -1), ValueError, "context_ndim is -1"),
        (lambda: fk.Given(fk.Normal(2), torch.nn.Identity(), None), ValueError, "context_ndim is None, wanted a whole"),
        (lambda: fk.Given(fk.Normal(2), 3, 1), TypeError, "net is a int, wanted a torch.nn.Module"),
    ],
)
def test_impossible_parameters_say_why(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_contexts_that_do_not_fit_are_refused():
    base = fk.Given(fk.Normal(2), torch.nn.Linear(3, 5), context_ndim=1)
    with pytest.raises(fk.ShapeError, match=r"net gave \(4, 5\) for a context of shape \(4, 3\), wanted \(4, 2, 2\)"):
        base.log_prob(torch.zeros(2), torch.zeros(4, 3))
    base = fk.Given(fk.Normal(2), torch.nn.Linear(3, 4), context_ndim=1)
    with pytest.raises(fk.ShapeError, match=r"batch \(4,\), which does not broadcast to the batch \(5,\)"):
        base.log_prob(torch.zeros(5, 2), torch.zeros(4, 3))
    with pytest.raises(fk.ShapeError, match="context is missing"):
        base.sample((2,))
    with pytest.raises(fk.ShapeError, match="takes none"):
        fk.Normal(2).sample((2,), torch.zeros(3))


@pytest.mark.parametrize(
    ("labels", "came"),
    [
        (torch.tensor([0, 12]), r"shape \(2,\) and dtype torch.int64, values from 0 to 12"),
        (torch.tensor([-1]), "values from -1 to -1"),
        (torch.zeros(3), "dtype torch.float32"),
        (torch.zeros(3, dtype=torch.uint8), "dtype torch.uint8"),
        (torch.zeros(3, dtype=torch.bool), "dtype torch.bool"),
    ],
)
def test_labels_that_an_embedding_has_not_are_refused(labels, came):
    base = fk.Given(fk.Normal(2), torch.nn.Embedding(10, 4), context_ndim=0)
    message = rf"Given: context has .*{came}.*, wanted labels from 0 to 9 in torch.int64"
    for call in (lambda: base.log_prob(torch.zeros(2), labels), lambda: base.sample((2,), labels)):
        with pytest.raises(fk.DomainError, match=message):
            call()


@pytest.mark.parametrize(
    ("net", "context", "error", "message"),
    [
        (
            lambda: fk.nets.MLP(3, (2, 2)),
            torch.zeros(4, 5),
            fk.ShapeError,
            r"context has shape \(4, 5\) .*; MLP: input has shape",
        ),
        (
            lambda: fk.nets.MLP(3, (2, 2)),
            torch.zeros(4, 3, dtype=torch.int64),
            fk.DomainError,
            "dtype torch.int64, wanted one that the net, MLP, takes in torch.float32",
        ),
        (
            lambda: torch.nn.Linear(3, 4),
            torch.zeros(4, 5),
            fk.ShapeError,
            r"\(4, 5\) .*, wanted .* the net, Linear, takes",
        ),
    ],
)
def test_contexts_that_the_net_refuses_are_named(net, context, error, message):
    with pytest.raises(error, match=f"Given: .*{message}"):
        fk.Given(fk.Normal(2), net(), context_ndim=1).log_prob(torch.zeros(2), context)


@pytest.mark.parametrize(
    "make",
    [
        lambda: fk.Flow(fk.AffineCoupling(fk.nets.MLP(1, (1, 2)), dim=-1), fk.Normal(2)),
        lambda: fk.Flow(fk.ActNorm(2), fk.Normal(2)),
        lambda: fk.Normal(2, trainable=True),
        lambda: fk.MixtureOfNormals(2, components=3),
    ],
)
def test_arrays_lists_and_other_dtypes_are_refused_at_the_door(make):
    distribution = make()
    with pytest.raises(TypeError, match=r": x is a numpy.ndarray, wanted a torch.Tensor"):
        distribution.log_prob(np.zeros((3, 2), np.float32))
    with pytest.raises(TypeError, match=r": x is a list, wanted a torch.Tensor"):
        distribution.log_prob([[0.0, 0.0]])
    with pytest.raises(fk.DomainError, match=r"x is torch.float64, but the parameters are torch.float32: wanted x.to"):
        distribution.log_prob(torch.zeros(3, 2, dtype=torch.float64))
    distribution.double().log_prob(torch.zeros(3, 2, dtype=torch.float64))
    assert issubclass(fk.DomainError, ValueError)


def test_contexts_of_another_dtype_and_arrays_are_refused():
    net = fk.nets.MLP(1, (1, 2), context=3)
    flow = fk.Flow(fk.AffineCoupling(net, dim=-1), fk.Normal(2), context_ndim=1)
    with pytest.raises(fk.DomainError, match="Flow: context is torch.float64, but the parameters are torch.float32"):
        flow.sample((2,), torch.zeros(3, dtype=torch.float64))
    with pytest.raises(TypeError, match="Flow: context is a numpy.ndarray"):
        flow.log_prob(torch.zeros(2), np.zeros(3))
    with pytest.raises(TypeError, match="ActNorm: x is a list"):
        fk.ActNorm(2)([0.0, 1.0])


def test_an_int_is_a_shape_of_one_dim_everywhere():
    x = torch.randn(4, 3)
    parts = [fk.ActNorm(3), fk.BatchNorm(3), fk.Elementwise(fk.maps.Affine(), 3)]
    assert all(part.eval()(x)[0].shape == x.shape for part in parts)
    assert fk.nets.MLP(3, 5)(x).shape == (4, 5)
    assert fk.Flow(fk.ActNorm(np.int64(3)), fk.Normal(np.int64(3)), context_shape=2).event_shape == (3,)
    assert fk.Normal(3).sample(np.int64(2)).shape == (2, 3)
    for make, name in [
        (lambda: fk.ActNorm(1.5), "ActNorm: shape is 1.5"),
        (lambda: fk.Elementwise(fk.maps.Affine(), "3"), "Elementwise: shape is '3'"),
        (lambda: fk.Conv1x1(3), r"Conv1x1: shape is \(3,\), wanted \(\*views, C, H, W\)"),
        (lambda: fk.nets.MLP((3.0,), 2), r"MLP: shape is \(3.0,\)"),
        (lambda: fk.nets.GatedConvAttention(3, out=2), r"GatedConvAttention: shape is 3, wanted \(C, H, W\)"),
        (lambda: fk.Normal(3).sample((2.0,)), r"sample_shape is \(2.0,\), wanted whole numbers"),
    ]:
        with pytest.raises(ValueError, match=name):
            make()
