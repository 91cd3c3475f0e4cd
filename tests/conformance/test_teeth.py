"""The kit bites: parts with one planted fault each, and the property that names it."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import constraints

import flowkit as fk
import flowkit.testing.distributions
from flowkit.arguments import as_shape
from flowkit.testing import (
    DISTRIBUTION_PROPERTIES,
    ConformanceError,
    DistributionCase,
    check_distribution,
    check_transform,
)


class Net(nn.Module):
    """One number and two of context to parameters of two."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, half, context):
        return self.linear(torch.cat([half, context], -1)).unflatten(-1, (2, 2))


class Good(fk.Coupling):
    """A sound part, which every fault below spoils in one place."""

    def __init__(self):
        super().__init__(fk.maps.Affine(log_scale_bound=1.0), Net(), dim=-1)


class SignFlipped(Good):
    def forward(self, x, context=None):
        z, l = super().forward(x, context)
        return z, -l

    def inverse(self, z, context=None):
        x, l = super().inverse(z, context)
        return x, -l


class SignFlippedBackwards(Good):
    def inverse(self, z, context=None):
        x, l = super().inverse(z, context)
        return x, -l


class FactorDropped(fk.Conv1x1):
    """Its matrix acts on every pixel, its log-term on one."""

    def __init__(self):
        super().__init__((2, 2, 3))

    def _log_term(self, value):
        return super()._log_term(value) / 6


class HalvesSwapped(Good):
    def _halves(self, name, value):
        first, second = super()._halves(name, value)
        return (first, second) if name == "x" else (second[..., :1], torch.cat([first, second[..., 1:]], -1))


class TailClipped(Good):
    def forward(self, x, context=None):
        return super().forward(x.clamp(-5, 5), context)


class LatentTailClipped(fk.Logit):
    """Forward never leads there: only the way from latent to latent shows it."""

    def __init__(self):
        super().__init__(margin=0.05)
        self.domain = constraints.unit_interval  # whose latents lie within 2.95

    def inverse(self, z, context=None):
        return super().inverse(z.clamp(-3, 3), context)


class CountsInEvalMode(Good):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, context=None):
        self.calls += 1
        return super().forward(x, context)


class ParameterDrifts(Good):
    def inverse(self, z, context=None):
        with torch.no_grad():
            self.conditioner.linear.bias.mul_(0.999)
        return super().inverse(z, context)


class TrainsOtherwise(Good):
    def forward(self, x, context=None):
        z, l = super().forward(x, context)
        return (z * 1.5, l + 3 * math.log(1.5)) if self.training else (z, l)


class InputMutated(Good):
    def forward(self, x, context=None):
        return super().forward(x.mul_(2).div_(2).add_(1e-3), context)


class ContextMutated(Good):
    def inverse(self, z, context=None):
        return super().inverse(z, None if context is None else context.mul_(2))


class ContextIgnored(Good):
    def forward(self, x, context=None):
        return super().forward(x, torch.zeros_like(self.needed_context(context)))

    def inverse(self, z, context=None):
        return super().inverse(z, torch.zeros_like(self.needed_context(context)))


class ContextNotNeeded(Good):
    """It stands in for a context that is missing, where it should say so."""

    def forward(self, x, context=None):
        return super().forward(x, x.new_zeros(*x.shape[:-1], 2) if context is None else context)


class LeaksFloat32(Good):
    def forward(self, x, context=None):
        z, l = super().forward(x, context)
        return z, l.float()


class ComputesInFloat32(Good):
    """It gives float64, of which half of the digits are noise."""

    def forward(self, x, context=None):
        z, l = super().forward(x, context)
        return z.float().to(z), l.float().to(l)


class CancelsInFloat32(fk.Bijector):
    """Right in float64; in float32 a large constant takes the digits with it."""

    in_ndim = out_ndim = 0

    def forward(self, x, context=None):
        return (x + 1e4) - 1e4, in_full(torch.zeros_like(x))

    def inverse(self, z, context=None):
        return z, in_full(torch.zeros_like(z))


