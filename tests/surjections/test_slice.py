"""What is particular to factoring out: the density stays exact, at several scales too; turned round it augments."""

import copy

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.maps import Affine


class Head(nn.Module):
    """A convolution that gives `out` parameters for each element of as many channels."""

    def __init__(self, channels, out):
        super().__init__()
        self.out = out
        self.conv = nn.Conv2d(channels, channels * out, 1)

    def forward(self, x, context=None):
        flat = x.reshape(-1, *x.shape[-3:])
        params = self.conv(flat).unflatten(1, (-1, self.out)).movedim(2, -1)
        return params.reshape(*x.shape, self.out)


def couple(channels):
    return fk.AffineCoupling(Head(channels // 2, 2), dim=-3, log_scale_bound=1.0)


def normal_given_kept(channels, size):
    """Glow's: what is dropped is normal, its parameters a convolution of what is kept."""
    read = fk.FromContext(Affine(log_scale_bound=1.0), Head(channels, 2), event_ndim=3)
    return fk.Flow(read, fk.Normal((channels, size, size)), context_shape=(channels, size, size))


def multi_scale():
    """(1, 4, 4): squeeze, couple, drop half; again; and once more at the coarsest scale."""
    return fk.Flow(
        fk.Chain(
            squeeze1=fk.Squeeze(),
            mix1=fk.LUConv1x1((4, 2, 2)),
            fine=couple(4),
            drop1=fk.Slice(2, normal_given_kept(2, 2), dim=-3),
            squeeze2=fk.Squeeze(),
            mix2=fk.LUConv1x1((8, 1, 1)),
            middle=couple(8),
            drop2=fk.Slice(4, fk.Normal((4, 1, 1)), dim=-3),
            coarse=couple(4),
        ),
        fk.Normal((4, 1, 1)),
    )


def perturbed(flow, scale=0.3):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return flow.double()


class Recording(fk.Distribution):
    """A base that shows what it was asked for."""

    def __init__(self, base):
        super().__init__()
        self.base, self.event_shape, self.seen = base, base.event_shape, []
        self.context_ndim = base.context_ndim

    def log_prob(self, x, context=None, *, generator=None):
        self.seen.append((x, context))
        return self.base.log_prob(x) if context is None else self.base.log_prob(x, context)


def test_the_density_of_several_scales_is_that_of_all_latents_together():
    """log p(x) against the densities of what was dropped and kept, and the determinant of x to all of them."""
    flow = perturbed(multi_scale())
    for name in ("drop1", "drop2"):
        flow.transform[name].base = Recording(flow.transform[name].base)
    drops = [flow.transform["drop1"].base, flow.transform["drop2"].base]

    def latents(x):
        z = flow.to_latent(x)
        return torch.cat([z.flatten(), *(drop.seen.pop()[0].flatten() for drop in drops)])

    assert flow.exact and flow.event_shape == (1, 4, 4)
    for x in torch.randn(3, 1, 4, 4, dtype=torch.double):
        got = flow.log_prob(x)
        dropped = sum(drop.base.log_prob(*[v for v in drop.seen.pop() if v is not None]) for drop in drops)
        jacobian = torch.autograd.functional.jacobian(latents, x).reshape(16, 16)
        drops[0].seen.clear(), drops[1].seen.clear()
        wanted = flow.base.log_prob(flow.to_latent(x)) + dropped + torch.linalg.slogdet(jacobian).logabsdet
        drops[0].seen.clear(), drops[1].seen.clear()
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_samples_of_several_scales_have_the_density_they_come_with():
    flow = perturbed(multi_scale())
    x, log_prob = flow.sample_and_log_prob((50,), generator=torch.Generator().manual_seed(1))
    assert x.shape == (50, 1, 4, 4)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=1e-9, atol=1e-9)
    again = flow.sample((50,), generator=torch.Generator().manual_seed(1))
    other = flow.sample((50,), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(again, x.detach())
    assert not torch.equal(other, again)


def test_the_density_of_two_scales_integrates_to_one():
    """The mean of p(x) / q(x) over draws of q, wide enough: 4 numbers are too many for a grid."""
    flow = fk.Flow(
        fk.Chain(
            fk.Squeeze(),
            fk.LUConv1x1((4, 1, 1)),
            couple(4),
            fk.Slice(2, normal_given_kept(2, 1), dim=-3),
            couple(2),
        ),
        fk.Normal((2, 1, 1)),
    )
    flow = perturbed(flow, 0.1)
    with torch.no_grad():
        samples = flow.sample((20000,), generator=torch.Generator().manual_seed(0)).flatten(1)
        mean, covariance = samples.mean(0), 2 * samples.T.cov()
        q = torch.distributions.MultivariateNormal(mean, covariance)
        torch.manual_seed(0)
        x = q.sample((200000,))
        ratio = (flow.log_prob(x.reshape(-1, 1, 2, 2)) - q.log_prob(x)).exp()
    error = (ratio.std() / len(ratio) ** 0.5).item()
    assert error < 0.01
    assert abs(ratio.mean().item() - 1) < 5 * error


def test_nothing_is_lost_against_a_flow_that_keeps_all():
    """With a standard normal dropped, the latents are those of a flow that leaves half of them alone."""

    class FirstHalf(fk.Bijector):
        in_ndim = out_ndim = 1

        def __init__(self, part):
            super().__init__()
            self.part = part

        def forward(self, x, context=None):
            z, l = self.part(x[..., :2])
            return torch.cat([z, x[..., 2:]], -1), l

        def inverse(self, z, context=None):
            x, l = self.part.inverse(z[..., :2])
            return torch.cat([x, z[..., 2:]], -1), l

    fine = fk.QRLinear(4)
    coarse = fk.MatrixExpLinear(2)
    sliced = fk.Flow(fk.Chain(fine, fk.Slice(2, fk.Normal((2,)), dim=-1), coarse), fk.Normal((2,)))
    whole = fk.Flow(fk.Chain(fine, FirstHalf(coarse)), fk.Normal((4,)))
    perturbed(sliced)
    x = torch.randn(7, 4, dtype=torch.double)
    torch.testing.assert_close(sliced.log_prob(x), whole.double().log_prob(x))


def test_every_parameter_of_every_scale_learns():
    flow = multi_scale()
    (-flow.log_prob(torch.randn(5, 1, 4, 4)).mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
    flow.zero_grad()
    flow.rsample((5,)).square().sum().backward()
    assert all(p.grad is not None for p in flow.transform["drop1"].base.parameters())


def test_an_unconditional_base_ignores_the_context_of_the_flow():
    flow = fk.Flow(
        fk.Chain(
            fk.FromContext(Affine(), nn.Unflatten(-1, (3, 2)), event_ndim=1), fk.Slice(1, fk.Normal((2,)), dim=-1)
        ),
        fk.Normal((1,)),
        context_shape=(6,),
    )
    x, log_prob = flow.sample_and_log_prob((4,), torch.randn(2, 6))
    assert x.shape == (4, 2, 3) and log_prob.shape == (4, 2)


def test_the_encoder_reads_what_is_kept_and_the_context():
    class Encoder(nn.Module):
        def forward(self, kept, context):
            return torch.cat([kept, context], -1)

    base = Recording(
        fk.Flow(
            fk.FromContext(Affine(), fk.nets.MLP((3,), (1, 2), hidden=(4,)), event_ndim=1),
            fk.Normal((1,)),
            context_shape=(3,),
        )
    )
    part = fk.Slice(2, base, dim=-1, encoder=Encoder())
    part(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([7.0]))
    rest, context = base.seen.pop()
    assert rest.tolist() == [3.0] and context.tolist() == [1.0, 2.0, 7.0]


def test_turned_round_it_augments_with_a_bound_that_good_noise_makes_tight():
    torch.manual_seed(0)
    x = torch.randn(6, 2, dtype=torch.double)
    turn = perturbed(fk.HouseholderLinear(3, bias=False))  # a standard normal stays one
    for noise, tight in ((fk.Normal((1,)), True), (fk.Normal((1,), scale=0.8), False)):
        flow = fk.Flow(fk.Chain(fk.Slice(2, noise, dim=-1).inv, copy.deepcopy(turn)), fk.Normal((3,))).double()
        assert not flow.exact and flow.event_shape == (2,)
        truth = fk.Normal((2,)).double().log_prob(x)
        bound = flow.log_prob(x.expand(4000, 6, 2), generator=torch.Generator().manual_seed(0))
        if tight:
            torch.testing.assert_close(bound, truth.expand_as(bound))
        else:
            assert (bound.mean(0) < truth - 0.01).all()
            torch.testing.assert_close(bound.exp().mean(0), truth.exp(), rtol=0.05, atol=0)
        assert flow.sample((5,)).shape == (5, 2)


def test_shapes_that_do_not_fit_are_named_with_the_part():
    flow = fk.Flow(fk.Chain(drop=fk.Slice(2, fk.Normal((3,)), dim=-1)), fk.Normal((2,)))
    part = flow.transform["drop"]
    for x, said in [((2,), "wanted more than the 2"), ((4,), r"Normal: x has shape \(2,\), wanted \(\*batch, 3\)")]:
        with pytest.raises(fk.ShapeError, match=f"transform.drop: .*{said}"):
            part(torch.zeros(x))
    with pytest.raises(fk.ShapeError, match=r"transform.drop: z has shape \(3,\), wanted \(\*batch, 2\)"):
        part.inverse(torch.zeros(3))
    image = fk.Slice(1, fk.Normal((1, 2, 2)), dim=-3)
    with pytest.raises(fk.ShapeError, match="the rest comes as"):
        image.inverse(torch.zeros(1, 3, 2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: fk.Slice(0, fk.Normal((1,)), dim=-1),
        lambda: fk.Slice(1.5, fk.Normal((1,)), dim=-1),
        lambda: fk.Slice(1, fk.Normal((1,)), dim=-1.0),
        lambda: fk.Slice(1, fk.Normal((1,)), dim=0),
        lambda: fk.Slice(1, fk.Normal((1,)), dim=-2),
        lambda: fk.Slice(1, fk.Normal((1,)), dim=-1, encoder=nn.Identity()),
        lambda: fk.Slice(1, fk.Flow(fk.Slice(1, fk.Normal((1,)), dim=-1).inv, fk.Normal((2,))), dim=-1),
        lambda: fk.Slice(1, fk.Flow(fk.Flip(-2), fk.Normal((2, 2)), context_ndim=1), dim=-1),
    ],
)
def test_impossible_settings_are_refused_with_what_was_wanted(make):
    with pytest.raises(ValueError, match="wanted"):
        make()


def test_a_base_of_torch_is_refused():
    with pytest.raises(TypeError, match="wanted a flowkit Distribution"):
        fk.Slice(1, torch.distributions.Normal(0.0, 1.0), dim=-1)
