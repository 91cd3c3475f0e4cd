"""Eight steps of Glow on images of 12 channels: training steps and inverse, in float32 and with bfloat16 nets."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flowkit as fk
from benchmarks.measure import Cell, Contestant, Contract, compiled, relative

__all__ = ["TITLE", "cells"]

TITLE = "Glow: 8 steps on (16, 12, 16, 16), the same nets of 64 filters in all"


class Steps(NamedTuple):
    """Both directions: x to z and its log-term, and z to x."""

    module: nn.Module
    to_latent: Callable[[Tensor], tuple[Tensor, Tensor]]
    from_latent: Callable[[Tensor], Tensor]


def flowkit(shape: tuple[int, int, int], steps: int, filters: int, zoo: bool = False) -> Steps:
    """Learned rotations, and the conditioner that all others have; or the zoo's, with weight norm and gains."""
    c, h, w = shape

    def step() -> fk.Chain:
        affine, mix = fk.maps.Affine(), fk.Conv1x1(shape)
        nn.init.orthogonal_(mix.weight)
        if zoo:
            conditioner = fk.nets.ConvNet((c // 2, h, w), affine.num_params, filters=filters)
        else:
            conditioner = _ParametersLast(net(c // 2, c // 2 * affine.num_params, filters), affine.num_params)
        return fk.Chain(norm=fk.ActNorm((c, 1, 1)), mix=mix, couple=fk.Coupling(affine, conditioner, dim=-3))

    chain = fk.Chain(*(step() for _ in range(steps)))
    return Steps(chain, chain, lambda z: chain.inverse(z)[0])


class _ParametersLast(nn.Module):
    def __init__(self, net: nn.Module, parameters: int) -> None:
        super().__init__()
        self.net, self.parameters = net, parameters

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        return self.net(x).unflatten(1, (-1, self.parameters)).movedim(2, -1)


def net(inputs: int, outputs: int, filters: int) -> nn.Module:
    """The conditioner of all."""
    return nn.Sequential(
        nn.Conv2d(inputs, filters, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(filters, filters, 1),
        nn.ReLU(),
        nn.Conv2d(filters, outputs, 3, padding=1),
    )


class PlainStep(nn.Module):
    """One step, from the paper's table 1."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.log_gain, self.bias = (nn.Parameter(torch.zeros(channels, 1, 1)) for _ in range(2))
        self.mix = nn.Parameter(nn.init.orthogonal_(torch.empty(channels, channels)))
        self.net = net(channels // 2, channels, filters)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pixels = x.shape[-2] * x.shape[-1]
        x = x * self.log_gain.exp() + self.bias
        x = F.conv2d(x, self.mix[:, :, None, None])
        first, second = x.chunk(2, 1)
        log_scale, shift = self.net(first).chunk(2, 1)
        second = second * log_scale.exp() + shift
        term = log_scale.sum((1, 2, 3)) + pixels * (self.log_gain.sum() + torch.linalg.slogdet(self.mix)[1])
        return torch.cat([first, second], 1), term

    def inverse(self, z: Tensor) -> Tensor:
        """x of z."""
        first, second = z.chunk(2, 1)
        log_scale, shift = self.net(first).chunk(2, 1)
        x = torch.cat([first, (second - shift) * torch.exp(-log_scale)], 1)
        x = F.conv2d(x, torch.linalg.inv(self.mix)[:, :, None, None])
        return (x - self.bias) * torch.exp(-self.log_gain)


def plain(shape: tuple[int, int, int], steps: int, filters: int) -> Steps:
    """The baseline."""
    parts = nn.ModuleList(PlainStep(shape[0], filters) for _ in range(steps))

    def to_latent(x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros(())
        for part in parts:
            x, term = part(x)
            total = total + term
        return x, total

    def from_latent(z: Tensor) -> Tensor:
        for part in reversed(parts):  # type: ignore[call-overload]
            z = part.inverse(z)
        return z

    return Steps(parts, to_latent, from_latent)


def nflows(shape: tuple[int, int, int], steps: int, filters: int) -> Steps:
    """nflows' parts; its 1x1 convolution is a permutation and an LU product."""
    from nflows.transforms import ActNorm, AffineCouplingTransform, CompositeTransform, OneByOneConvolution

    c = shape[0]
    mask = torch.arange(c) >= c // 2

    def step() -> list[nn.Module]:
        coupling = AffineCouplingTransform(mask, lambda inputs, outputs: _IgnoresContext(net(inputs, outputs, filters)))
        norm = ActNorm(c)
        norm.initialized.fill_(True)
        return [norm, OneByOneConvolution(c), coupling]

    chain = CompositeTransform([part for _ in range(steps) for part in step()])
    return Steps(chain, chain, lambda z: chain.inverse(z)[0])


class _IgnoresContext(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        return self.net(x)


def normflows(shape: tuple[int, int, int], steps: int, filters: int) -> Steps:
    """normflows' Glow blocks; its inverse is from data to latent."""
    from normflows.flows import GlowBlock

    blocks = nn.ModuleList(GlowBlock(shape[0], filters) for _ in range(steps))
    for block in blocks:
        block.flows[-1].data_dep_init_done = torch.tensor(1.0)

    def to_latent(x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros(())
        for block in blocks:
            x, term = block.inverse(x)
            total = total + term
        return x, total

    def from_latent(z: Tensor) -> Tensor:
        for block in reversed(blocks):  # type: ignore[call-overload]
            z = block(z)[0]
        return z

    return Steps(blocks, to_latent, from_latent)


def freia(shape: tuple[int, int, int], steps: int, filters: int) -> Steps:
    """FrEIA's blocks of affine, rotation and coupling; the rotations are fixed, so it has less to do."""
    from FrEIA.framework import SequenceINN
    from FrEIA.modules import AllInOneBlock

    chain = SequenceINN(*shape)
    for _ in range(steps):
        chain.append(
            AllInOneBlock,
            subnet_constructor=lambda inputs, outputs: net(inputs, outputs, filters),
            permute_soft=True,
        )
    return Steps(chain, chain, lambda z: chain(z, rev=True)[0])


LIBRARIES: dict[str, Callable[[tuple[int, int, int], int, int], Steps]] = {
    "flowkit": flowkit,
    "flowkit, zoo's net": functools.partial(flowkit, zoo=True),
    "plain": plain,
    "nflows": nflows,
    "normflows": normflows,
    "FrEIA": freia,
}


def moderate(module: nn.Module) -> None:
    """Last layers that do something: they start at zero in some libraries, and large in others."""
    torch.manual_seed(0)
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 4 and weight.shape[-1] == 3 and weight.shape[0] < 64:
            nn.init.normal_(weight, std=0.005)


def half(run: Callable[..., Any], on: bool = True) -> Callable[..., Any]:
    """`run` with its nets in bfloat16."""

    def inner(*args: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16) if on else contextlib.nullcontext():
            return run(*args)

    return inner


def cells(contract: Contract) -> Iterator[Cell]:
    """The loss of a standard normal with its backward pass, and the inverse."""
    (rows, *shape), steps, filters = ((2, 4, 4, 4), 2, 8) if contract.tiny else ((16, 12, 16, 16), 8, 64)
    size = (shape[0], shape[1], shape[2])
    x = torch.randn(rows, *size, generator=torch.Generator().manual_seed(1))
    made = {}
    for library, build in LIBRARIES.items():
        torch.manual_seed(0)
        made[library] = build(size, steps, filters)
        moderate(made[library].module)
    exact = {}
    for library, build in LIBRARIES.items():
        torch.manual_seed(0)  # some keep a fixed rotation outside of their state
        exact[library] = build(size, steps, filters)
        exact[library].module.load_state_dict(made[library].module.state_dict())
        exact[library].module.double()
    chain = copy.deepcopy(made["flowkit"].module).to(memory_format=torch.channels_last)
    made["channels last"] = Steps(chain, chain, lambda z: chain.inverse(z)[0])
    exact["channels last"] = exact["flowkit"]

    def loss(model: Steps, to_latent: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
        z, term = to_latent(x)
        return (0.5 * z.square().sum((1, 2, 3)) - term).mean()

    def training(library: str, wrap: Callable[..., Any] = lambda f: f, tolerance: float | None = None) -> Contestant:
        model = made[library]
        objective = wrap(lambda x: loss(model, model.to_latent, x))
        parameters = [p for p in model.module.parameters() if p.requires_grad]

        def step() -> list[Tensor]:
            model.module.zero_grad(set_to_none=True)
            objective(x).backward()
            return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]

        def error(found: list[Tensor]) -> float:
            truth = exact[library]
            truth.module.zero_grad(set_to_none=True)
            loss(truth, truth.to_latent, x.double()).backward()
            wanted = [
                torch.zeros_like(p) if p.grad is None else p.grad for p in truth.module.parameters() if p.requires_grad
            ]
            largest = max(each.abs().max().item() for each in wanted)
            return relative([each / largest for each in found], [each / largest for each in wanted])

        return Contestant(step, error, tolerance)

    def inverse(library: str, wrap: Callable[..., Any] = lambda f: f, tolerance: float | None = None) -> Contestant:
        from_latent = wrap(made[library].from_latent)

        def run() -> Tensor:
            with torch.no_grad():
                return from_latent(x)

        def residual(found: Tensor) -> float:
            with torch.no_grad():
                return relative((exact[library].to_latent(found.double())[0],), (x,))

        return Contestant(run, residual, tolerance)

    def together(function: Callable[..., Any]) -> Callable[..., Any]:
        return half(compiled(function, contract))

    def everyone(make: Callable[..., Contestant]) -> dict[str, Contestant]:
        own = {
            "flowkit": make("flowkit"),
            "flowkit, compiled": make("flowkit", lambda f: compiled(f, contract)),
            "flowkit, bf16": make("channels last", half, 0.1),
            "flowkit, bf16, compiled": make("channels last", together, 0.1),
        }
        return {**own, **{library: make(library) for library in LIBRARIES if library != "flowkit"}}

    yield Cell("forward and backward", everyone(training), tolerance=1e-3, memory=True)
    yield Cell("inverse", everyone(inverse), tolerance=1e-3)