class SumsTooFewDims(fk.Bijector):
    """Its event has two dims, its log-term is summed over one and averaged over the other."""

    in_ndim = out_ndim = 2
    factor = 2.0

    def forward(self, x, context=None):
        self.check_event("x", x, (2, 3))
        return x * self.factor, in_full(torch.full_like(x, math.log(self.factor)).sum(-1).mean(-1))

    def inverse(self, z, context=None):
        self.check_event("z", z, (2, 3))
        return z / self.factor, in_full(-torch.full_like(z, math.log(self.factor)).sum(-1).mean(-1))


class StartsAtTheFirstCall(fk.Bijector):
    """It sets itself from the first batch it sees, in eval mode too."""

    in_ndim = out_ndim = 1

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3))
        self.register_buffer("done", torch.tensor(False))

    def forward(self, x, context=None):
        self.check_event("x", x, (3,))
        if not self.done:
            self.shift.data.copy_(-x.reshape(-1, 3).mean(0))
            self.done.fill_(True)
        return x + self.shift, in_full(x.new_zeros(x.shape[:-1]))

    def inverse(self, z, context=None):
        self.check_event("z", z, (3,))
        return z - self.shift, in_full(z.new_zeros(z.shape[:-1]))


class LeaksUnderAutocast(fk.Bijector):
    """A product of its own under autocast: the net's output is not all that is rounded."""

    in_ndim = out_ndim = 1

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))

    def forward(self, x, context=None):
        self.check_event("x", x, (3,))
        return x @ self.weight.T, torch.linalg.slogdet(in_full(self.weight)).logabsdet.expand(x.shape[:-1])

    def inverse(self, z, context=None):
        self.check_event("z", z, (3,))
        inverse = torch.linalg.inv(in_full(self.weight)).to(self.weight)
        return z @ inverse.T, -torch.linalg.slogdet(in_full(self.weight)).logabsdet.expand(z.shape[:-1])


class ReadsBatchSize(Good):
    def forward(self, x, context=None):
        z, l = super().forward(x, context)
        return z + 0.001 * x.numel(), l

    def inverse(self, z, context=None):
        return super().inverse(z - 0.001 * z.numel(), context)


class NeedsContiguous(Good):
    def forward(self, x, context=None):
        return super().forward(x.view(-1).view(x.shape), context)


class GradientCut(Good):
    def _conditioned(self, first, second, context):
        return super()._conditioned(first.detach(), second, context)


class GradientOfLogTermCut(Good):
    def forward(self, x, context=None):
        z, l = super().forward(x, context)
        return z, l.detach()


class UnreadParameter(Good):
    def __init__(self):
        super().__init__()
        self.spare = nn.Parameter(torch.zeros(3))


class BranchesOnValues(Good):
    def forward(self, x, context=None):
        if x.numel() and x.abs().max() > 1000:
            raise fk.DomainError("too large")
        return super().forward(x, context)


class KeepsALambda(Good):
    def __init__(self):
        super().__init__()
        self.conditioner.linear.register_forward_hook(lambda module, args, result: result * 1.0)


class KeepsATensor(fk.Bijector):
    """What it made of its parameter at the first call serves all later ones."""

    in_ndim = out_ndim = 0

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(()))
        self.kept = None

    def _shift(self, like):
        if self.kept is None:
            self.kept = self.shift.detach() * 2
        return self.kept.to(like)

    def forward(self, x, context=None):
        return x + self._shift(x), in_full(torch.zeros_like(x))

    def inverse(self, z, context=None):
        return z - self._shift(z), in_full(torch.zeros_like(z))


def in_full(log_term):
    return log_term.to(torch.promote_types(log_term.dtype, torch.float32))


class SaysNothingOfShapes(fk.Bijector):
    """Broadcasts whatever comes."""

    in_ndim = out_ndim = 1

    def __init__(self):
        super().__init__()
        self.log_gain = nn.Parameter(torch.zeros(3))

    def forward(self, x, context=None):
        return x * self.log_gain.exp(), in_full(self.log_gain.sum()).expand(x.shape[:-1])

    def inverse(self, z, context=None):
        return z * (-self.log_gain).exp(), -in_full(self.log_gain.sum()).expand(z.shape[:-1])


