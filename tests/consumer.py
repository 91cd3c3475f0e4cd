"""A program that uses flowkit as an installed package: scripts/package.py has mypy hold it to `--strict`."""

import torch
from torch import Tensor

import flowkit as fk
from flowkit.train import Settings, Trained, fit, toy


class Scale(fk.Bijector):
    """z = 2 x."""

    in_ndim = out_ndim = 0

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return 2 * x, self.log_term(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z / 2, -self.log_term(z)

    def log_term(self, value: Tensor) -> Tensor:
        return torch.full_like(value, 2.0, dtype=fk.functional.log_term_dtype(value.dtype)).log()


def build() -> fk.Flow:
    mix = fk.maps.MixLogistic(components=4)
    couple = fk.Coupling(mix, fk.nets.MLP((1,), (1, mix.num_params)), dim=-1)
    return fk.Flow(fk.Chain(scale=Scale(), norm=fk.ActNorm((2,)), couple=couple), base=fk.Normal((2,)))


def train(flow: fk.Flow, points: Tensor) -> float:
    fk.initialize(flow, points)
    optimizer = torch.optim.Adam(flow.parameters())
    loss = -flow(points).mean()
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.item()


def use(flow: fk.Flow, points: Tensor) -> Tensor:
    z, log_det = flow.transform(points)
    x, back = flow.transform.inverse(z)
    drawn, log_prob = flow.sample_and_log_prob((3,), generator=torch.Generator().manual_seed(0))
    bits: Tensor = fk.metrics.bits_per_dim(flow, points)
    tight: Tensor = fk.metrics.log_prob_bound(flow, points, draws=2)
    fk.testing.check_transform(Scale(), event_shape=(2,), skip=["compiles"])
    with fk.debugging.validation(flow):
        flow.log_prob(x)
    return torch.stack([log_det.sum(), back.sum(), drawn.sum(), log_prob.sum(), bits.sum(), tight.sum()])


def score(points: Tensor) -> Trained:
    model: fk.Flow = fk.zoo.nsf(2, transforms=1, hidden=(8,), bound=5.0)
    affine: fk.Transform = fk.zoo.iaf(2).transform
    assert affine.inv.in_ndim == affine.out_ndim
    return fit(model, points, Settings(steps=1, batch=8), progress=False)


if __name__ == "__main__":
    flow, points = build(), toy.two_moons(64)
    print(train(flow, points), use(flow, points), score(points).step, flow.summary())
