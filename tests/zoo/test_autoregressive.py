"""Masked, inverse and spline flows as their papers have them, and that they learn."""

import pytest
import torch

import flowkit as fk
from tests.support import perturb


def count(flow):
    return sum(parameter.numel() for parameter in flow.parameters())


# Of the same layers put together with nflows 0.14, without the free splines of the halves that pass.
@pytest.mark.parametrize(("autoregressive", "parameters"), [(False, 2819712), (True, 3004722)])
def test_a_spline_flow_has_the_parameters_of_the_papers_model_for_power(autoregressive, parameters):
    assert count(fk.zoo.nsf(6, autoregressive=autoregressive)) == parameters


def test_a_masked_flow_reverses_its_order_and_normalizes_after_every_layer():
    flow = fk.zoo.maf(3, hidden=(4,))
    assert [[type(part).__name__ for part in step] for step in flow.transform] == [["Autoregressive", "BatchNorm"]] * 5
    orders = [step["made"].conditioner.groups for step in flow.transform]
    assert orders == [((0,), (1,), (2,)), ((2,), (1,), (0,))] * 2 + [((0,), (1,), (2,))]
    assert [type(part).__name__ for part in fk.zoo.maf(3, 1, batch_norm=False).transform[0]] == ["Autoregressive"]


def test_an_inverse_flow_is_a_masked_one_turned_round():
    torch.manual_seed(0)
    inverse = perturb(fk.zoo.iaf(3, transforms=2, hidden=(8,))).double()
    masked = fk.Flow(inverse.transform.inv, fk.Normal((3,)).double())
    x = torch.randn(5, 3, dtype=torch.double)
    z, _ = masked.transform(x)
    torch.testing.assert_close(inverse.from_latent(x), z)
    torch.testing.assert_close(inverse.to_latent(z), x)


@pytest.mark.parametrize("exponent", [100.0, -100.0])
def test_a_masked_flow_has_a_density_where_its_nets_go_too_far(exponent):
    """Off the data a trained net reached exponents of 90, which gave NaN in the middle of a picture."""
    flow = fk.zoo.maf(2, hidden=(8,), batch_norm=False)
    for step in flow.transform:
        torch.nn.init.constant_(step["made"].conditioner.layers[-1].bias, exponent)
    x = torch.tensor([[1.0, 2.0]])
    assert flow.log_prob(x).isfinite()
    assert flow.transform(x)[1].abs() <= 5 * 2 * 7


def runs_of_nets(flow, work):
    runs = []
    for module in flow.modules():
        if isinstance(module, fk.nets.MADE | fk.nets.MLP):
            module.register_forward_hook(lambda *_: runs.append(1))
    work()
    return len(runs)


@pytest.mark.parametrize(
    "flow",
    [
        fk.zoo.maf(4, hidden=(8,)),
        fk.zoo.iaf(4, transforms=5, hidden=(8,)),
        fk.zoo.nsf(4, transforms=5, hidden=(8,)),
        fk.zoo.nsf(4, transforms=5, hidden=(8,), autoregressive=True),
    ],
    ids=["maf", "iaf", "nsf", "nsf-autoregressive"],
)
def test_a_sample_and_its_density_run_every_net_once(flow):
    assert runs_of_nets(flow, lambda: flow.sample_and_log_prob((2,))) == 5


MODELS = {
    "maf": lambda **options: fk.zoo.maf(2, 3, (32,), **options),
    "iaf": lambda **options: fk.zoo.iaf(2, 3, (32,), **options),
    "nsf": lambda **options: fk.zoo.nsf(2, 2, (32,), **options),
    "nsf-autoregressive": lambda **options: fk.zoo.nsf(2, 2, (32,), autoregressive=True, **options),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_conditional_flow_has_a_density_for_each_context(name):
    torch.manual_seed(0)
    flow = perturb(MODELS[name](context_shape=(3,)), scale=0.1).eval()
    x, context = torch.randn(4, 2), torch.randn(4, 3)
    assert flow.event_shape == (2,) and flow.sample((5,), context).shape == (5, 4, 2)
    log_prob = flow.log_prob(x, context)
    torch.testing.assert_close(flow.log_prob(x[1], context[1]), log_prob[1], rtol=1e-4, atol=1e-5)
    assert (flow.log_prob(x, context.flip(0)) - log_prob).abs().min() > 1e-4


@pytest.mark.parametrize("name", [name for name in MODELS if name != "iaf"])
def test_it_learns_what_no_normal_is(name):
    """A noisy parabola: the normal of its moments gives -3.24 nats, the truth -2.14."""

    def draw(n):
        u = torch.randn(n, 2)
        return torch.stack([u[:, 0], u[:, 0].square() - 1 + 0.5 * u[:, 1]], -1)

    torch.manual_seed(0)
    flow = MODELS[name]()
    adam = torch.optim.Adam(flow.parameters(), 1e-2)
    for _ in range(150):
        loss = -flow.log_prob(draw(256)).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        assert flow.eval().log_prob(draw(5000)).mean() > -2.4


@pytest.mark.parametrize(("name", "model"), [("maf", fk.zoo.maf), ("iaf", fk.zoo.iaf), ("nsf", fk.zoo.nsf)])
def test_what_makes_no_model_is_refused(name, model):
    with pytest.raises(ValueError, match=rf"{name}: context_shape is \(3, 4\), wanted \(size,\)"):
        model(2, context_shape=(3, 4))
    with pytest.raises(ValueError, match=f"{name}: transforms is 0, wanted a whole number of at least 1"):
        model(2, transforms=0)


def test_a_coupling_needs_two_features():
    with pytest.raises(ValueError, match="nsf: features is 1, wanted a whole number of at least 2"):
        fk.zoo.nsf(1)
    assert fk.zoo.nsf(1, hidden=(8,), autoregressive=True).sample((3,)).shape == (3, 1)
