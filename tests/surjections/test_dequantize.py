"""What is particular to the dequantizers: the floor gives x again in every dtype, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flowkit as fk


class Edges(fk.Uniform):
    """Noise at the edges of the cube, where rounding carries a sum over them."""

    def rsample(self, sample_shape=(), context=None, *, generator=None):
        shape = (*sample_shape, *self.event_shape)
        edges = [0.0, 1.0, torch.finfo(self.low.dtype).tiny, 1 - torch.finfo(self.low.dtype).eps / 2]
        picks = torch.randint(4, shape, generator=generator)
        return torch.tensor(edges, dtype=self.low.dtype)[picks]


# bfloat16 has 8 significant bits: with 256 levels no number lies inside the upper bins.
DTYPES = [(dtype, levels) for dtype in (torch.float64, torch.float32, torch.float16) for levels in (2, 5, 17, 100, 256)]
DTYPES += [(torch.bfloat16, levels) for levels in (2, 5, 17, 100)]


@pytest.mark.parametrize(("dtype", "levels"), DTYPES)
@pytest.mark.parametrize("edges", [False, True])
def test_floor_gives_the_integers_again(dtype, levels, edges):
    x = torch.arange(levels).repeat(200)
    dequantize = fk.VariationalDequantizer(Edges((len(x),)), levels) if edges else fk.UniformDequantizer(levels)
    dequantize = dequantize.to(dtype)
    z, _ = dequantize(x)
    assert z.dtype == dtype and z.min() >= 0 and z.max() < 1
    assert torch.equal(dequantize.inverse(z)[0], x)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_integer_dtype_comes_in_and_int64_goes_out(dtype):
    dequantize = fk.UniformDequantizer(100)
    x = torch.randint(100, (5, 3)).to(dtype)
    z, _ = dequantize(x)
    assert z.dtype == torch.float32
    back, _ = dequantize.inverse(z)
    assert back.dtype == torch.int64 and torch.equal(back, x.long())


UNIFORM, VARIATIONAL = fk.UniformDequantizer(8), fk.VariationalDequantizer(fk.Uniform((2,)), 8)


@pytest.mark.parametrize("dequantize", [UNIFORM, VARIATIONAL])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.tensor([[0.0, 1.0]]), "x is torch.float32, wanted integers from 0 to 7"),
        (torch.tensor([[True, False]]), "x is torch.bool, wanted integers from 0 to 7"),
        (torch.tensor([[0, 8]]), "x has values from 0 to 8, wanted integers from 0 to 7"),
        (torch.tensor([[-1, 3]]), "x has values from -1 to 3, wanted integers from 0 to 7"),
    ],
)
def test_other_than_integers_in_range_are_refused(dequantize, x, message):
    with pytest.raises(fk.DomainError, match=message):
        dequantize(x)


def test_latents_outside_the_cube_come_from_no_integers():
    z = torch.tensor([[-0.3, 0.5], [0.2, 0.5], [0.2, 1.0]])
    x, terms = fk.UniformDequantizer(4).inverse(z)
    assert x.tolist() == [[0, 2], [0, 2], [0, 3]]
    assert (terms == -math.inf).tolist() == [[True, False], [False, False], [False, True]]
    noise = fk.Flow(fk.Sigmoid().inv, fk.Normal((2,)))
    x, term = fk.VariationalDequantizer(noise, 4).inverse(z)
    assert x.tolist() == [[0, 2], [0, 2], [0, 3]]
    assert (term == -math.inf).tolist() == [True, False, True] and term[1].isfinite()


def test_noise_and_encoder_go_together():
    conditional = fk.Flow(
        fk.FromContext(fk.maps.Affine(), fk.nets.MLP((3,), (2, 2)), event_ndim=1), fk.Normal((2,)), context_shape=(3,)
    )
    with pytest.raises(ValueError, match="a conditional noise needs an encoder"):
        fk.VariationalDequantizer(conditional, 8)
    deaf = fk.VariationalDequantizer(fk.Uniform((2,)), 8, lambda x, context: x)
    with pytest.raises(fk.ShapeError, match=r"Uniform: context has shape \(5, 2\), but this distribution takes none"):
        deaf(torch.zeros(5, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="levels is 1, wanted a whole number from 2"):
        fk.UniformDequantizer(1)


def test_wrong_event_is_refused_with_both_shapes():
    with pytest.raises(fk.ShapeError, match=r"x has shape \(5, 3\), but the noise comes as \(5, 2\)"):
        fk.VariationalDequantizer(fk.Uniform((2,)), 8)(torch.zeros(5, 3, dtype=torch.long))


def test_double_means_double():
    dequantize = fk.VariationalDequantizer(fk.Flow(fk.Sigmoid().inv, fk.Normal((2,))), 8).double()
    z, term = dequantize(torch.tensor([[1, 2]]))
    assert z.dtype == term.dtype == torch.float64
    assert fk.UniformDequantizer(8).double()(torch.tensor([1]))[0].dtype == torch.float64


def test_gradients_reach_the_noise_through_the_draw():
    net = fk.nets.MLP((1,), (1, 2), hidden=(4,))
    noise = fk.Flow(fk.Chain(fk.AffineCoupling(net, dim=-1), fk.ActNorm((2,)), fk.Sigmoid()).inv, fk.Normal((2,)))
    dequantize = fk.VariationalDequantizer(noise, 8)
    z, _ = dequantize(torch.tensor([[1, 2]]))
    z.sum().backward()
    assert noise.transform.transform[1].gain.grad.abs().min() > 0


@given(levels=st.integers(2, 1000), seed=st.integers(0, 2**31))
def test_uniform_noise_stays_in_its_bin(levels, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(levels, (100,), generator=generator)
    dequantize = fk.UniformDequantizer(levels)
    assert torch.equal(dequantize.inverse(dequantize(x, generator=generator)[0])[0], x)


def test_what_is_no_distribution_or_network_is_refused():
    with pytest.raises(TypeError, match="noise is a Identity, wanted a flowkit Distribution"):
        fk.VariationalDequantizer(torch.nn.Identity(), 8)
    with pytest.raises(TypeError, match="encoder is a int, wanted a network or None"):
        fk.VariationalDequantizer(fk.Uniform((2,)), 8, 3)
    with pytest.raises(ValueError, match="wanted a whole number from 2 to 16777216"):
        fk.UniformDequantizer(1 << 30)


def test_mixed_precision_ends_behind_the_encoder():
    noise = fk.Flow(
        fk.Chain(fk.FromContext(fk.maps.Affine(), fk.nets.MLP((2,), (2, 2)), event_ndim=1), fk.Sigmoid().inv.inv).inv,
        fk.Normal((2,)),
        context_ndim=1,
    )
    dequantize = fk.VariationalDequantizer(noise, 8, Linear())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, term = dequantize(torch.tensor([[1, 2]]))
    assert z.dtype == term.dtype == torch.float32


class Linear(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 2)

    def forward(self, x, context=None):
        return super().forward(x)


def test_noise_from_outside_the_cube_is_found_in_validation_mode():
    dequantize = fk.VariationalDequantizer(fk.Normal((2,)), 8)
    with fk.debugging.validation(dequantize), pytest.raises(fk.DomainError, match="VariationalDequantizer: z is -"):
        dequantize(torch.zeros(100, 2, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_wide_unsigned_integers_come_in(dtype):
    dequantize = fk.UniformDequantizer(1000)
    x = torch.tensor([1, 999]).to(dtype)
    assert dequantize.inverse(dequantize(x)[0])[0].tolist() == [1, 999]
    with pytest.raises(fk.DomainError, match="x has values from 1 to 1000"):
        dequantize(torch.tensor([1, 1000]).to(dtype))


def test_whole_numbers_of_numpy_are_levels():
    assert fk.UniformDequantizer(np.int64(17)).levels == 17


@pytest.mark.parametrize("levels", [17, 1 << 24])
def test_latents_that_are_no_numbers_still_give_integers_in_range(levels):
    x, terms = fk.UniformDequantizer(levels).inverse(torch.tensor([math.nan, math.inf, -math.inf, 1.0]))
    assert x.tolist() == [0, levels - 1, 0, levels - 1] and (terms == -math.inf).all()


# ---------------------------------------------------------------------------------------------------------------------
# Levels of each element


def test_columns_of_a_table_have_levels_of_their_own():
    """The largest of each column comes in and goes out, and one more is refused by its place."""
    dequantize = fk.UniformDequantizer((2, 5, 300))
    x = torch.tensor([[1, 4, 299], [0, 0, 0]])
    z, term = dequantize(x)
    assert z.shape == (2, 3) and term.shape == (2,)
    assert torch.equal(dequantize.inverse(z)[0], x)
    torch.testing.assert_close(term, torch.full((2,), -math.log(2 * 5 * 300)))
    with pytest.raises(fk.DomainError, match=r"x is 5 at \(1, 1\), wanted integers from 0 to 4 there"):
        dequantize(torch.tensor([[0, 0, 0], [0, 5, 0]]))
    with pytest.raises(fk.DomainError, match=r"x is -1 at \(0,\), wanted integers from 0 to 1 there"):
        dequantize(torch.tensor([-1, 0, 0]))
    with pytest.raises(fk.ShapeError, match=r"x has shape \(1, 4\), wanted \(\*batch, 3\)"):
        dequantize(torch.zeros(1, 4, dtype=torch.long))
    assert repr(dequantize) == "UniformDequantizer(levels=[2, 5, 300])"


def test_the_same_levels_for_each_are_those_levels():
    x = torch.randint(7, (5, 3))
    one, each = fk.UniformDequantizer(7), fk.UniformDequantizer(torch.tensor([7, 7, 7]))
    drawn = [dequantize(x, generator=torch.Generator().manual_seed(0)) for dequantize in (one, each)]
    assert torch.equal(drawn[0][0], drawn[1][0])
    torch.testing.assert_close(drawn[0][1].sum(-1), drawn[1][1])


def test_only_what_lies_outside_its_own_column_is_impossible():
    x, term = fk.UniformDequantizer((2, 5)).inverse(torch.tensor([[0.9, 0.9], [1.1, 0.9]]))
    assert x.tolist() == [[1, 4], [1, 4]]
    assert term[0].isfinite() and term[1] == -math.inf


@pytest.mark.parametrize("levels", [(2, 1), (2.0, 3.0), (), "27", [[2], [3, 4]], (2, 1 << 25), 2.5, None, True])
def test_levels_that_are_none_are_refused(levels):
    with pytest.raises(ValueError, match="UniformDequantizer: levels is .*, wanted a whole number from 2"):
        fk.UniformDequantizer(levels)


def test_levels_that_do_not_fit_the_noise_are_refused():
    with pytest.raises(fk.ShapeError, match=r"levels has shape \(2, 2\), wanted at most the 1 dims of the event"):
        fk.VariationalDequantizer(fk.Uniform((2,)), torch.full((2, 2), 3))
    with pytest.raises(fk.ShapeError, match=r"x has shape \(2,\), wanted \(\*batch, 3\)"):
        fk.VariationalDequantizer(fk.Uniform((2,)), (2, 3, 4))(torch.zeros(2, dtype=torch.long))


def test_levels_go_where_the_module_goes():
    dequantize = fk.UniformDequantizer((2, 5)).to("meta")
    assert dequantize.levels.device.type == "meta" and not dequantize.state_dict()
    assert "levels" in repr(dequantize)
    with pytest.raises(fk.DomainError, match="x is torch.float32, wanted integers from 0 to levels - 1"):
        fk.UniformDequantizer((2, 5))(torch.zeros(2))


# ---------------------------------------------------------------------------------------------------------------------
# Categories


ARGMAX, BINARY = fk.ArgmaxDequantizer(fk.Normal((2, 5)), 5), fk.BinaryDequantizer(fk.Normal((2, 3)), 5)


@pytest.mark.parametrize("dequantize", [ARGMAX, BINARY])
def test_every_category_comes_in_and_goes_out(dequantize):
    x = torch.cartesian_prod(torch.arange(5), torch.arange(5)).repeat(200, 1)
    z, term = dequantize(x)
    assert z.dtype == torch.float32 and term.shape == x.shape[:1]
    back, minus = dequantize.inverse(z)
    assert torch.equal(back, x) and back.dtype == torch.int64
    torch.testing.assert_close(minus, -term, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dequantize", [ARGMAX, BINARY])
def test_what_is_no_category_is_refused(dequantize):
    name = type(dequantize).__name__
    with pytest.raises(fk.DomainError, match=f"{name}: x has values from 0 to 5, wanted integers from 0 to 4"):
        dequantize(torch.tensor([[0, 5]]))
    with pytest.raises(fk.DomainError, match=f"{name}: x is torch.float32, wanted integers from 0 to 4"):
        dequantize(torch.tensor([[0.0, 1.0]]))
    with pytest.raises(fk.ShapeError, match=rf"{name}: x has shape \(\), wanted \(\*batch, any\)"):
        dequantize(torch.tensor(1))
    with pytest.raises(fk.ShapeError, match=rf"{name}: x has shape \(1, 3\), but the noise comes as \(1, 2, \d\)"):
        dequantize(torch.tensor([[0, 1, 2]]))
    with pytest.raises(fk.ShapeError, match=rf"{name}: z has shape \(1, 2, 4\), wanted \(\*batch, any, \d\)"):
        dequantize.inverse(torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match=f"{name}: levels is \\(5, 5\\), wanted a whole number from 2"):
        type(dequantize)(dequantize.noise, (5, 5))


def test_digits_that_give_no_category_are_impossible():
    """Of 5 categories in 3 digits, 101, 110 and 111 are none."""
    x, term = BINARY.inverse(torch.tensor([[[1.0, -1, -1], [-1, -1, 1]], [[1.0, -1, 1], [-1, -1, 1]]]))
    assert x.tolist() == [[4, 1], [4, 1]]
    assert term[0].isfinite() and term[1] == -math.inf


def test_encoders_see_codes_of_the_categories():
    seen = []

    class Watch(torch.nn.Module):
        def forward(self, code, context=None):
            seen.append(code)
            return code.sum((-1, -2)).unsqueeze(-1)

    for levels, part in ((5, fk.ArgmaxDequantizer), (5, fk.BinaryDequantizer)):
        last = 5 if part is fk.ArgmaxDequantizer else 3
        net = fk.nets.MLP((1,), (2, last, 2))
        noise = fk.Flow(fk.FromContext(fk.maps.Affine(), net, event_ndim=2), fk.Normal((2, last)), context_shape=(1,))
        part(noise, levels, Watch())(torch.tensor([[1, 4]]))
    assert seen[0].tolist() == [[[0, 1, 0, 0, 0], [0, 0, 0, 0, 1]]]
    assert seen[1].tolist() == [[[-1, -1, 1], [1, -1, -1]]]


def test_gradients_reach_the_noise_through_the_argmax():
    shift = fk.Elementwise(fk.maps.Affine(), (2, 3))
    dequantize = fk.ArgmaxDequantizer(fk.Flow(shift.inv, fk.Normal((2, 3))), 3)
    z, term = dequantize(torch.tensor([[1, 2]]))
    (z.square().sum() + term.sum()).backward()
    assert shift.params.grad.abs().min() > 0


@pytest.mark.parametrize(("dtype", "levels"), [(torch.bfloat16, (100, 128, 256)), (torch.float16, (1000, 1024, 2048))])
def test_half_precision_loses_no_integer_or_is_refused(dtype, levels):
    for count in levels:
        x = torch.arange(count).repeat(20)
        noise = fk.Flow(fk.Sigmoid().inv, fk.Normal((len(x),)))
        for part in (fk.UniformDequantizer(count), fk.VariationalDequantizer(noise, count)):
            part = part.to(dtype)
            assert torch.equal(part.inverse(part(x)[0])[0], x)
    most = levels[-1]
    for count in (most - 1, most + 1, (3, most + 1)):
        for part in (fk.UniformDequantizer(count), fk.VariationalDequantizer(fk.Uniform((2,)), count)):
            part = part.to(dtype)
            said = f"{type(part).__name__}: levels is {most + (1 if count != most - 1 else -1)}, but {dtype} tells only"
            with pytest.raises(fk.DomainError, match=said):
                part(torch.tensor([1, 1]))
            with pytest.raises(fk.DomainError, match=said):
                part.inverse(torch.zeros(2, dtype=dtype))
