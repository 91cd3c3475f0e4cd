"""Every row of the table keeps every property; and on inputs, parameters, shapes and dtypes that hypothesis draws."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flowkit as fk
from flowkit.testing import DISTRIBUTION_PROPERTIES, PROPERTIES, check_transform, compiles, density_compiles
from flowkit.testing.strategies import batch_shapes, seeds, values
from flowkit.transform import Inverse, run_forward
from tests.conformance.cases import DISTRIBUTIONS, TRANSFORMS


def pairs(rows, properties):
    """Every row with every property; the slow ones only in the thorough profile."""
    return [
        pytest.param(row, name, id=f"{row.name}-{name}", marks=[pytest.mark.thorough] if name in row.slow else [])
        for row in rows
        for name in properties
    ]


def each(rows):
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in rows])


@pytest.mark.parametrize(("row", "name"), pairs(TRANSFORMS, PROPERTIES))
def test_transform(row, name, record_property):
    case, check = row.case(), PROPERTIES[name]
    record_property("conformance", ("transforms", row.name, name, check.applies(case)))
    check(case)


@pytest.mark.parametrize(("row", "name"), pairs(DISTRIBUTIONS, DISTRIBUTION_PROPERTIES))
def test_distribution(row, name, record_property):
    case, check = row.case(), DISTRIBUTION_PROPERTIES[name]
    record_property("conformance", ("distributions", row.name, name, check.applies(case)))
    check(case)


BIJECTORS = [row for row in TRANSFORMS if row.case().bijective]


@each(BIJECTORS)
@given(seed=seeds())
def test_log_term_of_random_parameters(row, seed):
    """Against the Jacobian to 1e-8, both ways: 10 examples of 25 inputs, with parameters of their own."""
    PROPERTIES["log_term"](row.case(seed, count=25))


@each(TRANSFORMS)
@given(data=st.data())
def test_laws_at_drawn_inputs(row, data):
    case = row.case()
    reach = 2 if row.options.get("tails") == 1 else 10
    # Not nearer to the ends than a slope of 1000 allows.
    options = {"reach": reach, "margin": 0.001}
    inputs = data.draw(values(case.transform.domain, (2, *case.inputs.shape[1:]), **options), label="inputs")
    PROPERTIES["law_1"](replace(case, inputs=inputs, context=_first(case.context, 2)))
    if not case.transform.stochastic_forward:
        latents = data.draw(values(case.transform.codomain, (2, *case.latents.shape[1:]), **options), label="latents")
        PROPERTIES["law_2"](replace(case, latents=latents, context=_first(case.context, 2)))


def _first(context, count):
    return None if context is None else context[:count]


# Relative to 1 + |wanted|: rounding of the dtype times the condition of a whole flow.
ROUND_TRIP = {torch.float64: 1e-8, torch.float32: 2e-3}


@each(BIJECTORS)
@given(batch=batch_shapes(), dtype=st.sampled_from(list(ROUND_TRIP)), turned=st.booleans())
def test_round_trip_in_any_shape_and_dtype(row, batch, dtype, turned):
    case = row.case()
    case = case.turned if turned else case
    transform = copy.deepcopy(case.transform).to(dtype)
    x, context = (None if value is None else value.to(dtype) for value in case.batch(*batch))
    with torch.no_grad():
        z, l = run_forward(transform, x, context, None)
        back, minus = run_forward(Inverse(transform), z, context, None)
    assert l.shape[: len(batch)] == minus.shape[: len(batch)] == batch
    assert z.dtype == l.dtype == back.dtype == minus.dtype == dtype
    for got, wanted in ((back, x), (minus, -l)):
        assert got.shape == wanted.shape
        assert bool(((got - wanted).abs() <= ROUND_TRIP[dtype] * (1 + wanted.abs())).all())


@pytest.mark.parametrize("name", ["Flow-dequantized", "Flow-variational"])
def test_bound_lies_below_the_exact_mass_of_a_bin(name):
    """The mass is an integral over the bin; the bound's exponential has it as its mean, and the bound lies below."""
    (row,) = [row for row in DISTRIBUTIONS if row.name == name]
    flow = row.case().distribution
    dequantizer, *parts = flow.transform
    density = fk.Flow(fk.Chain(*parts), flow.base)
    draws, points = 20000, 2000
    for value in range(dequantizer.levels):
        cell = (torch.arange(points, dtype=torch.float64) + 0.5) / points
        mass = density.log_prob((value + cell)[:, None] / dequantizer.levels).exp().mean() / dequantizer.levels
        generator = torch.Generator().manual_seed(value)
        terms = flow.log_prob(torch.full((draws, 1), value), generator=generator)
        assert terms.mean() < mass.log()
        assert abs(terms.exp().mean() - mass) < 5 * terms.exp().std() / math.sqrt(draws) + 1e-6


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [
        "ActNorm-pair",
        "maps.MixLogistic",
        "Coupling-pair-GatedConvAttention",
        "Conv1x1",
        "Squeeze",
        "Logit-margin",
        "UniformDequantizer",
        "VariationalDequantizer-encoder",
        "Flow++-affine",
        "Autoregressive",
    ],
)
def test_transform_under_inductor(name, record_property):
    record_property("conformance", ("transforms", name, "inductor", True))
    (row,) = [row for row in TRANSFORMS if row.name == name]
    compiles(row.case(), backend="inductor")


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["Normal-two", "Flow-conditional", "Flow-variational"])
def test_distribution_under_inductor(name, record_property):
    record_property("conformance", ("distributions", name, "inductor", True))
    (row,) = [row for row in DISTRIBUTIONS if row.name == name]
    density_compiles(row.case(), backend="inductor")


def test_the_transform_itself_is_left_as_it_is():
    part = fk.AffineCoupling(fk.nets.MLP((1,), (1, 2), hidden=(4,)), dim=-1)
    before = {name: value.clone() for name, value in part.state_dict().items()}
    random = torch.random.get_rng_state()
    check_transform(part, event_shape=(2,), skip=["compiles"])
    assert part.training
    assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())
    assert all(value.dtype == torch.float32 for value in part.state_dict().values())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_property_that_does_not_exist_is_not_skipped():
    with pytest.raises(ValueError, match="'speed' is no property"):
        check_transform(fk.Logit(), event_shape=(), skip=["speed"])
