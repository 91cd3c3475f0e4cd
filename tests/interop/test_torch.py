"""flowkit and `torch.distributions`, in both directions."""

import copy
import math
import pickle

import pytest
import torch
from torch import distributions as D
from torch import nn
from torch.distributions import constraints, transforms

import flowkit as fk
from flowkit.interop import (
    as_torch_distribution,
    as_torch_transform,
    from_torch_distribution,
    from_torch_transform,
)
from flowkit.testing import check_distribution, check_transform
from tests.support import perturb


class Counted(nn.Module):
    """A net that counts its runs."""

    def __init__(self, net):
        super().__init__()
        self.net, self.runs, self.largest = net, 0, 0

    def forward(self, *args):
        self.runs += 1
        self.largest = max(self.largest, args[0].numel())
        return self.net(*args)


def coupling(context=0):
    net = Counted(fk.nets.MLP((1,), (1, 2), hidden=(8,), context=context))
    return fk.AffineCoupling(net, dim=-1, log_scale_bound=1.0)


def chain(context=0):
    return perturb(fk.Chain(coupling(context), fk.Flip(dim=-1), coupling(context), fk.ActNorm((2,))), 0.3).double()


def runs(module):
    return [part.runs for part in module.modules() if isinstance(part, Counted)]


def flow(context=None):
    return fk.Flow(chain(context or 0), fk.Normal((2,)).double(), context_shape=None if context is None else (context,))


def normal(*shape):
    return D.Normal(torch.zeros(shape).double(), torch.ones(()).double())


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# As a torch distribution


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_a_distribution_has_the_batch_of_its_context(batch):
    model, context = flow(3), draw(*batch, 3)
    d = as_torch_distribution(model, context)
    assert (d.batch_shape, d.event_shape, d.has_rsample) == (batch, (2,), True)
    assert d.sample((5,)).shape == d.rsample((5,)).shape == (5, *batch, 2)
    assert not d.sample().requires_grad and d.rsample().requires_grad
    x = draw(5, *batch, 2)
    torch.testing.assert_close(d.log_prob(x), model.log_prob(x, context.expand(5, *batch, 3)))


def test_a_seed_gives_the_samples_of_the_flow():
    model = flow()
    torch.manual_seed(1)
    wanted = model.sample((3,))
    torch.manual_seed(1)
    assert torch.equal(as_torch_distribution(model).sample((3,)), wanted)


def test_expanded_batches_are_drawn_apart_and_encoded_once():
    net = Counted(fk.nets.MLP((3,), (4,), hidden=(8,)))
    model = fk.Flow(chain(4), fk.Normal((2,)).double(), context_net=net.double(), context_shape=(3,))
    d = as_torch_distribution(model, draw(1, 3))
    net.largest = 0
    for batch in [(1,), (5, 1), (6, 5, 1)]:
        d.expand(batch).log_prob(d.expand(batch).sample((2,)))
    assert net.largest == 3  # the context itself
    for batch in [(1,), (4,), (5, 1), (5, 4)]:
        big = d.expand(batch)
        assert type(big) is type(d) and big.batch_shape == batch and d.batch_shape == (1,)
        x = big.sample((2,))
        assert x.shape == (2, *batch, 2)
        assert x.reshape(-1, 2).unique(dim=0).shape[0] == 2 * math.prod(batch)
        assert big.log_prob(x).shape == (2, *batch)
        assert big.log_prob(x[0, ..., :1, :]).shape == batch
        torch.testing.assert_close(big.log_prob(x), d.log_prob(x))


def test_expansion_of_an_unconditional_distribution():
    model = flow()
    d = as_torch_distribution(model).expand((3, 1)).expand((2, 3, 4))
    x = d.rsample((5,))
    assert x.shape == (5, 2, 3, 4, 2)
    assert d.log_prob(draw(2)).shape == (2, 3, 4)
    torch.testing.assert_close(d.log_prob(x), model.log_prob(x))