class ClaimsToBeElementwise(SaysNothingOfShapes):
    in_ndim = out_ndim = 0


class WrongCodomain(fk.Logit):
    codomain = constraints.interval(-1.0, 1.0)


class DrawsInSecret(Good):
    def forward(self, x, context=None):
        torch.rand(())
        return super().forward(x, context)


class IgnoresTheGenerator(fk.UniformDequantizer):
    def forward(self, x, context=None, *, generator=None):
        return super().forward(x, context)


class DrawsNothing(fk.UniformDequantizer):
    def forward(self, x, context=None, *, generator=None):
        z = (x + 0.5) / self.levels
        return z.to(self.unit.dtype), torch.full_like(z, -math.log(self.levels), dtype=self.unit.dtype)


class LosesAnInteger(fk.UniformDequantizer):
    def inverse(self, z, context=None):
        x, l = super().inverse(z, context)
        return x.clamp(max=self.levels - 2), l


class GivesFloats(fk.UniformDequantizer):
    def inverse(self, z, context=None):
        x, l = super().inverse(z, context)
        return x.to(z.dtype), l


class NotABijection(fk.Bijector):
    in_ndim = out_ndim = 1
    domain = codomain = None

    def forward(self, x, context=None):
        return torch.cat([x, x], -1), in_full(x.new_zeros(x.shape[:-1]))

    def inverse(self, z, context=None):
        return z[..., : z.shape[-1] // 2], in_full(z.new_zeros(z.shape[:-1]))


SHAPES = {FactorDropped: (2, 2, 3), SumsTooFewDims: (2, 3), WrongCodomain: (3,), NotABijection: (2,)}

FAULTS = [
    (SignFlipped, "log_term"),
    (SignFlippedBackwards, "law_1"),
    (FactorDropped, "log_term"),
    (HalvesSwapped, "law_1"),
    (TailClipped, "law_1"),
    (LatentTailClipped, "law_2"),
    (CountsInEvalMode, "purity"),
    (ParameterDrifts, "purity"),
    (TrainsOtherwise, "purity"),
    (InputMutated, "purity"),
    (ContextMutated, "purity"),
    (ContextIgnored, "context_read"),
    (ContextNotNeeded, "shape_errors"),
    (LeaksFloat32, "dtypes"),
    (LeaksUnderAutocast, "autocast"),
    (ComputesInFloat32, "law_1"),
    (CancelsInFloat32, "float32"),
    (SumsTooFewDims, "log_term"),
    (StartsAtTheFirstCall, "purity"),
    (ReadsBatchSize, "independence"),
    (NeedsContiguous, "independence"),
    (GradientCut, "gradients"),
    (GradientOfLogTermCut, "gradients"),
    (UnreadParameter, "parameter_gradients"),
    (BranchesOnValues, "compiles"),
    (KeepsALambda, "copies"),
    (KeepsATensor, "parameter_gradients"),
    (SaysNothingOfShapes, "shape_errors"),
    (ClaimsToBeElementwise, "batch_shapes"),
    (WrongCodomain, "domain"),
    (DrawsInSecret, "noise"),
    (IgnoresTheGenerator, "noise"),
    (DrawsNothing, "noise"),
    (LosesAnInteger, "law_1"),
    (GivesFloats, "domain"),
    (NotABijection, "log_term"),
]


def arguments(cls):
    given = {"event_shape": SHAPES.get(cls, (3,))}
    if issubclass(cls, Good):
        given["context"] = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    return given


def make(cls):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(levels=4) if isinstance(cls, type) and issubclass(cls, fk.UniformDequantizer) else cls()


def test_a_sound_part_passes():
    check_transform(make(Good), **arguments(Good))


@pytest.mark.parametrize(("cls", "property"), [pytest.param(*fault, id=fault[0].__name__) for fault in FAULTS])
def test_planted_fault_is_named(cls, property):
    with pytest.raises(ConformanceError) as caught:
        check_transform(make(cls), **arguments(cls))
    assert caught.value.property == property, str(caught.value)
    assert cls.__name__ in str(caught.value)
    assert "Usual cause" in str(caught.value)


def test_a_message_says_where_and_how_far_off():
    with pytest.raises(
        ConformanceError, match=r"forward: l .* is .*, wanted .*: off by .* Input: \[.*\] of shape \(3,\)"
    ):
        check_transform(make(SignFlipped), **arguments(SignFlipped))


# Distributions


class ConstantMissing(fk.Normal):
    def log_prob(self, x, context=None, *, generator=None):
        return super().log_prob(x) + 0.01


class TooNarrow(fk.Normal):
    """Its samples have 9 tenths of the deviation."""

    def rsample(self, sample_shape=(), context=None, *, generator=None):
        return 0.9 * super().rsample(sample_shape, generator=generator)


class Correlated(fk.Normal):
    """Marginals are right, the joint density is not."""

    def rsample(self, sample_shape=(), context=None, *, generator=None):
        x = super().rsample(sample_shape, generator=generator)
        return torch.stack([x[..., 0], 0.3 * x[..., 0] + math.sqrt(1 - 0.09) * x[..., 1]], -1)


class SumsFirstHalf(fk.Normal):
    """Its density is that of fewer numbers."""

    def log_prob(self, x, context=None, *, generator=None):
        self.check_event("x", x)
        return fk.Normal((2,)).to(x.dtype).log_prob(x[..., :2])


class TrainableNormal(fk.Distribution):
    """A sound one, for the faults below."""

    event_shape = torch.Size((2,))

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(2))

    def log_prob(self, x, context=None, *, generator=None):
        self.check_event("x", x)
        self.check_context(context)
        return (-0.5 * (x * (-self.log_scale).exp()) ** 2 - self.log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)

    def rsample(self, sample_shape=(), context=None, *, generator=None):
        self.check_context(context)
        noise = torch.randn(*as_shape(sample_shape), 2, dtype=self.log_scale.dtype, generator=generator)
        return noise * self.log_scale.exp()


