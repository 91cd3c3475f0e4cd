"""Flows: shapes with and without context, what is exact, what is refused and where."""

import pytest
import torch

import flowkit as fk
from tests.support import perturb


class Shift(fk.Bijector):
    """Adds its context."""

    in_ndim = out_ndim = 1

    def forward(self, x, context=None):
        return x + self.needed_context(context), x.new_zeros(x.shape[:-1])

    def inverse(self, z, context=None):
        return z - self.needed_context(context), z.new_zeros(z.shape[:-1])


class Centred(fk.Normal):
    """A normal around its context."""

    context_ndim = 1

    def log_prob(self, x, context=None, *, generator=None):
        return super().log_prob(x - context)

    def rsample(self, sample_shape=(), context=None, *, generator=None):
        return context + super().rsample((*sample_shape, *context.shape[:-1]), generator=generator)


@pytest.fixture
def conditional():
    return fk.Flow(Shift(), fk.Normal((2,)), context_ndim=1)


@pytest.mark.parametrize("batch", [(), (5,), (4, 5), (1,)])
@pytest.mark.parametrize("context_batch", [(), (5,), (1,), (4, 1)])
def test_context_broadcasts_against_x(conditional, batch, context_batch):
    log_prob = conditional.log_prob(torch.zeros(*batch, 2), torch.ones(*context_batch, 2))
    assert log_prob.shape == torch.broadcast_shapes(batch, context_batch)


@pytest.mark.parametrize("base", [fk.Normal, Centred])
@pytest.mark.parametrize("context_batch", [(), (5,), (4, 5)])
def test_samples_are_sample_shape_then_context_batch_then_event(base, context_batch):
    flow = fk.Flow(Shift(), base((2,)), context_ndim=1).double()
    context = 100 * (1 + torch.arange(2.0 * torch.Size(context_batch).numel()).double().reshape(*context_batch, 2))
    x = flow.sample((3,), context)
    assert x.shape == (3, *context_batch, 2)
    centre = 0 * context if base is Centred else -context
    assert (x - centre).abs().max() < 10  # each sample has its own context
    x, log_prob = flow.sample_and_log_prob(7, context)
    assert x.shape == (7, *context_batch, 2)
    torch.testing.assert_close(log_prob, flow.log_prob(x, context))
    assert flow.from_latent(flow.to_latent(x, context), context).shape == x.shape


def test_labels_are_a_context_of_no_dims():
    net = torch.nn.Embedding(10, 2)
    flow = fk.Flow(Shift(), fk.Normal((2,)), context_net=net, context_ndim=0)
    labels = torch.tensor([3, 7])
    assert flow.log_prob(torch.zeros(2, 2), labels).shape == (2,)
    assert flow.sample((5,), labels).shape == (5, 2, 2)
    torch.testing.assert_close(flow.to_latent(torch.zeros(2, 2), labels), net(labels))


def test_context_net_and_conditioners_run_once(conditional):
    calls = []

    class Net(torch.nn.Linear):
        def forward(self, x):
            calls.append("net")
            return super().forward(x)

    flow = fk.Flow(fk.Chain(Shift(), Shift()), fk.Normal((2,)), context_net=Net(3, 2), context_ndim=1)
    flow.log_prob(torch.zeros(4, 2), torch.zeros(4, 3))
    flow.sample_and_log_prob((2,), torch.zeros(4, 3))
    assert calls == ["net", "net"]


