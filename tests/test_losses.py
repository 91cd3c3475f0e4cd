"""Losses: their values, how often nets run, and the noise of their gradients."""

import math

import pytest
import torch

import flowkit as fk
from tests.support import perturb


def coupling_flow():
    torch.manual_seed(0)
    net = fk.nets.MLP(1, (1, 2), hidden=(8,))
    chain = fk.Chain(fk.ActNorm(2), fk.AffineCoupling(net, dim=-1, log_scale_bound=1.0))
    return perturb(fk.Flow(chain, fk.Normal(2)), 0.3).double()


def test_forward_kl_is_minus_the_mean_log_prob():
    flow, x = coupling_flow(), torch.randn(5, 2, dtype=torch.float64)
    assert torch.equal(fk.losses.forward_kl(flow, x), -flow.log_prob(x).mean())
    bound = fk.Flow(fk.Chain(fk.UniformDequantizer(4), fk.Logit(0.05)), fk.Normal(2))
    x = torch.randint(4, (5, 2))
    losses = [fk.losses.forward_kl(bound, x, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("path_gradient", [False, True])
def test_reverse_kl_of_normals_is_the_closed_form(path_gradient):
    q = fk.Normal(2, loc=0.5, scale=0.7, trainable=True).double()
    p = fk.Normal(2)
    found = fk.losses.reverse_kl(
        q,
        lambda x: p.log_prob(x) - 3.0,
        400_000,
        path_gradient=path_gradient,
        generator=torch.Generator().manual_seed(0),
    )
    wanted = 2 * (-math.log(0.7) + (0.49 + 0.25 - 1) / 2) + 3.0
    assert abs(found - wanted) < 5e-3
    found.backward()
    torch.testing.assert_close(q.loc.grad, torch.full((2,), 0.5).double(), rtol=0, atol=5e-3)
    torch.testing.assert_close(q.log_scale.grad, torch.full((2,), 0.49 - 1).double(), rtol=0, atol=1e-2)


def test_nets_run_once():
    flow, calls = coupling_flow(), []
    flow.transform[1].conditioner.register_forward_hook(lambda *_: calls.append("net"))
    fk.losses.forward_kl(flow, torch.randn(4, 2, dtype=torch.float64))
    assert len(calls) == 1
    fk.losses.reverse_kl(flow, lambda x: -x.square().sum(-1), 8)
    assert len(calls) == 2
    flow.sample_and_log_prob((3,))
    assert len(calls) == 3
    fk.losses.reverse_kl(flow, lambda x: -x.square().sum(-1), 8, path_gradient=True)
    assert len(calls) == 5


def gradient(flow, log_density, path_gradient, seed):
    loss = fk.losses.reverse_kl(
        flow, log_density, 16, path_gradient=path_gradient, generator=torch.Generator().manual_seed(seed)
    )
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(flow.parameters()))])


def test_the_path_gradient_has_no_noise_at_the_optimum():
    """At q = p, where the other one has; away from it the two estimate the same gradient."""
    target = coupling_flow().requires_grad_(False)
    flow = coupling_flow()
    plain = torch.stack([gradient(flow, target.log_prob, False, seed) for seed in range(20)])
    path = torch.stack([gradient(flow, target.log_prob, True, seed) for seed in range(20)])
    assert plain.std(0).max() > 0.1
    assert path.abs().max() < 1e-12
    away = perturb(coupling_flow(), 0.2, seed=1)
    plain, path = (
        torch.stack([gradient(away, target.log_prob, by_path, seed) for seed in range(400)])
        for by_path in (False, True)
    )
    error = (plain - path).std(0) / math.sqrt(400)
    assert ((plain - path).mean(0).abs() <= 4.5 * error + 1e-12).all()
    assert path.mean(0).norm() > 0.05


def test_conditional_flows_fit_one_density_for_each_context():
    base = fk.Given(fk.Normal(1), torch.nn.Embedding(2, 2), context_ndim=0)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(base.parameters(), 0.05)
    labels = torch.tensor([0, 1])
    for _ in range(400):
        optimizer.zero_grad()
        # Normals around -3 and 3 of deviation 0.5, not normalized.
        target = lambda x: -2 * (x - 6 * labels[:, None] + 3).square().sum(-1)  # noqa: E731
        fk.losses.reverse_kl(base, target, 32, labels, path_gradient=True).backward()
        optimizer.step()
    found = base.sample((20_000,), labels, generator=torch.Generator().manual_seed(0)).squeeze(-1)
    torch.testing.assert_close(found.mean(0), torch.tensor([-3.0, 3.0]), rtol=0, atol=0.05)
    torch.testing.assert_close(found.std(0), torch.tensor([0.5, 0.5]), rtol=0.05, atol=0)


def test_what_has_no_gradient_or_no_density_is_refused():
    def target(x):
        return -x.square().sum(-1)

    with pytest.raises(fk.NotExact, match="MixtureOfNormals draws without gradient"):
        fk.losses.reverse_kl(fk.MixtureOfNormals(2, 3), target, 8)
    with pytest.raises(fk.NotExact, match="Flow has only a bound"):
        fk.losses.reverse_kl(fk.Flow(fk.UniformDequantizer(4), fk.Uniform(2)), target, 8)
    with pytest.raises(fk.ShapeError, match=r"log_density gave \(8, 2\) for draws \(8, 2\), wanted \(8,\)"):
        fk.losses.reverse_kl(fk.Normal(2, trainable=True), lambda x: x, 8)


def test_an_empty_batch_has_no_mean_and_is_refused():
    base = fk.Normal(2)
    with pytest.raises(fk.ShapeError, match=r"forward_kl: x has shape \(0, 2\), an empty batch"):
        fk.losses.forward_kl(base, torch.zeros(0, 2))
    with pytest.raises(fk.ShapeError, match=r"reverse_kl: the draws have shape \(0, 2\), an empty batch"):
        fk.losses.reverse_kl(base, base.log_prob, 0)