class NotReparametrized(TrainableNormal):
    def rsample(self, *args, **kwargs):
        return super().rsample(*args, **kwargs).detach()


class HalfReparametrized(TrainableNormal):
    """Every parameter has a gradient of its samples, but the wrong one."""

    def rsample(self, *args, **kwargs):
        x = super().rsample(*args, **kwargs)
        return (x + x.detach()) / 2


class RunsItsNetTwice(fk.Flow):
    def sample_and_log_prob(self, sample_shape=(), context=None, *, generator=None):
        x = self.sample(sample_shape, context, generator=generator)
        return x, self.log_prob(x, context)


class ForgetsTheContext(fk.Flow):
    def sample(self, sample_shape=(), context=None, *, generator=None):
        return super().sample(sample_shape, torch.zeros_like(context), generator=generator)


class ContextFirst(fk.Flow):
    """Samples come as context batch + sample shape + event."""

    def sample(self, sample_shape=(), context=None, *, generator=None):
        x, dims = super().sample(sample_shape, context, generator=generator), len(as_shape(sample_shape))
        return x.movedim(tuple(range(dims)), tuple(range(x.ndim - dims - 1, x.ndim - 1)))


def conditional(cls):
    """A flow on 3 numbers with a context of 2, and contexts."""
    flow = make(lambda: cls(Good(), fk.Normal((3,)), context_shape=(2,)))
    return flow, torch.randn(8, 2, generator=torch.Generator().manual_seed(0))


class PairDisagrees(fk.Normal):
    def sample_and_log_prob(self, sample_shape=(), context=None, *, generator=None):
        x, log_prob = super().sample_and_log_prob(sample_shape, generator=generator)
        return x, -log_prob


class SumsTheBatch(fk.Normal):
    def log_prob(self, x, context=None, *, generator=None):
        log_prob = super().log_prob(x)
        return log_prob + 0 * log_prob.sum() + 1e-6 * x.numel()


class BatchFirst(fk.Normal):
    def rsample(self, sample_shape=(), context=None, *, generator=None):
        return super().rsample(as_shape(sample_shape)[::-1], generator=generator)