def test_missing_superfluous_and_unfitting_context_is_refused(conditional):
    x = torch.zeros(4, 2)
    with pytest.raises(fk.ShapeError, match="context is missing; this distribution is conditional"):
        conditional.log_prob(x)
    with pytest.raises(fk.ShapeError, match="context is missing"):
        conditional.sample((2,))
    with pytest.raises(fk.ShapeError, match=r"context has batch \(3,\), which does not broadcast to the batch \(4,\)"):
        conditional.log_prob(x, torch.zeros(3, 2))
    with pytest.raises(fk.ShapeError, match="wanted at least 1 dims of event"):
        conditional.log_prob(x, torch.tensor(1.0))
    with pytest.raises(fk.ShapeError, match="this distribution takes none"):
        fk.Flow(fk.ActNorm((2,)), fk.Normal((2,))).log_prob(x, x)
    with pytest.raises(ValueError, match="needs context_ndim or context_shape"):
        fk.Flow(Shift(), Centred((2,)))
    with pytest.raises(ValueError, match="disagree"):
        fk.Flow(Shift(), fk.Normal((2,)), context_ndim=2, context_shape=(2,))
    with pytest.raises(fk.ShapeError, match="known only if context_shape was given"):
        _ = conditional.event_shape
    assert fk.Flow(Shift(), fk.Normal((2,)), context_shape=(2,)).event_shape == (2,)


def test_shapes_are_checked_at_construction_and_the_part_is_named():
    with pytest.raises(fk.ShapeError, match=r"transform.norm: z has shape \(1, 3\), wanted \(\*batch, 2\)"):
        fk.Flow(fk.Chain(norm=fk.ActNorm((2,)), squash=fk.Sigmoid()), fk.Uniform((3,)))
    with pytest.raises(fk.ShapeError, match="fewer dims than the transform's latent"):
        fk.Flow(fk.PairColumns(), fk.Normal((3,)))
    net = fk.nets.MLP((1,), (1, 3))
    with pytest.raises(
        fk.ShapeError,
        match=r"transform.couple: the conditioner gave \(1, 1, 3\), wanted \(1, 1, 5\): "
        r"MixLogistic\(components=1\) has 5 parameters",
    ):
        fk.Flow(fk.Chain(couple=fk.MixLogisticCDFCoupling(net, 1, dim=-1)), fk.Normal((2,)))


def test_construction_draws_no_random_numbers():
    torch.manual_seed(0)
    parts = fk.UniformDequantizer(4), fk.Logit(0.05)
    before = torch.get_rng_state()
    fk.Flow(fk.Chain(*parts), fk.Normal((2,)))
    assert torch.equal(torch.get_rng_state(), before)


def test_odd_widths_and_channels_are_refused():
    for part, shape, message in [
        (fk.PairColumns(), (3, 4, 5), "its width is 5, wanted an even one"),
        (fk.PairCheckerboard(), (3, 4, 5), "its width is 5, wanted an even one"),
        (fk.PairChannels(), (3, 4, 4), "its number of channels is 3, wanted an even one"),
        (fk.Squeeze(), (3, 5, 4), "its height is 5, wanted an even one"),
        (fk.Squeeze(3), (3, 9, 4), "its width is 4, wanted a multiple of 3"),
    ]:
        with pytest.raises(fk.ShapeError, match=message):
            part(torch.zeros(2, *shape))
    with pytest.raises(fk.ShapeError, match="its number of channels is 3, wanted a multiple of 4"):
        fk.Squeeze().inverse(torch.zeros(2, 3, 4, 4))


def test_supports_that_do_not_fit_are_refused_with_both_parts():
    with pytest.raises(fk.DomainError, match=r"squash \(Logit\) takes values in .* but norm \(ActNorm\) gives"):
        fk.Chain(norm=fk.ActNorm((2,)), squash=fk.Logit())
    with pytest.raises(fk.DomainError, match="1 \\(UniformDequantizer\\)"):
        fk.Chain(fk.Logit(), fk.UniformDequantizer(4))
    fk.Chain(fk.UniformDequantizer(4), fk.PairColumns(), fk.Logit())  # a rearrangement keeps the support


