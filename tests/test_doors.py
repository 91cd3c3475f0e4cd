"""What a newcomer gets wrong at the public doors is refused in words, or understood."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

import flowkit as fk


def small(out: int = 1) -> nn.Sequential:
    """A net of one argument, from one feature to two parameters for each of `out`."""
    return nn.Sequential(nn.Linear(1, 2 * out), nn.Unflatten(-1, (out, 2)))


class Before(nn.Module):
    """An autoregressive net of one argument, over two features."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.linear(torch.zeros_like(x[..., :1]))
        return torch.stack([first, self.linear(x[..., :1])], -2)


SCHEMES = {
    "coupling": lambda: fk.Coupling(fk.maps.Affine(), small(), dim=-1),
    "function": lambda: fk.Coupling(fk.maps.Affine(), lambda half: half[..., None].expand(*half.shape, 2), dim=-1),
    "autoregressive": lambda: fk.Autoregressive(fk.maps.Affine(), Before()),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_nets_of_one_argument_serve_without_a_context(name):
    scheme = SCHEMES[name]()
    flow = fk.Flow(scheme, fk.Normal(2))
    x, log_prob = flow.sample_and_log_prob((4,))
    torch.testing.assert_close(flow.log_prob(x), log_prob)
    with pytest.raises(fk.ShapeError, match="transform: context has shape .*the net takes none"):
        scheme(x, torch.zeros(4, 3))


def test_encoders_of_one_argument_serve_without_a_context():
    noise = fk.Flow(fk.FromContext(fk.maps.Affine(), small(), event_ndim=1), fk.Normal(1), context_shape=1)
    part = fk.Slice(1, noise, dim=-1, encoder=nn.Linear(1, 1))
    assert part(torch.zeros(3, 2))[1].shape == (3,)


def test_a_net_of_one_argument_compiles_whole():
    coupling = SCHEMES["coupling"]()
    x = torch.randn(4, 2)
    run = torch.compile(coupling, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(x), coupling(x))
    assert not fk.Coupling(fk.maps.Affine(), torch.compile(small()), dim=-1).net_takes_context


@pytest.mark.parametrize(
    "part",
    [
        fk.Coupling(fk.maps.Affine(), fk.nets.MLP(1, (1, 2)), dim=-1),
        fk.Autoregressive(fk.maps.Affine(), fk.nets.MADE(2, 2)),
    ],
    ids=["coupling", "autoregressive"],
)
def test_another_dtype_than_that_of_the_net_is_named(part):
    kind = type(part).__name__
    for run in (part, part.inverse):
        with pytest.raises(fk.DomainError, match=rf"{kind}: the net was given torch.float64.* are torch.float32"):
            run(torch.zeros(4, 2, dtype=torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        assert part(torch.zeros(4, 2, dtype=torch.bfloat16))[0].shape == (4, 2)


def test_an_error_of_the_net_itself_comes_through():
    def broken(half):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="^broken$"):
        fk.Coupling(fk.maps.Affine(), broken, dim=-1)(torch.zeros(2))


def test_a_larger_context_than_x_is_a_shape_error():
    coupling = fk.Coupling(fk.maps.Affine(), fk.nets.MLP((1,), (1, 2), context=3), dim=-1)
    with pytest.raises(fk.ShapeError, match=re.escape("MLP: context has shape (4, 3), wanted (*batch, 3)")):
        coupling(torch.zeros(2), torch.zeros(4, 3))
    assert coupling(torch.zeros(4, 2), torch.zeros(3))[0].shape == (4, 2)


def test_the_coupling_says_what_its_net_reads():
    coupling = fk.Coupling(fk.maps.Affine(), fk.nets.MLP(2, (2, 2)), dim=-1)
    wanted = "Coupling: MLP: input has shape (4, 3), wanted (*batch, 2); the net reads the half that passes"
    with pytest.raises(fk.ShapeError, match=re.escape(wanted)):
        coupling(torch.zeros(4, 6))


@pytest.mark.parametrize("name", ["maf", "iaf", "nice", "realnvp_tabular", "nsf"])
def test_whole_numbers_stand_for_one_width_and_one_dim(name):
    options = {"levels": None} if name == "nice" else {}
    flow = getattr(fk.zoo, name)(3, hidden=8, context_shape=2, **options).eval()
    assert flow.log_prob(torch.zeros(4, 3), torch.zeros(4, 2)).shape == (4,)
    with pytest.raises(ValueError, match=f"{name}: hidden is 'wide', wanted a whole number"):
        getattr(fk.zoo, name)(3, hidden="wide")
    with pytest.raises(ValueError, match=f"{name}: context_shape is 2.0, wanted a whole number"):
        getattr(fk.zoo, name)(3, context_shape=2.0)


def test_the_nets_take_one_width():
    assert fk.nets.MLP(2, 3, hidden=8)(torch.zeros(4, 2)).shape == (4, 3)
    assert fk.nets.MADE(2, 3, hidden=8)(torch.zeros(4, 2)).shape == (4, 2, 3)
    assert fk.nets.MADE(2, 1, adjacency=[[0, 0], [1, 0]]).groups == ((0,), (1,))


@pytest.mark.parametrize("mask", [[True, False], np.array([True, False])], ids=["list", "array"])
def test_partition_takes_any_mask(mask):
    assert fk.Partition(mask).passing == 1


AFFINE, X = fk.maps.Affine(), torch.zeros(4, 2)
FLOW = fk.Flow(fk.ActNorm(2), fk.Normal(2))
DOORS = {
    "iaf features": (lambda: fk.zoo.iaf(3.0), ValueError, "iaf: features is 3.0"),
    "maf features": (lambda: fk.zoo.maf(0), ValueError, "maf: features is 0"),
    "coupling net": (lambda: fk.Coupling(AFFINE, 3, dim=-1), TypeError, "Coupling: net is a int"),
    "coupling class": (lambda: fk.Coupling(AFFINE, fk.nets.MLP, dim=-1), TypeError, "net is the class MLP"),
    "coupling no argument": (lambda: fk.Coupling(AFFINE, lambda: X, dim=-1), TypeError, r"net takes \(\)"),
    "autoregressive net": (lambda: fk.Autoregressive(AFFINE, None), TypeError, "net is a NoneType, wanted a network"),
    "context net": (lambda: fk.FromContext(AFFINE, 3, 1), TypeError, "FromContext: net is a int"),
    "context map": (lambda: fk.FromContext(fk.Exp(), small(), 1), TypeError, "FromContext: map is a Exp"),
    "context event": (lambda: fk.FromContext(AFFINE, small(), -1), ValueError, "FromContext: event_ndim is -1"),
    "elementwise map": (lambda: fk.Elementwise(fk.Exp(), (3,)), TypeError, "Elementwise: map is a Exp, wanted one of"),
    "passing": (lambda: fk.Coupling(AFFINE, small(), -1, passing=1.0), ValueError, "passing is 1.0, wanted a whole"),
    "dim": (lambda: fk.Coupling(AFFINE, small(), None), ValueError, "dim is None, wanted a negative whole number"),
    "MLP context": (lambda: fk.nets.MLP(2, 3, context=-1), ValueError, "MLP: context is -1"),
    "MADE context": (lambda: fk.nets.MADE(2, 3, context=-1), ValueError, "MADE: context is -1"),
    "context_ndim": (lambda: fk.Flow(fk.Exp(), fk.Normal(2), context_ndim=-1), ValueError, "context_ndim is -1"),
    "word": (lambda: fk.Flow(fk.Exp(), fk.Normal(2), context_ndim="a"), ValueError, "context_ndim is 'a'"),
    "mask": (lambda: fk.Partition("no"), TypeError, "Partition: mask is 'no'"),
    "adjacency": (lambda: fk.nets.MADE(2, 1, adjacency="no"), TypeError, "MADE: adjacency is 'no'"),
    "MLP activation": (lambda: fk.nets.MLP(2, 3, activation=torch.relu), TypeError, "MLP: activation is <built-in"),
    "MADE activation": (lambda: fk.nets.MADE(2, 3, activation=nn.ReLU()), TypeError, r"MADE: activation is ReLU\(\)"),
    "sample": (lambda: FLOW.sample((2,), generator=3), TypeError, "generator is a int, wanted a torch.Generator"),
    "rsample": (lambda: FLOW.rsample((2,), generator=3), TypeError, "generator is a int"),
    "log_prob": (lambda: FLOW.log_prob(X, generator=3), TypeError, "generator is a int"),
    "certificates": (lambda: fk.debugging.inverse_certificates(3).__enter__(), TypeError, "module is a int"),
    "validation": (lambda: fk.debugging.validation(3).__enter__(), TypeError, "validation: module is a int"),
    "initialize": (lambda: fk.initialize(fk.ActNorm(2), X), TypeError, "initialize: flow is a ActNorm, wanted"),
    "batch": (lambda: fk.initialize(FLOW, [1]), TypeError, "initialize: batch is a list"),
    "summary": (lambda: FLOW.summary(x=[1]), TypeError, "Flow.summary: x is a list"),
}


@pytest.mark.parametrize("door", DOORS)
def test_nonsense_is_refused_by_name(door):
    call, error, message = DOORS[door]
    with pytest.raises(error, match=message):
        call()


def test_a_model_that_samples_forward_has_sound_certificates():
    model = fk.zoo.iaf(3, 1, (8,))
    with fk.debugging.inverse_certificates(model) as report:
        assert not report.ok and str(report) == "no inverse ran: no layer ran"
        model.sample((2,))
    assert report.ok and len(report) == 0 and str(report) == "no inverse ran: every layer ran forward"


NUMBERS = {
    "LeakyReLU: slope": fk.LeakyReLU,
    "Power: exponent": fk.Power,
    "Logit: margin": fk.Logit,
    "BatchNorm: momentum": lambda value: fk.BatchNorm(3, momentum=value),
    "BatchNorm: floor": lambda value: fk.BatchNorm(3, floor=value),
    "Affine: log_scale_bound": fk.maps.Affine,
    "MixtureOfNormals: spread": lambda value: fk.MixtureOfNormals(2, 2, spread=value),
    "RationalQuadratic: min_width": lambda value: fk.maps.RationalQuadratic(3, min_width=value),
    "RationalQuadratic: min_slope": lambda value: fk.maps.RationalQuadratic(3, min_slope=value),
    "RationalQuadratic: bound": lambda value: fk.maps.RationalQuadratic(3, value),
}


@pytest.mark.parametrize("value", ["x", (0.1, None, 0.2), {}, object(), float("nan"), float("inf"), torch.zeros(2)])
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_finite_number_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"{name} is .*, wanted"):
        NUMBERS[name](value)


TENSORS = {
    "ScaleShift: scale": lambda value: fk.ScaleShift(value),
    "ScaleShift: shift": lambda value: fk.ScaleShift(1.0, value),
    "Normal: loc": lambda value: fk.Normal(2, loc=value),
    "Logistic: scale": lambda value: fk.Logistic(2, scale=value),
    "StudentT: df": lambda value: fk.StudentT(2, df=value),
    "Uniform: low": lambda value: fk.Uniform(2, low=value),
    "MultivariateNormal: covariance": lambda value: fk.MultivariateNormal(2, covariance=value),
    "Mixture: weights": lambda value: fk.Mixture(fk.Normal((2, 1), loc=torch.randn(2, 1)), weights=value),
}


@pytest.mark.parametrize("value", ["x", ("a",), {}, object(), (1.0, None)])
@pytest.mark.parametrize("name", TENSORS)
def test_what_is_no_tensor_is_refused_by_name(name, value):
    with pytest.raises(TypeError, match=rf"{name} is .*, wanted a number or a tensor"):
        TENSORS[name](value)


@pytest.mark.parametrize("value", [None, 3, "x", torch.zeros(2), fk.LeakyReLU])
def test_what_is_no_transform_has_no_inverse(value):
    with pytest.raises(TypeError, match="Inverse: transform is a .*, wanted a Transform"):
        fk.Inverse(value)


def test_an_order_that_is_none_is_refused_by_name():
    with pytest.raises(TypeError, match="MADE: order is a int, wanted"):
        fk.nets.MADE(3, 2, order=2)


CONDITIONAL = {
    "coupling": lambda: fk.Coupling(fk.maps.Affine(), fk.nets.MLP(1, (1, 2), context=3), dim=-1),
    "autoregressive": lambda: fk.Autoregressive(fk.maps.Affine(), fk.nets.MADE(2, 2, context=3)),
    "from context": lambda: fk.FromContext(fk.maps.Affine(), fk.nets.MLP(3, (2, 2)), event_ndim=1),
}


@pytest.mark.parametrize("name", CONDITIONAL)
def test_a_context_that_is_no_tensor_is_named(name):
    part = CONDITIONAL[name]()
    for run in (part, part.inverse):
        with pytest.raises(
            TypeError, match=f"{type(part).__name__}: context is a numpy.ndarray, wanted a torch.Tensor"
        ):
            run(torch.zeros(4, 2), np.zeros((4, 3)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
@pytest.mark.parametrize("name", ["autoregressive", "from context"])
def test_a_context_of_no_floating_dtype_is_named(name, dtype):
    part = CONDITIONAL[name]()
    with pytest.raises(fk.DomainError, match=f"{type(part).__name__}: the net was given {dtype}"):
        part(torch.zeros(4, 2), torch.zeros(4, 3, dtype=dtype))


def test_from_context_looks_at_what_it_maps():
    part, context = CONDITIONAL["from context"](), torch.zeros(4, 3)
    for run, name in ((part, "x"), (part.inverse, "z")):
        with pytest.raises(TypeError, match=f"FromContext: {name} is a list, wanted a torch.Tensor"):
            run([0.0, 1.0], context)
        with pytest.raises(fk.DomainError, match=f"FromContext: {name} is torch.int64, wanted a floating dtype"):
            run(torch.zeros(4, 2, dtype=torch.int64), context)
        with pytest.raises(fk.ShapeError, match=re.escape(f"FromContext: {name} has shape ()")):
            run(torch.zeros(()), context)


@pytest.mark.parametrize(
    "map", [fk.maps.Additive(), fk.maps.Affine(), fk.maps.Scale(), fk.maps.MixGaussian(2)], ids=repr
)
def test_maps_look_at_what_they_map(map):
    params = torch.zeros(3, map.num_params)
    for run in (map, map.inverse):
        with pytest.raises(TypeError, match=r"is a list, wanted a torch\.Tensor"):
            run([1.0, 2.0, 3.0], params)
        with pytest.raises(TypeError, match=r"context is a numpy\.ndarray, wanted a torch\.Tensor"):
            run(torch.zeros(3), params.numpy())
        with pytest.raises(fk.DomainError, match=r"is torch\.int64, wanted"):
            run(torch.zeros(3, dtype=torch.int64), params)


@pytest.mark.parametrize(
    ("given", "came"),
    [(lambda t: None, "a NoneType"), (lambda t: (t, t), "a tuple"), (lambda t: t.long(), "torch.int64")],
    ids=["none", "tuple", "integers"],
)
def test_what_a_net_gives_is_looked_at(given, came):
    def net(value, context=None):
        return given(torch.zeros(*value.shape, 2))

    for part in (
        fk.Coupling(fk.maps.Affine(), net, dim=-1),
        fk.Autoregressive(fk.maps.Affine(), net),
        fk.FromContext(fk.maps.Affine(), net, event_ndim=1),
    ):
        for run in (part, part.inverse):
            with pytest.raises(TypeError, match=f"{type(part).__name__}: the .* gave {came}, wanted a tensor"):
                run(torch.zeros(4, 2), torch.zeros(4, 2))


def test_negative_sizes_are_no_sample_shape_in_a_size_of_torch_either():
    for part in (fk.Normal(2), fk.Flow(fk.LULinear(2), fk.Normal(2))):
        with pytest.raises(fk.ShapeError, match="wanted whole numbers of at least 0"):
            part.sample(torch.Size((-1,)))