class Broadcasts(fk.Normal):
    def check_event(self, *args):
        pass


class GlobalNoise(fk.Normal):
    def rsample(self, sample_shape=(), context=None, *, generator=None):
        return super().rsample(sample_shape)


class NoiseInFloat32(fk.Normal):
    def rsample(self, sample_shape=(), context=None, *, generator=None):
        return super().rsample(sample_shape, context, generator=generator).float()


class SwallowsContext(fk.Normal):
    def log_prob(self, x, context=None, *, generator=None):
        return super().log_prob(x)


class OneContextEach(fk.Given):
    """Takes the first batch dims of x for those of the context."""

    def __init__(self):
        super().__init__(fk.Normal(2), nn.Linear(3, 4), context_ndim=1)

    def log_prob(self, x, context=None, *, generator=None):
        log_prob = super().log_prob(x, context)
        return log_prob.reshape(x.shape[:-1]) if log_prob.numel() == x[..., 0].numel() else log_prob.flatten()


class OffersNoGradient(fk.Normal):
    """Its samples have none, and `rsample` gives them all the same."""

    has_rsample = False

    def __init__(self):
        super().__init__(2, trainable=True)

    def rsample(self, sample_shape=(), context=None, *, generator=None):
        self._refuse(context)
        return self.draw(as_shape(sample_shape) + self.event_shape, self.own_parameters(), generator).detach()


class LevelsForgotten(fk.UniformDequantizer):
    """Its bound is the density of z, not the probability of x."""

    def forward(self, x, context=None, *, generator=None):
        z, l = super().forward(x, context, generator=generator)
        return z, torch.zeros_like(l)


def dequantized():
    return fk.Flow(fk.Chain(LevelsForgotten(levels=4), fk.Logit(margin=0.05)), fk.Logistic((1,)))


@pytest.mark.parametrize(
    ("distribution", "property"),
    [
        (lambda: ConstantMissing((2,)), "integrates_to_one"),
        (lambda: TooNarrow((1,)), "samples_follow_density"),
        (lambda: Correlated((2,)), "samples_follow_density"),
        (lambda: TooNarrow((3,)), "samples_follow_density"),
        (lambda: SumsFirstHalf((3,)), "samples_follow_density"),
        (lambda: NotReparametrized(), "gradients"),
        (lambda: HalfReparametrized(), "gradients"),
        (lambda: PairDisagrees((3,)), "sampled_log_prob"),
        (lambda: SumsTheBatch((3,)), "density_shapes"),
        (lambda: BatchFirst((3,)), "density_shapes"),
        (lambda: Broadcasts((3,)), "shape_errors"),
        (lambda: GlobalNoise((3,)), "noise"),
        (lambda: NoiseInFloat32((3,)), "dtypes"),
        (lambda: SwallowsContext((3,)), "shape_errors"),
        (OneContextEach, "density_shapes"),
        (OffersNoGradient, "gradients"),
        (dequantized, "bound_is_below"),
    ],
)
def test_planted_fault_of_a_distribution_is_named(distribution, property):
    with pytest.raises(ConformanceError) as caught:
        part = distribution()
        check_distribution(part, context=None if part.context_ndim is None else torch.randn(8, 3))
    assert caught.value.property == property, str(caught.value)


@pytest.mark.parametrize(
    ("cls", "property"),
    [(RunsItsNetTwice, "nets_run_once"), (ForgetsTheContext, "context_read"), (ContextFirst, "density_shapes")],
)
def test_planted_fault_of_a_conditional_flow_is_named(cls, property):
    flow, context = conditional(cls)
    with pytest.raises(ConformanceError) as caught:
        check_distribution(flow, context=context)
    assert caught.value.property == property, str(caught.value)


def test_sound_distributions_pass():
    check_distribution(TrainableNormal())
    flow, context = conditional(fk.Flow)
    check_distribution(flow, context=context)