def test_batches_that_do_not_expand_are_refused():
    d = as_torch_distribution(flow()).expand((3, 1))
    for shape in ((2, 1), (4,), ()):
        with pytest.raises(fk.ShapeError, match=r"expand: batch_shape is .*, wanted one that \(3, 1\) expands to"):
            d.expand(shape)


def test_a_sample_and_its_density_run_each_net_once():
    model = flow(3)
    d = as_torch_distribution(model, draw(4, 3), cache_size=1)
    before = runs(model)
    x = d.rsample((5,))
    log_prob = d.log_prob(x)
    assert [now - then for now, then in zip(runs(model), before, strict=True)] == [1, 1]
    torch.testing.assert_close(log_prob, model.log_prob(x, draw(4, 3)))
    # Gradients by parameters, at fixed noise, are those of the density of a sample that depends on them.
    kept = torch.autograd.grad(log_prob.sum(), list(model.parameters()), retain_graph=True, allow_unused=True)
    anew = torch.autograd.grad(model.log_prob(x, draw(4, 3)).sum(), list(model.parameters()), allow_unused=True)
    for one, other in zip(kept, anew, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("change", ["parameter", "sample", "other"])
def test_a_density_that_was_kept_is_not_given_after_a_change(change):
    model = flow()
    d = as_torch_distribution(model, cache_size=1)
    x = d.rsample((3,))
    with torch.no_grad():
        if change == "parameter":
            perturb(model, 0.5, seed=5)
        elif change == "sample":
            x += 1.0
        else:
            x = x.clone()
        torch.testing.assert_close(d.log_prob(x), model.log_prob(x), rtol=0, atol=0)


def test_no_cache_by_default_so_that_the_score_has_a_graph():
    d = as_torch_distribution(flow())
    x = d.rsample((3,))
    (score,) = torch.autograd.grad(d.log_prob(x).sum(), x)
    assert score.abs().min() > 0


def test_bounds_do_not_become_densities():
    dequantized = fk.Flow(fk.Chain(fk.UniformDequantizer(4), fk.Logit(margin=0.05)), fk.Normal((2,)))
    with pytest.raises(fk.NotExact, match="only a bound on its density .*log_prob_bound"):
        as_torch_distribution(dequantized)


def test_a_flow_that_draws_only_while_it_samples_is_exact():
    sliced = fk.Flow(fk.Chain(fk.ActNorm((3,)), fk.Slice(1, fk.Normal((2,)), dim=-1)), fk.Normal((1,)))
    d = as_torch_distribution(sliced)
    assert d.log_prob(d.sample((4,))).shape == (4,)


def test_contexts_that_do_not_fit():
    with pytest.raises(fk.ShapeError, match="context is missing; this .* is conditional"):
        as_torch_distribution(flow(3))
    with pytest.raises(fk.ShapeError, match=r"context has shape \(2,\), but this .* takes none"):
        as_torch_distribution(flow(), torch.zeros(2).double())
    with pytest.raises(fk.ShapeError, match=r"context has shape \(\), wanted at least 1 dims"):
        as_torch_distribution(flow(3), torch.zeros(()).double())
    with pytest.raises(TypeError, match="distribution is a Normal, wanted a flowkit Distribution"):
        as_torch_distribution(D.Normal(0.0, 1.0))


def test_arguments_are_validated_as_torch_does():
    on_cube = fk.Flow(fk.Chain(fk.Logit(), fk.ActNorm((2,))), fk.Normal((2,)))
    d = as_torch_distribution(on_cube, validate_args=True)
    assert d.support.event_dim == 1 and d.support.base_constraint is constraints.unit_interval
    with pytest.raises(ValueError, match="support"):
        d.log_prob(torch.tensor([0.5, 1.5]))
    with pytest.raises(ValueError, match="shape"):
        d.log_prob(torch.tensor([0.5, 0.5, 0.5]))
    with pytest.raises(ValueError, match="support"):
        d.expand((3,)).log_prob(torch.tensor([0.5, 1.5]))
    unchecked = as_torch_distribution(on_cube, validate_args=False)
    assert not unchecked.log_prob(torch.tensor([0.5, 1.5])).isfinite()
    with pytest.raises(ValueError, match="support"):
        as_torch_distribution(fk.Uniform((1,), 0.0, 2.0), validate_args=True).log_prob(torch.tensor([3.0]))


def test_independent():
    model, context = flow(3), draw(4, 3)
    d = D.Independent(as_torch_distribution(model, context), 1)
    x = draw(5, 4, 2)
    assert (d.batch_shape, d.event_shape) == ((), (4, 2))
    torch.testing.assert_close(d.log_prob(x), model.log_prob(x, context).sum(-1))
    assert d.expand((7,)).rsample().shape == (7, 4, 2)


def test_mixtures():
    model, context, weights = flow(3), draw(4, 3), draw(4).softmax(0)
    d = D.MixtureSameFamily(D.Categorical(weights), as_torch_distribution(model, context))
    x = draw(5, 2)
    terms = torch.stack([model.log_prob(x, context[k]) + weights[k].log() for k in range(4)])
    torch.testing.assert_close(d.log_prob(x), terms.logsumexp(0))
    assert d.sample((6,)).shape == (6, 2)


def test_kl_in_closed_form_where_torch_has_one():
    t = as_torch_transform(chain(3), draw(2, 3))
    same = as_torch_transform(t.bijector, draw(2, 3))
    p, q = (D.Independent(D.Normal(loc, torch.ones(2).double()), 1) for loc in (torch.zeros(2).double(), draw(2)))
    wanted = D.kl_divergence(p, q).expand(2)
    got = D.kl_divergence(D.TransformedDistribution(p, [t]), D.TransformedDistribution(q, [same]))
    torch.testing.assert_close(got, wanted)
    other = as_torch_transform(t.bijector, draw(2, 3, seed=1))
    with pytest.raises(NotImplementedError):
        D.kl_divergence(D.TransformedDistribution(p, [t]), D.TransformedDistribution(q, [other]))
    with pytest.raises(NotImplementedError):
        D.kl_divergence(as_torch_distribution(flow()), as_torch_distribution(flow()))


# As a torch transform


def test_a_transformed_distribution_is_the_flow():
    bijector = chain()
    wanted = fk.Flow(bijector, fk.Normal((2,)).double())
    d = D.TransformedDistribution(normal(2), [as_torch_transform(bijector)])
    assert (d.batch_shape, d.event_shape) == ((), (2,))
    before = runs(bijector)
    x = draw(7, 2)
    log_prob = d.log_prob(x)
    assert [now - then for now, then in zip(runs(bijector), before, strict=True)] == [1, 1]
    torch.testing.assert_close(log_prob, wanted.log_prob(x))
    torch.manual_seed(3)
    sample = d.sample((4,))
    torch.manual_seed(3)
    torch.testing.assert_close(sample, wanted.from_latent(torch.randn(4, 2, dtype=torch.float64)))


def test_contexts_expand_the_base():
    bijector, context = chain(3), draw(5, 3)
    d = D.TransformedDistribution(normal(2), [as_torch_transform(bijector, context)])
    assert (d.batch_shape, d.event_shape) == ((5,), (2,))
    x = d.rsample((4,))
    torch.testing.assert_close(
        d.log_prob(x), fk.Flow(bijector, fk.Normal((2,)), context_shape=(3,)).log_prob(x, context)
    )
    with pytest.raises(fk.ShapeError, match=r"context has batch \(5,\), which does not broadcast to the batch \(4,\)"):
        d.transforms[0](torch.zeros(4, 2).double())


def test_shapes_that_change():
    bijector = fk.Chain(fk.Squeeze(), fk.ActNorm((4, 1, 1)), fk.Logit().inv).inv
    t = as_torch_transform(bijector)
    assert (t.domain.event_dim, t.codomain.event_dim) == (3, 3)
    assert t.forward_shape((7, 1, 4, 6)) == (7, 4, 2, 3) and t.inverse_shape((4, 2, 3)) == (1, 4, 6)
    d = D.TransformedDistribution(D.Normal(torch.zeros(1, 4, 6), 1.0), [t])
    assert d.event_shape == (4, 2, 3)
    assert d.log_prob(d.sample((2,))).shape == (2,)
    wanted = fk.Flow(bijector, fk.Normal((1, 4, 6)))
    x = wanted.sample((2,))
    torch.testing.assert_close(d.log_prob(x), wanted.log_prob(x))


def test_log_term_of_a_pair_costs_no_second_run():
    bijector = chain()
    t = as_torch_transform(bijector)
    z = draw(3, 2).requires_grad_()
    y = t(z)
    wanted = bijector.inverse(z)[1]
    count = runs(bijector)
    torch.testing.assert_close(t.log_abs_det_jacobian(z, y), wanted)
    torch.testing.assert_close(t.inv.log_abs_det_jacobian(y, z), -wanted)
    assert runs(bijector) == count
    torch.testing.assert_close(t.log_abs_det_jacobian(z.clone(), y), wanted)
    assert runs(bijector) == [n + 1 for n in count]
    x = t.inv(y)
    torch.testing.assert_close(t.log_abs_det_jacobian(x, y), wanted)
    assert runs(bijector) == [n + 2 for n in count]


def test_a_log_term_is_not_given_after_a_change():
    bijector = chain()
    t = as_torch_transform(bijector)
    z = draw(3, 2)
    with torch.no_grad():
        y = t(z)
    assert t.log_abs_det_jacobian(z, y).requires_grad  # the pair has none
    perturb(bijector, 0.5, seed=7)
    torch.testing.assert_close(t.log_abs_det_jacobian(z, y), -bijector(y)[1])
    y = t(z)
    y.data.add_(0.0)
    with torch.no_grad():
        y += 1.0
    torch.testing.assert_close(t.log_abs_det_jacobian(z, y), -bijector(y)[1])


def test_training_one_transformed_distribution_on_one_batch():
    """The same tensor every step: nothing of the last step's graph is kept."""
    bijector = chain()
    for cache_size in (0, 1):
        d = D.TransformedDistribution(normal(2), [as_torch_transform(bijector, cache_size=cache_size)])
        optimizer = torch.optim.Adam(bijector.parameters(), lr=0.05)
        losses = []
        x = draw(64, 2) * 3 + 1
        for _ in range(8):
            loss = -d.log_prob(x.clone() if cache_size else x).mean()  # torch's own cache needs a new tensor
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.1


def test_cache_as_in_torch():
    t = as_torch_transform(chain())
    z = draw(3, 2)
    assert t.inv(t(z)) is not z
    t = t.with_cache(1)
    assert t.inv(t(z)) is z and t.inv.inv is t
    assert t.with_cache(1) is t
    assert pickle.loads(pickle.dumps(t))._last is None
    copy.deepcopy(t)


def test_direction():
    bijector = chain()
    t = as_torch_transform(bijector, direction="data_to_base")
    x = draw(3, 2)
    z, term = bijector(x)
    torch.testing.assert_close(t(x), z)
    torch.testing.assert_close(t.log_abs_det_jacobian(x.clone(), z), term)
    assert t != as_torch_transform(bijector) and t == as_torch_transform(bijector, direction="data_to_base")
    assert hash(t) == hash(as_torch_transform(bijector, direction="data_to_base"))
    with pytest.raises(ValueError, match="direction is 'forward', wanted one of base_to_data, data_to_base"):
        as_torch_transform(bijector, direction="forward")


def test_distribution_functions_of_elementwise_bijectors():
    d = D.TransformedDistribution(normal(), [as_torch_transform(fk.Exp().inv)])
    wanted = D.LogNormal(torch.zeros(()).double(), torch.ones(()).double())
    x = torch.tensor([0.2, 1.0, 5.0]).double()
    torch.testing.assert_close(d.cdf(x), wanted.cdf(x))
    torch.testing.assert_close(d.icdf(d.cdf(x)), x)
    torch.testing.assert_close(d.log_prob(x), wanted.log_prob(x))
    assert str(d.support) == str(constraints.positive)
    falling = as_torch_transform(from_torch_transform(transforms.AffineTransform(0.0, -2.0)), direction="data_to_base")
    # Not unwrapped, since the direction was turned twice.
    assert as_torch_transform(fk.Logit()).sign == 1 and falling.sign == -1
    by_context = as_torch_transform(fk.maps.Affine(), torch.zeros(3, 2))
    assert by_context.sign.tolist() == [1, 1, 1]
    with pytest.raises(NotImplementedError):
        _ = as_torch_transform(chain()).sign


def test_what_draws_noise_is_no_bijection():
    with pytest.raises(fk.NotExact, match="UniformDequantizer draws noise"):
        as_torch_transform(fk.UniformDequantizer(4))
    with pytest.raises(TypeError, match="wanted a flowkit Transform"):
        as_torch_transform(transforms.ExpTransform())


def test_within_compositions_of_torch():
    bijector = chain()
    t = transforms.ComposeTransform([as_torch_transform(bijector), transforms.SigmoidTransform()])
    d = D.TransformedDistribution(normal(2), [t])
    wanted = fk.Flow(fk.Chain(fk.Logit(), bijector), fk.Normal((2,)).double())
    x = draw(5, 2).sigmoid()
    torch.testing.assert_close(d.log_prob(x), wanted.log_prob(x))


# From torch


def cases_of_transforms():
    shift, scale = nn.Parameter(torch.randn(3)), nn.Parameter(torch.rand(3) + 0.5)
    return [
        (transforms.ExpTransform(), (2,)),
        (transforms.SigmoidTransform(), (2,)),
        (transforms.TanhTransform(), (2,)),
        (transforms.SoftplusTransform(), (2,)),
        (transforms.PowerTransform(torch.tensor(2.0)), (2,)),
        (transforms.AffineTransform(1.0, -2.0), (2,)),
        (transforms.AffineTransform(shift, scale, event_dim=1), (3,)),
        (transforms.AffineTransform(shift, scale, event_dim=1).inv, (3,)),
        (transforms.IndependentTransform(transforms.ExpTransform(), 2), (2, 2)),
        (transforms.ReshapeTransform((4,), (2, 2)), (2, 2)),
        (transforms.ComposeTransform([transforms.AffineTransform(shift, scale), transforms.ExpTransform()]), (3,)),
        (transforms.ExpTransform().inv, (2,)),
    ]


CASES = cases_of_transforms()


@pytest.mark.parametrize("index", range(len(CASES)))
def test_transforms_of_torch_keep_the_laws(index):
    t, event = CASES[index]
    skip = [] if index in (6, 10) else ["compiles"]
    check_transform(from_torch_transform(t), event_shape=event, perturb=0.05, skip=skip)


def test_parts_inside_of_parts():
    scale = nn.Parameter(torch.tensor(2.0))
    t = transforms.CatTransform([transforms.AffineTransform(0.0, scale), transforms.SigmoidTransform()], dim=-1)
    bijector = from_torch_transform(t)
    assert [p is scale for p in bijector.parameters()] == [True]
    with torch.no_grad():
        scale += 1.0
    x, term = bijector.inverse(torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(x, torch.tensor([6.0, 0.5]))
    torch.testing.assert_close(term, torch.tensor([3.0, 0.25]).log())


def test_stick_breaking_against_the_dirichlet():
    """Logistic-normal on the simplex: torch's own transformed distribution."""
    bijector = from_torch_transform(transforms.StickBreakingTransform())
    assert (bijector.in_ndim, bijector.out_ndim) == (1, 1) and bijector.domain is constraints.simplex
    model = fk.Flow(bijector, fk.Normal((2,)).double())
    x = D.Dirichlet(torch.ones(3).double()).sample((5,))
    wanted = D.TransformedDistribution(D.Independent(normal(2), 1), [transforms.StickBreakingTransform()])
    torch.testing.assert_close(model.log_prob(x), wanted.log_prob(x))


def test_trained_parameters_of_a_transform():
    loc = nn.Parameter(torch.zeros(2))
    bijector = from_torch_transform(transforms.AffineTransform(loc, 2.0, event_dim=1))
    model = fk.Flow(bijector, fk.Normal((2,)))
    assert [p is loc for p in model.parameters()] == [True]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # the second step would fail on a graph that was kept
        optimizer.zero_grad()
        (-model.log_prob(torch.ones(2))).backward()
        optimizer.step()
    assert loc.min() > 0
    wanted = D.Normal(loc, 2.0).log_prob(torch.ones(2)).sum()
    torch.testing.assert_close(model.log_prob(torch.ones(2)), wanted)


def test_transforms_that_do_not_fit():
    with pytest.raises(ValueError, match="SoftmaxTransform is not bijective"):
        from_torch_transform(transforms.SoftmaxTransform())
    with pytest.raises(ValueError, match="AffineTransform.scale was computed by ExpBackward0 from parameters"):
        from_torch_transform(transforms.AffineTransform(0.0, nn.Parameter(torch.zeros(2)).exp()))
    with pytest.raises(TypeError, match="wanted a torch.distributions.Transform"):
        from_torch_transform(fk.Exp())


def test_round_trips_give_the_thing_itself():
    bijector, model = chain(), flow()
    assert from_torch_transform(as_torch_transform(bijector)) is bijector
    turned = from_torch_transform(as_torch_transform(bijector, direction="data_to_base"))
    assert turned.inv is bijector
    assert from_torch_distribution(as_torch_distribution(model)) is model
    # Under a context, or expanded, it is another distribution.
    bound = from_torch_distribution(as_torch_distribution(flow(3), draw(4, 3)))
    assert bound.event_shape == (4, 2) and bound.context_ndim is None
    assert len(list(bound.parameters())) == len(list(flow(3).parameters()))


class Amortized(nn.Module):
    """A Laplace whose location a net reads off the context."""

    def __init__(self):
        super().__init__()
        self.net = fk.nets.MLP((3,), (2,), hidden=(4,))

    def forward(self, context):
        return D.Laplace(self.net(context), torch.ones((), dtype=context.dtype), validate_args=False)


class Trained(nn.Module):
    """A mixture whose parameters are computed anew at every call."""

    def __init__(self):
        super().__init__()
        self.logits, self.loc, self.raw = (nn.Parameter(torch.tensor([-1.0, 0.5])) for _ in range(3))

    def forward(self):
        return D.MixtureSameFamily(
            D.Categorical(logits=self.logits, validate_args=False),
            D.Normal(self.loc, self.raw.exp(), validate_args=False),
            validate_args=False,
        )


LEAF = nn.Parameter(torch.tensor([0.5, -1.0]))
UNCHECKED = {"validate_args": False}  # what vmap and compilation ask for


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: from_torch_distribution(D.Laplace(LEAF, torch.ones(2), **UNCHECKED)), {}),
        (lambda: from_torch_distribution(D.Independent(D.Normal(LEAF, 1.0, **UNCHECKED), 1, **UNCHECKED)), {}),
        (lambda: from_torch_distribution(D.Gumbel(torch.zeros(1), torch.ones(1), **UNCHECKED)), {}),
        (
            lambda: from_torch_distribution(D.Beta(torch.tensor([2.0]), torch.tensor([3.0]), **UNCHECKED)),
            {"bounds": (0.0, 1.0)},
        ),
        (
            lambda: from_torch_distribution(
                D.MultivariateNormal(LEAF, scale_tril=torch.tensor([[1.0, 0.0], [0.5, 2.0]]), **UNCHECKED)
            ),
            {"skip": ["vectorizes"]},  # torch's triangular solve with vmap over a batch of one row
        ),
        (lambda: from_torch_distribution(Amortized(), context_shape=(3,)), {"context": torch.randn(8, 3)}),
        (lambda: from_torch_distribution(Trained()), {"skip": ["density_shapes"]}),  # torch draws no 0 samples of it
    ],
    ids=["Laplace", "Independent", "Gumbel", "Beta", "MultivariateNormal", "module-context", "module-mixture"],
)
def test_distributions_of_torch_keep_the_laws(make, options):
    check_distribution(make(), **options)


