"""Data-dependent initialization: once, in either direction, without a trace."""

import pytest
import torch

import flowkit as fk


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (3, 1, 1)])
@pytest.mark.parametrize("inverse", [False, True])
def test_norm_is_normal_afterwards_in_the_direction_that_runs(shape, inverse):
    norm = fk.ActNorm(shape)
    flow = fk.Flow(norm.inv if inverse else norm, fk.Normal((3, 4, 4) if len(shape) == 3 else shape))
    x = 3 + 2 * torch.randn(200, *flow.event_shape)
    fk.initialize(flow, x)
    z = flow.to_latent(x)
    dims = (0, 2, 3) if len(shape) == 3 else 0
    assert z.mean(dims).abs().max() < 1e-5
    assert (z.std(dims, correction=0) - 1).abs().max() < 1e-4


def test_modes_gradients_and_methods_stay_as_they_were():
    flow = fk.zoo.flowpp(config="digits", filters=8, blocks=1)
    flow.transform["columns1"].eval()
    modes = [module.training for module in flow.modules()]
    fk.initialize(flow, torch.randint(17, (8, 1, 8, 8)))
    assert [module.training for module in flow.modules()] == modes
    assert all(p.grad is None for p in flow.parameters())
    assert not any("forward" in vars(module) or "inverse" in vars(module) for module in flow.modules())


def test_a_generator_makes_it_repeatable():
    x = torch.randint(17, (8, 1, 8, 8))
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        flow = fk.zoo.flowpp(config="digits", filters=8, blocks=1, dropout=0.0)
        torch.manual_seed(len(states))
        fk.initialize(flow, x, generator=torch.Generator().manual_seed(5))
        states.append(flow.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_one_example_is_refused():
    flow = fk.Flow(fk.ActNorm((2,)), fk.Normal((2,)))
    with pytest.raises(fk.ShapeError, match=r"transform: initialize got \(1, 2\), 1 value for each gain of \(2,\)"):
        fk.initialize(flow, torch.zeros(1, 2))


def test_values_that_are_not_finite_are_refused():
    flow = fk.Flow(fk.Chain(norm=fk.ActNorm((2,))), fk.Normal((2,)))
    with pytest.raises(ValueError, match="transform.norm would set itself from values that are not finite"):
        fk.initialize(flow, torch.tensor([[0.0, torch.nan], [1.0, 2.0]]))


def test_a_part_that_is_never_reached_is_named():
    class Idle(fk.Sigmoid):
        def __init__(self):
            super().__init__()
            self.spare = fk.ActNorm((2,))

    flow = fk.Flow(fk.Chain(idle=Idle()).inv, fk.Normal((2,)))
    with pytest.raises(ValueError, match="transform.transform.idle.spare was not reached"):
        fk.initialize(flow, torch.rand(5, 2))
