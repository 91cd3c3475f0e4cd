"""MAF and NSF of one size in several libraries: densities, training steps, samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import models, spline
from benchmarks.measure import Cell, Contestant, Contract, compiled, relative

__all__ = ["TITLE", "cells"]

TITLE = "MAF and NSF: 3 layers, hidden (128, 128), 8 bins, 1,024 rows"
BOUND = spline.BOUND


class PlainMade(nn.Module):
    """A masked perceptron from the paper's formulas; its outputs are (batch, features, out)."""

    def __init__(self, features: int, out: int, hidden: Sequence[int], order: Tensor) -> None:
        super().__init__()
        self.features, self.out = features, out
        degrees = [order, *(torch.arange(width) % max(features - 1, 1) for width in hidden), order]
        layers, masks = [], []
        for k, (below, above) in enumerate(itertools.pairwise(degrees)):
            last = k == len(hidden)
            mask = (above[:, None] > below if last else above[:, None] >= below).float()
            masks.append(mask.repeat_interleave(out, 0) if last else mask)
            layers.append(nn.Linear(masks[-1].shape[1], masks[-1].shape[0]))
        self.layers = nn.ModuleList(layers)
        for k, mask in enumerate(masks):
            self.register_buffer(f"mask{k}", mask)

    def forward(self, x: Tensor) -> Tensor:
        for k, layer in enumerate(self.layers):
            x = F.linear(x.relu() if k else x, layer.weight * getattr(self, f"mask{k}"), layer.bias)
        return x.unflatten(-1, (self.features, self.out))