def test_parameters_of_a_distribution_stay_trainable():
    plain = torch.zeros(2, requires_grad=True)
    scale = nn.Parameter(torch.tensor(1.0))
    base = from_torch_distribution(D.Independent(D.Normal(plain, scale), 1))
    names = dict(base.named_parameters())
    assert list(names) == ["source.loc", "source.scale"]
    assert names["source.scale"] is scale
    optimizer = torch.optim.Adam(base.parameters(), lr=0.1)
    data = 3 + 0.5 * draw(200, 2).float()
    for _ in range(200):
        optimizer.zero_grad()
        (-base.log_prob(data).mean()).backward()
        optimizer.step()
    torch.testing.assert_close(plain.detach(), data.mean(0), atol=0.02, rtol=0)  # the same memory
    assert abs(scale.item() - 0.5) < 0.05
    assert base.double().sample().dtype == torch.float64


def test_computed_parameters_are_refused():
    raw = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=r"Normal.scale was computed by ExpBackward0 from parameters.*a module"):
        from_torch_distribution(D.Normal(0.0, raw.exp()))
    with pytest.raises(ValueError, match=r"was computed"):
        from_torch_distribution(D.Normal(raw[:1], 1.0))


def test_a_batch_becomes_part_of_the_event():
    for d in (D.Normal(torch.zeros(3), 1.0), D.Independent(D.Normal(torch.zeros(3), 1.0), 1)):
        base = from_torch_distribution(d)
        assert base.event_shape == (3,)
        torch.testing.assert_close(base.log_prob(torch.zeros(5, 3)), fk.Normal((3,)).log_prob(torch.zeros(5, 3)))