def test_a_bound_is_not_called_a_density():
    flow = fk.Flow(fk.Chain(fk.UniformDequantizer(4), fk.Logit(0.05)), fk.Normal((2,)))
    assert not flow.exact and "lower bound" in repr(flow)
    with pytest.raises(fk.NotExact, match="only a bound"):
        flow.sample_and_log_prob((2,))
    with pytest.raises(fk.NotExact, match="carry no gradient"):
        flow.rsample((2,))
    exact = fk.Flow(fk.ActNorm((2,)), fk.Normal((2,)))
    assert exact.exact and "exact" in repr(exact)


def test_rsample_has_gradients_and_sample_has_none():
    flow = fk.Flow(fk.ActNorm((2,)), fk.Normal((2,)))
    assert flow.rsample((3,)).requires_grad and not flow.sample((3,)).requires_grad


def test_generators_make_draws_repeatable_and_leave_the_global_state():
    flow = perturb(fk.zoo.flowpp(config="digits", filters=8, blocks=1)).eval()
    before = torch.get_rng_state()
    seeded = [flow.sample((2,), generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*seeded)
    scores = [flow.log_prob(seeded[0], generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*scores)
    assert torch.equal(torch.get_rng_state(), before)


def test_flow_called_is_log_prob():
    flow = fk.Flow(fk.ActNorm((2,)), fk.Normal((2,)))
    x = torch.randn(3, 2)
    assert torch.equal(flow(x), flow.log_prob(x))


def test_parts_are_replaced_not_assigned():
    chain = fk.Chain(dequantize=fk.UniformDequantizer(4), logit=fk.Logit(0.05))
    with pytest.raises(AttributeError, match=r"chain.replace\(dequantize="):
        chain.dequantize = fk.UniformDequantizer(8)
    other = chain.replace(dequantize=fk.UniformDequantizer(8))
    assert other["logit"] is chain["logit"] and other["dequantize"].levels == 8 and chain["dequantize"].levels == 4
    with pytest.raises(KeyError, match="no part named 'dequantise'; there are dequantize, logit"):
        chain.replace(dequantise=fk.UniformDequantizer(8))
    with pytest.raises(ValueError, match="no parts"):
        fk.Chain()
    with pytest.raises(ValueError, match="not both"):
        fk.Chain(fk.Logit(), norm=fk.ActNorm((2,)))
    for name in ("inv", "in_ndim", "_path", "a.b", ""):
        with pytest.raises(ValueError, match=f"'{name}' cannot name a part"):
            fk.Chain(**{name: fk.Exp()})
    with pytest.raises(ValueError, match="'forward' cannot name a part"):
        fk.Chain(forward=fk.Logit())


def test_names_of_parts_are_the_keys_of_the_state_dict():
    flow = fk.zoo.flowpp(config="digits", filters=8, blocks=1)
    keys = flow.state_dict().keys()
    assert "transform.columns2.1.couple.conditioner.enter.weight" in keys
    assert "transform.dequantize.encoder.enter.weight" in keys
    assert flow.transform["columns2"][1]["couple"].path == "transform.columns2.1.couple"


def test_validation_mode_names_the_layer_and_the_value():
    flow = fk.Flow(fk.Chain(norm=fk.ActNorm((2,)), squash=fk.Sigmoid().inv.inv), fk.Uniform((2,)))
    x = torch.tensor([[0.0, 1.0], [float("nan"), 2.0]])
    with (
        fk.debugging.validation(flow),
        pytest.raises(fk.DomainError, match=r"transform.norm: x is nan in example 1, element 0, wanted no NaN"),
    ):
        flow.log_prob(x)
    flow.log_prob(x)  # the mode is over
    with torch.no_grad():
        flow.transform["norm"].gain.fill_(float("nan"))
    with fk.debugging.validation(flow), pytest.raises(fk.DomainError, match="transform.norm: z is nan"):
        flow.log_prob(torch.zeros(1, 2))
    with fk.debugging.validation(flow), pytest.raises(fk.DomainError, match=r"z is 2.0 in example .* Interval"):
        flow.transform.inverse(torch.full((1, 2), 2.0))


def test_what_is_no_transform_or_distribution_is_refused():
    norm = fk.ActNorm((3,))
    with pytest.raises(TypeError, match="part 1 is a Linear, wanted Transforms"):
        fk.Chain(norm, torch.nn.Linear(3, 3))
    with pytest.raises(TypeError, match="part 0 is a list"):
        fk.Chain([norm])
    with pytest.raises(TypeError, match="transform is a Linear"):
        fk.Flow(torch.nn.Linear(3, 3), fk.Normal(3))
    with pytest.raises(TypeError, match=r"base is a torch\.distributions\.normal\.Normal"):
        fk.Flow(norm, torch.distributions.Normal(0, 1))
    with pytest.raises(TypeError, match="map is a ActNorm"):
        fk.Coupling(norm, torch.nn.Identity(), dim=-1)


def test_integers_are_refused_where_the_domain_is_continuous():
    with pytest.raises(fk.DomainError, match=r"ActNorm: x is torch.int64, wanted a floating dtype"):
        fk.ActNorm((2,))(torch.zeros(3, 2, dtype=torch.long))


def test_wrong_data_and_latents_are_refused_at_the_door():
    flow = fk.zoo.flowpp(config="digits", filters=8, blocks=1)
    with pytest.raises(fk.ShapeError, match=r"x has shape \(2, 3, 8, 8\), wanted \(\*batch, 1, 8, 8\)"):
        flow.log_prob(torch.zeros(2, 3, 8, 8, dtype=torch.long))
    with pytest.raises(fk.ShapeError, match=r"z has shape \(2, 1, 8, 8\), wanted \(\*batch, 4, 4, 4\)"):
        flow.from_latent(torch.zeros(2, 1, 8, 8))
    with pytest.raises(fk.DomainError, match=r"transform.dequantize: x is torch.float32, wanted integers from 0 to 16"):
        flow.log_prob(torch.zeros(2, 1, 8, 8))
    with pytest.raises(fk.DomainError, match=r"x has values from 17 to 17, wanted integers from 0 to 16"):
        flow.log_prob(torch.full((2, 1, 8, 8), 17))


def test_labels_are_traced_as_labels():
    flow = fk.Flow(Shift(), fk.Normal(2), context_net=torch.nn.Embedding(10, 2), context_shape=())
    assert flow.event_shape == (2,)


def test_one_label_and_one_example_have_no_batch_dims():
    flow = fk.Flow(Shift(), fk.Normal(2), context_net=torch.nn.Embedding(10, 2), context_ndim=0)
    x, label = torch.zeros(2), torch.tensor(3)
    assert flow.log_prob(x, label).shape == () and flow.sample((), label).shape == (2,)
    assert flow.from_latent(flow.to_latent(x, label), label).shape == (2,)


def test_parts_are_not_deleted():
    chain = fk.Chain(logit=fk.Logit(0.05), norm=fk.ActNorm((2,)))
    with pytest.raises(AttributeError, match="parts are not deleted"):
        del chain.logit
    with pytest.raises(ValueError, match="'training' cannot name a part"):
        fk.Chain(training=fk.Logit())


def test_parts_are_not_added():
    chain = fk.Chain(logit=fk.Logit(0.05))
    for add in (chain.add_module, chain.register_module):
        with pytest.raises(AttributeError, match=r"Chain: parts are not added; Chain\(\.\.\.\) with norm among them"):
            add("norm", fk.ActNorm((2,)))
    assert len(chain) == 1


def test_an_interval_must_fit_on_the_way_back_too():
    # A logit with a margin gives back values on both sides of the unit interval.
    for parts in [(fk.Sigmoid(), fk.Logit(0.1)), (fk.Chain(fk.Sigmoid()), fk.Flip(-1), fk.Logit(0.1))]:
        pattern = (
            r"on the way back, \d \(Logit\) gives values in Interval\(lower_bound=-0.125.* but 0 \(\w+\) takes values"
        )
        with pytest.raises(fk.DomainError, match=pattern):
            fk.Chain(*parts)
    with pytest.raises(fk.DomainError, match="takes values in"):
        fk.Chain(fk.Logit(0.1).inv, fk.Sigmoid().inv)  # the same, turned round
    fk.Chain(fk.Sigmoid(), fk.Logit())
    # A dequantizer takes back what is outside, with minus infinity.
    fk.Chain(fk.Chain(fk.UniformDequantizer(4)), fk.Logit(0.1))
    # A half-line and all reals say nothing: a power keeps to the unit interval.
    fk.Chain(fk.Sigmoid(), fk.Power(2.0))


def test_validation_mode_sees_infinite_latents_of_finite_data():
    flow = fk.Flow(fk.Chain(logit=fk.Logit()), fk.Normal(2))
    with fk.debugging.validation(flow), pytest.raises(fk.DomainError, match=r"transform.logit: z is -inf"):
        flow.log_prob(torch.tensor([[0.5, 0.0]]))


def test_a_base_with_values_that_the_transform_does_not_take_back_is_refused():
    spline = fk.maps.RationalQuadratic(4, tails="bounded")
    for transform, base in [
        (fk.Exp(), fk.Normal(2)),
        (fk.Elementwise(spline, (2,)), fk.Normal(2)),
        (fk.Chain(fk.ActNorm((2,)), fk.Chain(fk.Sigmoid(), fk.Flip(-1))), fk.StudentT(2, 3.0)),
        (fk.Sigmoid(), fk.Uniform(2, torch.tensor([0.0, -1.0]))),
    ]:
        with pytest.raises(fk.DomainError, match="Flow: the base, .*, has values in .* and takes no others back"):
            fk.Flow(transform, base)
    # These fit, or may fit.
    fk.Flow(fk.Elementwise(spline, (2,)), fk.Uniform(2, -3.0, 3.0))
    fk.Flow(fk.Sigmoid(), fk.Flow(fk.Logit(), fk.Normal(2)))
    fk.Flow(fk.Sigmoid(), fk.Flow(fk.Power(2.0), fk.Uniform(2)))
    fk.Flow(fk.Exp(), fk.Flow(fk.LeakyReLU(), fk.Uniform(2)))
    fk.Flow(fk.UniformDequantizer(4), fk.Normal(2))


def test_the_density_at_an_end_that_no_latent_leads_to_is_0():
    log_normal, logit_normal = fk.Flow(fk.Exp().inv, fk.Normal(1)), fk.Flow(fk.Logit(), fk.Normal(1))
    got = log_normal.log_prob(torch.tensor([[-1.0], [0.0], [1.0], [float("nan")]]))
    assert got[0].isnan() and got[1] == -torch.inf and got[2].isfinite() and got[3].isnan()
    got = logit_normal.log_prob(torch.tensor([[0.0], [0.5], [1.0]]))
    assert got[0] == got[2] == -torch.inf and got[1].isfinite()
    assert fk.Flow(fk.Logit(), fk.Normal(2)).log_prob(torch.tensor([0.0, 0.5])) == -torch.inf


@pytest.mark.thorough
def test_a_flow_of_compiled_parts_is_built_without_running_their_kernels():
    """They read memory that fake tensors do not have: the process died."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, x):
            return self.conv(x).unsqueeze(1).movedim(2, -1)

    coupling = fk.AffineCoupling(Net(), dim=-3)
    flow = fk.Flow(coupling, fk.Normal((2, 4, 4)))
    coupling.conditioner.compile(dynamic=False)
    with torch.no_grad():
        flow.log_prob(torch.randn(1, 2, 4, 4))  # as many as the trace has
    assert fk.Flow(coupling, fk.Normal((2, 4, 4))).event_shape == (2, 4, 4)