class PlainFlow(nn.Module):
    """Layers of a map of each feature, conditioned by a masked perceptron; a sample takes a pass for each feature."""

    def __init__(self, features: int, transforms: int, hidden: Sequence[int], bins: int = 0) -> None:
        super().__init__()
        orders = [torch.arange(features) if k % 2 == 0 else torch.arange(features).flip(0) for k in range(transforms)]
        out = 3 * bins - 1 if bins else 2
        self.bins = bins
        self.nets = nn.ModuleList(PlainMade(features, out, hidden, order) for order in orders)

    def _map(self, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if self.bins:
            return spline.plain(x, *params.split([self.bins, self.bins, self.bins - 1], -1), inverse)
        shift, log_scale = params.unbind(-1)
        if inverse:
            return (x - shift) * torch.exp(-log_scale), -log_scale
        return x * log_scale.exp() + shift, log_scale

    def to_latent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z, and the sum of the log-terms."""
        total = torch.zeros(())
        for net in self.nets:
            x, term = self._map(x, net(x), False)
            total = total + term.sum(-1)
        return x, total

    def log_prob(self, x: Tensor) -> Tensor:
        """Under a standard normal base."""
        z, total = self.to_latent(x)
        return total - 0.5 * (z.square() + 1.8378770664093453).sum(-1)

    def from_latent(self, z: Tensor) -> Tensor:
        """x of z."""
        for net in reversed(self.nets):
            x = torch.zeros_like(z)
            for _ in range(z.shape[-1]):
                x = self._map(z, net(x), True)[0]
            z = x
        return z


def plain(features: int, transforms: int, hidden: Sequence[int], bins: int = 0) -> models.Model:
    """The baseline."""
    flow = PlainFlow(features, transforms, hidden, bins)
    return models.Model(flow, flow.log_prob, flow.from_latent, lambda x: flow.to_latent(x)[0])


def family(name: str, features: int, transforms: int, hidden: Sequence[int], bins: int):
    """Who builds a flow of this family and size, by name."""
    sizes, splines = (features, transforms, hidden), (features, transforms, hidden, bins, BOUND)
    if name == "MAF":
        return {
            "flowkit": lambda: models.flowkit_maf(*sizes),
            "plain": lambda: plain(*sizes),
            "zuko": lambda: models.zuko_model("MAF", *sizes),
            "nflows": lambda: models.nflows_maf(*sizes),
            "normflows": lambda: models.normflows_maf(*sizes),
            "Pyro": lambda: models.pyro_maf(*sizes),
        }
    return {
        "flowkit": lambda: models.flowkit_nsf(*splines),
        "plain": lambda: plain(*sizes, bins),
        "zuko": lambda: models.zuko_model("NSF", *sizes, bins=bins),
        "nflows": lambda: models.nflows_nsf(*splines),
        "normflows": lambda: models.normflows_nsf(*splines),
        "Pyro": lambda: models.pyro_nsf(*splines),
    }


def generic(model: models.Model) -> models.Model:
    """The model with last layers that do something: they start at zero in some libraries."""
    torch.manual_seed(0)
    for parameter in model.module.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.kaiming_uniform_(parameter, a=5**0.5)
    return model


def cells(contract: Contract) -> Iterator[Cell]:
    """log_prob, log_prob with backward, and what sampling does to a latent."""
    rows, hidden, bins = (8, (16, 16), 4) if contract.tiny else (1024, (128, 128), 8)
    for features in (3,) if contract.tiny else (8, 64):
        for name in ("MAF", "NSF"):
            yield from _family(name, features, rows, hidden, bins, contract)


def _family(
    name: str, features: int, rows: int, hidden: Sequence[int], bins: int, contract: Contract
) -> Iterator[Cell]:
    builders = family(name, features, 3, hidden, bins)
    torch.manual_seed(0)
    flows = {library: generic(build()) for library, build in builders.items()}
    exact = {library: _in_double(builders[library], flows[library]) for library in flows}
    x, z = torch.randn(rows, features), torch.randn(rows, features)

    def densities(library: str, log_prob: Callable[[Tensor], Tensor]) -> Contestant:
        truth = exact[library].log_prob
        return Contestant(lambda: log_prob(x), lambda found: relative((found,), (truth(x.double()),)))

    def training(library: str, log_prob: Callable[[Tensor], Tensor]) -> Contestant:
        model = flows[library]

        def step() -> list[Tensor]:
            model.module.zero_grad(set_to_none=True)
            log_prob(x).mean().backward()
            return [parameter.grad for parameter in model.module.parameters() if parameter.grad is not None]

        def error(found: list[Tensor]) -> float:
            exact[library].module.zero_grad(set_to_none=True)
            exact[library].log_prob(x.double()).mean().backward()
            truth = [p.grad for p in exact[library].module.parameters() if p.grad is not None]
            largest = max(each.abs().max().item() for each in truth)
            return relative([each / largest for each in found], [each / largest for each in truth])

        return Contestant(step, error)

    def sampling(library: str, from_latent: Callable[[Tensor], Tensor]) -> Contestant:
        def run() -> Tensor:
            with torch.no_grad():
                return from_latent(z)

        def residual(found: Tensor) -> float:
            with torch.no_grad():
                return relative((exact[library].to_latent(found.double()),), (z,))

        return Contestant(run, residual)

    def everyone(make: Callable[..., Contestant], method: str) -> dict[str, Contestant]:
        made = {library: make(library, getattr(model, method)) for library, model in flows.items()}
        own = getattr(flows["flowkit"], method)
        fast = {} if contract.quick else {"flowkit, compiled": make("flowkit", compiled(own, contract))}
        return {"flowkit": made.pop("flowkit"), **fast, **made}

    yield Cell(f"{name}, d = {features}, log_prob", everyone(densities, "log_prob"), tolerance=1e-3)
    yield Cell(f"{name}, d = {features}, log_prob and backward", everyone(training, "log_prob"), tolerance=1e-3)
    slow = everyone(sampling, "from_latent")
    if features > 8:
        slow.pop("flowkit, compiled", None)  # one graph of all features in turn: minutes of compilation
        if contract.quick and name == "NSF":
            slow = {library: slow[library] for library in ("flowkit", "zuko")}  # many seconds for each of the others
    yield Cell(f"{name}, d = {features}, sampling", slow, tolerance=1e-3)


def _in_double(build: Callable[[], models.Model], model: models.Model) -> models.Model:
    """The same flow in float64."""
    wide = build()
    wide.module.load_state_dict(model.module.state_dict())
    wide.module.double()
    return wide