def test_supports_come_along():
    assert from_torch_distribution(D.Beta(torch.ones(2), torch.ones(2))).support is constraints.unit_interval
    assert from_torch_distribution(D.Gamma(1.0, 1.0)).support is constraints.nonnegative
    flowed = fk.Flow(fk.Flip(dim=-1), from_torch_distribution(D.Beta(torch.ones(2), torch.ones(2))))
    assert as_torch_distribution(flowed).support.base_constraint is constraints.unit_interval


def test_generators_of_torch_distributions_leave_the_global_one():
    base = from_torch_distribution(D.Gamma(torch.ones(2), 1.0))
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(3)
    first, second = base.sample((4,), generator=generator), base.sample((4,), generator=generator)
    assert torch.equal(torch.get_rng_state(), before) and not torch.equal(first, second)
    assert torch.equal(base.sample((4,), generator=torch.Generator().manual_seed(3)), first)


def test_modules_that_make_something_else():
    with pytest.raises(TypeError, match="Identity gave a Tensor, wanted a torch.distributions.Distribution"):
        from_torch_distribution(nn.Identity(), context_shape=(2,))
    with pytest.raises(TypeError, match="source is a str"):
        from_torch_distribution("normal")
    for part in (fk.Exp(), fk.Normal(2)):
        with pytest.raises(TypeError, match=f"source is a {type(part).__name__}, which is a part of flowkit already"):
            from_torch_distribution(part)
    with pytest.raises(ValueError, match="context_shape is for a module"):
        from_torch_distribution(D.Normal(0.0, 1.0), context_shape=(2,))

    class Unbatched(nn.Module):
        def forward(self, context):
            return D.Normal(torch.zeros(3), 1.0)

    with pytest.raises(fk.ShapeError, match=r"gave a distribution of batch \(3,\) for a context of batch \(2,\)"):
        from_torch_distribution(Unbatched(), context_shape=(2,))


def test_nothing_of_torch_is_changed():
    before = {name: value for name, value in vars(D.Distribution).items() if not name.startswith("__")}
    as_torch_distribution(flow()).log_prob(draw(2))
    from_torch_distribution(D.Normal(0.0, 1.0))
    assert before == {name: value for name, value in vars(D.Distribution).items() if not name.startswith("__")}
    assert type(as_torch_distribution(flow())) not in [pair[0] for pair in D.kl._KL_REGISTRY]