class Scaled(fk.Distribution):
    """Samples of a family with a deviation of their own, against the density of the family itself."""

    def __init__(self, family, factor, centres=(0.0,)):
        super().__init__()
        self.family, self.event_shape = family, family.event_shape
        self.factor, self.centres = factor, centres

    def log_prob(self, x, context=None, *, generator=None):
        return self.family.log_prob(x)

    def rsample(self, sample_shape=(), context=None, *, generator=None):
        x = self.family.sample(sample_shape, generator=generator)
        centres = x.new_tensor(self.centres)
        centre = centres[(x[..., None] - centres).abs().argmin(-1)]
        return centre + self.factor * (x - centre)


@pytest.mark.parametrize("factor", [0.9, 1.1])
@pytest.mark.parametrize(
    ("family", "centres"),
    [
        (fk.Normal((1,)), (0.0,)),
        (fk.StudentT((1,), df=1.0), (0.0,)),
        (fk.Mixture(fk.Normal((2, 1), loc=torch.tensor([[-5.0], [5.0]]))), (-5.0, 5.0)),
        (fk.Logistic((2,)), (0.0,)),
        (fk.Normal((8,)), (0.0,)),
    ],
    ids=["normal", "cauchy", "two-modes", "two-dims", "eight-dims"],
)
def test_a_scale_that_is_a_tenth_off_is_seen(family, centres, factor):
    check = DISTRIBUTION_PROPERTIES["samples_follow_density"]
    for seed in range(5):
        check(DistributionCase.of(Scaled(family, 1.0, centres), seed=seed))
        with pytest.raises(ConformanceError):
            check(DistributionCase.of(Scaled(family, factor, centres), seed=seed))


class NoisySolver(fk.Bijector):
    """Steep, and its inverse is solved to a fixed tolerance of 1e-6: the slope is no excuse."""

    in_ndim = out_ndim = 0

    def forward(self, x, context=None):
        return 1000 * x, in_full(torch.full_like(x, math.log(1000.0)))

    def inverse(self, z, context=None):
        return (z / 1000 / 1e-6).round() * 1e-6 + 0 * z, in_full(torch.full_like(z, -math.log(1000.0)))


def test_a_noisy_inverse_does_not_excuse_itself():
    with pytest.raises(ConformanceError) as caught:
        check_transform(NoisySolver(), event_shape=(3,), skip=["compiles"])
    assert caught.value.property == "law_1"


@pytest.mark.parametrize("part", [fk.ScaleShift(1e-6, 1e6), fk.ScaleShift(1e6, -1e12), fk.Tanh()], ids=repr)
def test_an_ill_conditioned_part_passes(part):
    check_transform(part, event_shape=(3,), skip=["compiles"])


def test_a_chain_that_loses_digits_on_the_way_fails():
    chain = fk.Chain(fk.ScaleShift(1e-6, 1e6), fk.ScaleShift(1e6, -1e12))
    with pytest.raises(ConformanceError) as caught:
        check_transform(chain, event_shape=(3,), skip=["compiles"])
    assert caught.value.property == "law_1"


def test_a_message_names_what_fails_besides():
    with pytest.raises(ConformanceError, match="It fails besides: law_2.") as caught:
        check_transform(make(SignFlippedBackwards), **arguments(SignFlippedBackwards), skip=["log_term"])
    assert (caught.value.property, caught.value.others) == ("law_1", ("law_2",))


@pytest.mark.parametrize(("shape", "seeds"), [((1,), 60), ((2,), 25), ((5,), 60)])
def test_the_rate_of_false_alarms_is_what_it_is_said_to_be(monkeypatch, shape, seeds):
    """At a rate of 0.1 in place of one in a million, where there is something to count."""
    monkeypatch.setattr(flowkit.testing.distributions, "ALARM", 0.1)
    check = DISTRIBUTION_PROPERTIES["samples_follow_density"]
    alarms = 0
    for seed in range(seeds):
        try:
            check(DistributionCase.of(fk.Logistic(shape), seed=seed))
        except ConformanceError:
            alarms += 1
    # Chance exceeds this once in a thousand.
    assert alarms <= 0.1 * seeds + 3.1 * math.sqrt(0.09 * seeds)
