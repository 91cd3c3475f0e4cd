"""What is particular to linear maps: where they start, which matrix it is, how they count pixels, what they reach."""

import math

import pytest
import torch

import flowkit as fk

LINEAR = [fk.LULinear, fk.QRLinear, fk.HouseholderLinear, fk.MatrixExpLinear]


def perturbed(part, scale=0.3):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return part


def matrix_of(part, size):
    """Column i is what becomes of the unit vector i."""
    with torch.no_grad():
        return (part(torch.eye(size, dtype=torch.double))[0] - part(torch.zeros(size, dtype=torch.double))[0]).mT


@pytest.mark.parametrize("cls", LINEAR)
@pytest.mark.parametrize("features", [1, 2, 5, 16])
def test_they_start_as_the_identity(cls, features):
    x = torch.randn(7, features)
    z, l = cls(features)(x)
    torch.testing.assert_close(z, x, rtol=0, atol=5e-6)
    assert torch.equal(l, torch.zeros(7))


def test_the_convolution_starts_as_the_identity():
    x = torch.randn(3, 2, 4, 2, 2)
    z, l = fk.LUConv1x1((2, 4, 2, 2))(x)
    assert torch.equal(z, x) and torch.equal(l, torch.zeros(3))


def test_lu_is_lower_times_upper():
    part = perturbed(fk.LULinear(4).double())
    factors = part.matrix.factors.detach()
    lower = factors.tril(-1) + torch.eye(4)
    upper = factors.triu(1) + factors.diagonal().exp().diag()
    torch.testing.assert_close(matrix_of(part, 4), lower @ upper)
    assert factors.numel() == 16


def test_qr_is_orthogonal_times_upper():
    part = perturbed(fk.QRLinear(4).double())
    factors = part.matrix.factors.detach()
    upper = factors.triu(1) + factors.diagonal().exp().diag()
    matrix = matrix_of(part, 4)
    orthogonal = matrix @ torch.linalg.inv(upper)
    torch.testing.assert_close(orthogonal @ orthogonal.mT, torch.eye(4, dtype=torch.double))
    # The same Q as LAPACK makes of the same vectors.
    vectors = factors.tril(-1) + torch.eye(4)
    wanted = -torch.linalg.householder_product(vectors, 2 / vectors.square().sum(0))
    torch.testing.assert_close(orthogonal, wanted)


def test_qr_reaches_a_quarter_turn():
    """Which has a leading minor of 0, so that no product of a lower and an upper triangle gives it."""
    part = fk.QRLinear(2)
    with torch.no_grad():
        part.matrix.factors[1, 0] = 1.0
    torch.testing.assert_close(matrix_of(part.double(), 2).abs(), torch.eye(2, dtype=torch.double).flip(0))


@pytest.mark.parametrize(("features", "reflections"), [(3, 2), (4, 4), (2, 6), (5, None)])
def test_householder_is_a_product_of_reflections(features, reflections):
    part = perturbed(fk.HouseholderLinear(features, reflections).double())
    wanted = torch.eye(features, dtype=torch.double)
    for v in part.matrix.vectors.detach():
        wanted = wanted @ (torch.eye(features) - 2 * torch.outer(v, v) / (v @ v))
    torch.testing.assert_close(matrix_of(part, features), wanted)
    torch.testing.assert_close(torch.linalg.det(wanted), torch.ones((), dtype=torch.double))


def test_householder_reflects_once_for_each_feature_if_they_are_even():
    assert [len(fk.HouseholderLinear(n).matrix.vectors) for n in (1, 2, 5, 6)] == [2, 2, 4, 6]


def test_matrix_exponential_of_a_skew_matrix_is_a_rotation():
    part = fk.MatrixExpLinear(2, bias=False).double()
    with torch.no_grad():
        part.matrix.exponent.copy_(torch.tensor([[0.0, -0.5], [0.5, 0.0]]))
    wanted = torch.tensor([[math.cos(0.5), -math.sin(0.5)], [math.sin(0.5), math.cos(0.5)]], dtype=torch.double)
    torch.testing.assert_close(matrix_of(part, 2), wanted)


@pytest.mark.parametrize("cls", LINEAR)
def test_many_features_come_back_in_float32(cls):
    part = perturbed(cls(128), scale=0.02)
    x = 5 * torch.randn(50, 128)
    z, l = part(x)
    back, minus = part.inverse(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-3)
    torch.testing.assert_close(minus, -l)
    log_det = torch.linalg.slogdet(matrix_of(part.double(), 128)).logabsdet
    torch.testing.assert_close(l[0].double(), log_det, rtol=0, atol=1e-4)


def test_convolution_is_the_vector_map_at_every_pixel_and_counts_them():
    """torchflows leaves the H W out."""
    conv = perturbed(fk.LUConv1x1((3, 4, 5)))
    linear = fk.LULinear(3, bias=False)
    linear.load_state_dict(conv.state_dict())
    x = torch.randn(2, 3, 4, 5)
    z, l = conv(x)
    at_pixels, each = linear(x.movedim(1, -1))
    torch.testing.assert_close(z.movedim(1, -1), at_pixels)
    torch.testing.assert_close(l, each.sum((1, 2)))


def test_convolution_counts_its_halves():
    conv = fk.LUConv1x1((2, 3, 4, 5))
    with torch.no_grad():
        conv.matrix.factors.copy_(torch.stack([math.log(2) * torch.eye(3), math.log(3) * torch.eye(3)]))
    assert conv(torch.zeros(2, 3, 4, 5))[1].item() == pytest.approx(20 * 3 * (math.log(2) + math.log(3)))


def test_permute_saves_its_order():
    drawn = fk.Permute(torch.randperm(20))
    other = fk.Permute(torch.randperm(20))
    other.load_state_dict(drawn.state_dict())
    x = torch.randn(20)
    assert torch.equal(other(x)[0], drawn(x)[0]) and torch.equal(drawn(x)[0], x[drawn.order])


@pytest.mark.parametrize(
    "make",
    [
        lambda: fk.LULinear(0),
        lambda: fk.HouseholderLinear(4, reflections=3),
        lambda: fk.HouseholderLinear(4, reflections=0),
        lambda: fk.LUConv1x1((3, 4)),
        lambda: fk.Permute((0, 2)),
        lambda: fk.Permute((0, 0, 1)),
        lambda: fk.Permute(()),
        lambda: fk.Permute((1, 0), dim=0),
    ],
)
def test_impossible_settings_are_refused_with_what_was_wanted(make):
    with pytest.raises(ValueError, match="wanted"):
        make()
