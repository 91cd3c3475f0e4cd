"""Densities of two dimensions: what they say of their points, and that models of the zoo learn them."""

import itertools
import math

import pytest
import torch

import flowkit as fk
from flowkit.train import toy

DRAWS = [getattr(toy, name) for name in toy.__all__]
N = 40_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def close(found, wanted, deviation):
    """A mean of N draws with this standard deviation is within five standard errors."""
    return abs(float(found) - wanted) < 5 * deviation / math.sqrt(N)


@pytest.mark.parametrize("draw", DRAWS, ids=toy.__all__)
def test_the_generator_alone_decides(draw):
    before = torch.random.get_rng_state()
    x = draw(100, generator=generator())
    assert x.shape == (100, 2)
    assert x.dtype == torch.float32
    assert torch.equal(x, draw(100, generator=generator()))
    assert not torch.equal(x, draw(100, generator=generator(1)))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(3)
    x = draw(100)
    torch.manual_seed(3)
    assert torch.equal(draw(100), x)


@pytest.mark.parametrize("draw", DRAWS, ids=toy.__all__)
def test_all_lie_about_zero_within_five(draw):
    x = draw(N, generator=generator())
    assert close(x[:, 0].mean(), 0, 3)
    assert close(x[:, 1].mean(), 0, 3)
    assert (x.abs() > 5).any(-1).float().mean() < 1e-3


@pytest.mark.parametrize("draw", DRAWS, ids=toy.__all__)
def test_no_points_are_refused(draw):
    with pytest.raises(ValueError, match=rf"{draw.__name__}: n is 0, wanted a whole number of at least 1"):
        draw(0)


@pytest.mark.parametrize("draw", [toy.two_moons, toy.eight_gaussians])
@pytest.mark.parametrize("noise", [-0.1, math.nan, math.inf])
def test_impossible_noise_is_refused(draw, noise):
    with pytest.raises(ValueError, match=f"{draw.__name__}: noise is {noise}"):
        draw(3, noise)


def test_two_moons_are_arcs_of_radius_two():
    x = toy.two_moons(1000, 0.0, generator=generator())
    upper, lower = (x + torch.tensor([1.0, 0.5]), x - torch.tensor([1.0, 0.5]))
    on_upper = ((upper.norm(dim=-1) - 2).abs() < 1e-5) & (upper[:, 1] > -1e-5)
    on_lower = ((lower.norm(dim=-1) - 2).abs() < 1e-5) & (lower[:, 1] < 1e-5)
    assert (on_upper | on_lower).all()
    assert 400 < on_upper.sum() < 600


def test_two_moons_have_the_moments_of_their_formula():
    x, y = toy.two_moons(N, 0.2, generator=generator()).double().unbind(-1)
    # t is uniform from 0 to pi: sin t has mean 2 / pi, cos t mean 0, both mean square 1/2, and their product mean 0
    assert close((x * x).mean(), 4 * (1 / 2 + 1 / 4) + 0.04, 3)
    assert close((y * y).mean(), 4 * (1 / 2 - 1 / math.pi + 1 / 16) + 0.04, 2)
    assert close((x * y).mean(), 4 * (1 / 8 - 1 / math.pi), 2)


def test_checkerboard_fills_its_eight_squares_alike():
    x = toy.checkerboard(N, generator=generator())
    place = ((x + 4) / 2).floor().long()
    shares = torch.bincount(place[:, 0] * 4 + place[:, 1], minlength=16) / N
    for column, row in itertools.product(range(4), range(4)):
        wanted = 1 / 8 if (column + row) % 2 == 0 else 0
        assert close(shares[column * 4 + row], wanted, math.sqrt(wanted * (1 - wanted)) + 1e-9)
    within = (x + 4) % 2
    assert close(within.mean(), 1, 1)
    assert close((within * within).mean(), 4 / 3, 2)


def test_pinwheel_has_the_symmetry_of_its_blades():
    x = toy.pinwheel(N, 5, generator=generator()).double()
    assert close(x.square().sum(-1).mean(), 4 * (1 + 0.09 + 0.01), 4)
    turned = torch.complex(*(x / x.norm(dim=-1, keepdim=True)).unbind(-1))
    for power in (1, 2, 3, 4):
        assert turned.pow(power).mean().abs() < 5 / math.sqrt(N)
    assert turned.pow(5).mean().abs() > 0.2


def test_pinwheel_bends_as_it_goes_outwards():
    x = toy.pinwheel(N, 1, generator=generator()).double()
    radius, angle = x.norm(dim=-1) / 2, torch.atan2(x[:, 1], x[:, 0])
    for low in (0.8, 1.0, 1.2):
        ring = angle[(radius > low) & (radius < low + 0.05)]
        assert abs(ring.median() - math.exp(low + 0.025) / 4) < 0.03


def test_eight_gaussians_sit_on_a_circle_in_equal_shares():
    x = toy.eight_gaussians(N, 0.0, generator=generator())
    assert torch.allclose(x.norm(dim=-1), torch.tensor(3.0))
    eighth = (torch.atan2(x[:, 1], x[:, 0]) / (math.pi / 4)).round().long() % 8
    assert all(close(share, 1 / 8, 0.34) for share in torch.bincount(eighth) / N)
    x = toy.eight_gaussians(N, 0.3, generator=generator())
    assert close(x.square().sum(-1).mean(), 9 + 2 * 0.09, 4)


@pytest.mark.parametrize(
    ("model", "draw"),
    [
        (lambda: fk.zoo.nsf(2, transforms=2, hidden=(32, 32), bound=5.0), toy.checkerboard),
        (lambda: fk.zoo.nsf(2, transforms=2, hidden=(32, 32), autoregressive=True, bound=5.0), toy.eight_gaussians),
        (lambda: fk.zoo.maf(2, transforms=3, hidden=(32, 32), batch_norm=False), toy.two_moons),
        (lambda: fk.zoo.realnvp_tabular(2, couplings=4, hidden=(32, 32)), toy.pinwheel),
    ],
    ids=["nsf", "nsf-autoregressive", "maf", "realnvp"],
)
def test_models_of_the_zoo_learn_in_a_few_steps(model, draw):
    torch.manual_seed(0)
    flow, data, held_out = model(), generator(1), draw(2000, generator=generator(2))
    adam = torch.optim.Adam(flow.parameters(), lr=5e-3)
    before = flow.log_prob(held_out).mean().item()
    for _ in range(40):
        adam.zero_grad()
        (-flow.log_prob(draw(128, generator=data)).mean()).backward()
        adam.step()
    assert flow.log_prob(held_out).mean().item() > before + 0.3
