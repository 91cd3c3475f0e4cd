"""What single maps promise beyond what every map does."""

import copy
import math

import pytest
import torch
from torch.distributions import constraints

import flowkit as fk
from flowkit.maps import Additive, Affine, MixGaussian, MixLogistic, RationalQuadratic

MAPS = [
    Additive(),
    Affine(),
    Affine(log_scale_bound=1.0),
    MixLogistic(3),
    MixGaussian(3),
    RationalQuadratic(5),
    RationalQuadratic(5, math.pi, "circular"),
    RationalQuadratic(5, math.pi, "circular", shift=True),
    RationalQuadratic(5, (0.0, 1.0), "bounded"),
]


@pytest.mark.parametrize("map", MAPS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_parameters_0_is_the_identity(map, dtype):
    x = torch.linspace(0, 1, 33, dtype=dtype)
    params, tolerance = torch.zeros(33, map.num_params, dtype=dtype), 16 * torch.finfo(dtype).eps
    for run in (map, map.inverse):
        z, log_det = run(x, params)
        torch.testing.assert_close(z, x, rtol=0, atol=tolerance)
        assert log_det.abs().max() <= tolerance


def test_additive_has_the_log_term_of_half_precision_in_float32():
    _, log_det = Additive()(torch.ones(2, dtype=torch.bfloat16), torch.ones(2, 1, dtype=torch.bfloat16))
    assert torch.equal(log_det, torch.zeros(2)) and log_det.dtype == torch.float32


@pytest.mark.parametrize(("tails", "count"), [("linear", 14), ("circular", 15), ("bounded", 16)])
def test_a_spline_counts_the_slopes_of_its_tails(tails, count):
    spline = RationalQuadratic(5, (-1.0, 2.0), tails)
    assert spline.num_params == count
    for support in (spline.domain, spline.codomain):
        if tails == "linear":
            assert support is constraints.real
        else:
            assert (support.lower_bound, support.upper_bound) == (-1.0, 2.0)


def test_a_bounded_spline_stays_between_uniforms():
    """The domain is checked where parts are joined: a cube stays a cube, and the whole line does not fit in."""
    cube = fk.Elementwise(RationalQuadratic(4, (0.0, 1.0), "bounded"), (3,))
    fk.Chain(fk.Sigmoid(), cube, fk.Logit())
    with pytest.raises(fk.DomainError, match="takes values in"):
        fk.Chain(fk.ActNorm((3,)), cube)


def test_a_circular_spline_has_a_density_that_closes():
    """And that integrates to 1: from a uniform on the circle."""
    torch.manual_seed(0)
    spline = fk.Elementwise(RationalQuadratic(6, math.pi, "circular"), (1,))
    with torch.no_grad():
        spline.params.normal_()
    flow = fk.Flow(spline, fk.Uniform((1,), -math.pi, math.pi)).double()
    x = (-math.pi + 2 * math.pi * torch.linspace(0, 1, 40001, dtype=torch.float64)).unsqueeze(-1)
    with torch.no_grad():
        density = spline.double()(x)[1].exp() / (2 * math.pi)
        assert torch.allclose(flow.log_prob(x[1:-1]).exp(), density[1:-1])
    torch.testing.assert_close(density[0], density[-1])
    assert torch.trapezoid(density, x[:, 0]).item() == pytest.approx(1, abs=1e-6)


def test_a_shift_turns_the_circle():
    """By any number of turns; the density stays that of the spline, and the seam goes where it is put."""
    plain, turned = (RationalQuadratic(4, (0.0, 2.0), "circular", shift=shift) for shift in (False, True))
    assert turned.num_params == plain.num_params + 1
    x, params = torch.linspace(0, 1.99, 50).double(), torch.randn(50, 12).double()
    z, log_det = plain(x, params)
    for shift in (0.0, 0.3, -1.7, 12.3):
        both = torch.cat([params, torch.full((50, 1), shift, dtype=torch.double)], -1)
        got, term = turned(x, both)
        torch.testing.assert_close(got, (z + shift).remainder(2.0))
        assert torch.equal(term, log_det)
        torch.testing.assert_close(turned.inverse(got, both)[0], x)


def test_a_gaussian_mixture_is_the_density_of_its_map():
    """With a normal base and no outer affine, log_prob is that of the mixture."""
    torch.manual_seed(0)
    mix = fk.Elementwise(MixGaussian(3), (1,))
    with torch.no_grad():
        mix.params[:, 2:].normal_()
    flow = fk.Flow(mix, fk.Normal((1,))).double()
    logits, means, log_scales = mix.params[0, 2:].detach().double().chunk(3)
    x = torch.linspace(-50, 50, 201, dtype=torch.float64)
    parts = torch.distributions.Normal(means, log_scales.exp()).log_prob(x.unsqueeze(-1))
    wanted = (parts + logits.log_softmax(-1)).logsumexp(-1)
    torch.testing.assert_close(flow.log_prob(x.unsqueeze(-1)).detach(), wanted, rtol=1e-12, atol=1e-12)


def test_gaussian_log_scales_have_a_floor_without_gradient():
    mix = MixGaussian(components=1)
    at = [torch.tensor([[0.0, 0.0, 0.0, 0.3, s]], requires_grad=True) for s in (-9.0, -7.0)]
    results = [mix(torch.tensor([0.3001]), params) for params in at]
    assert torch.equal(results[0][0], results[1][0])
    (gradient,) = torch.autograd.grad(results[0][1].sum(), at[0])
    assert gradient[0, -1] == 0


@pytest.mark.parametrize("map", MAPS, ids=repr)
def test_maps_have_no_state(map):
    assert not map.state_dict() and repr(copy.deepcopy(map)) == repr(map)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MixGaussian(components=0),
        lambda: RationalQuadratic(1),
        lambda: RationalQuadratic(4, bound=0.0),
        lambda: RationalQuadratic(4, bound=(1.0, 1.0)),
        lambda: RationalQuadratic(4, tails="cubic"),
        lambda: RationalQuadratic(4, min_width=0.25),
        lambda: RationalQuadratic(4, shift=True),
        lambda: RationalQuadratic(4, min_height=0.0),
        lambda: RationalQuadratic(4, min_slope=1.0),
        lambda: RationalQuadratic(2.5),
        lambda: RationalQuadratic(4, bound=math.inf),
        lambda: RationalQuadratic(4, bound=(0.0, math.inf)),
        lambda: RationalQuadratic(4, bound=(1, 2, 3)),
        lambda: RationalQuadratic(4, bound="a"),
        lambda: MixLogistic(1.5),
        lambda: MixLogistic(3, min_log_scale=math.nan),
    ],
)
def test_impossible_settings_are_refused_with_what_was_wanted(make):
    with pytest.raises(ValueError, match="wanted"):
        make()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_turns_cost_no_digits(dtype):
    circle = RationalQuadratic(4, math.pi, "circular", shift=True)
    shifts = torch.tensor([1e4, -1e4, 1e7, 123456.0], dtype=dtype)
    params = torch.zeros(4, circle.num_params, dtype=dtype)
    params[:, -1] = shifts
    params.requires_grad_()
    x = torch.full((4,), 0.3, dtype=dtype)
    z, _ = circle(x, params)
    wanted = [math.remainder(0.3 + shift, 2 * math.pi) for shift in shifts.tolist()]
    eps = 16 * torch.finfo(dtype).eps
    # In float64 the 0.3 that is added above is rounded to the last digit of 1e7.
    torch.testing.assert_close(z, torch.tensor(wanted, dtype=dtype), rtol=0, atol=max(eps, 4e-9))
    torch.testing.assert_close(circle.inverse(z, params)[0], x, rtol=0, atol=eps)
    assert torch.equal(torch.autograd.grad(z.sum(), params)[0][:, -1], torch.ones(4, dtype=dtype))


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("map", "largest"), [(MixLogistic(2), (80, 600)), (MixGaussian(2), (40, 300))], ids=repr)
def test_mixtures_come_back_however_far_their_scales_are_apart(map, largest, dtype, fixed):
    log_scales = torch.linspace(10, largest[dtype == torch.float64], 30, dtype=dtype)
    params = torch.zeros(30, map.num_params, dtype=dtype)
    params[:, 6] = log_scales
    x = torch.ones(30, dtype=dtype)
    z, _ = map(x, params)
    back = torch.vmap(map.inverse)(z, params)[0] if fixed else map.inverse(z, params)[0]
    torch.testing.assert_close(back, x, rtol=0, atol=64 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("map", MAPS, ids=repr)
def test_half_precision_is_taken_or_refused_by_name(map, dtype):
    part = fk.Flow(fk.Elementwise(map, (2,)), fk.Uniform((2,))).to(dtype).transform
    x = torch.full((2,), 0.5, dtype=dtype)
    for name, run in (("x", part), ("z", part.inverse)):
        if isinstance(map, (Additive, Affine)):
            assert torch.equal(run(x)[0], x)
        else:
            with pytest.raises(fk.DomainError, match=f"transform.map: {name} is {dtype}, wanted torch.float32"):
                run(x)


@pytest.mark.parametrize("mix", [MixLogistic(4), MixGaussian(4)], ids=str)
def test_the_components_of_a_mixture_part_in_training(mix):
    torch.manual_seed(0)
    x = torch.randn(200, 2) + 3 * torch.randn(200, 1).sign()
    net = fk.nets.MLP((1,), (1, mix.num_params), hidden=(8,), start=mix.start)
    made = fk.nets.MADE(2, mix.num_params, hidden=(8,), start=mix.start)
    for part in (fk.Elementwise(mix, (2,)), fk.Coupling(mix, net, dim=-1), fk.Autoregressive(mix, made)):
        flow = fk.Flow(part, fk.Normal((2,)))
        adam = torch.optim.Adam(flow.parameters(), 0.05)
        for _ in range(30):
            adam.zero_grad()
            (-flow(x).mean()).backward()
            adam.step()
        params = part.params if isinstance(part, fk.Elementwise) else net(x[:, :1])
        params = made(x) if isinstance(part, fk.Autoregressive) else params
        scales = mix.named_params(params)["log_scales"]
        assert scales.std(-1).min() > 1e-3  # from one gradient, they would still be equal
