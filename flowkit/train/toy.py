"""Densities of two dimensions to try flows on: all lie about 0, within [-5, 5] but for rare points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowkit.arguments import count

__all__ = ["checkerboard", "eight_gaussians", "pinwheel", "two_moons"]


def two_moons(n: int, noise: float = 0.2, *, generator: torch.Generator | None = None) -> Tensor:
    """Two half circles that reach into one another: x = 2 s (cos t - 1/2, sin t - 1/4) + noise e.

    s is 1 or -1, t uniform from 0 to pi, and e normal.

    Args:
        n: how many points.
        noise: standard deviation about the arcs, whose radius is 2.
        generator: for the draws, on its device; the global one if not given.

    Returns:
        (n, 2), float32.

    Raises:
        ValueError: for n below 1, or a negative noise.

    >>> import torch
    >>> two_moons(3, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([3, 2])
    """
    draw = _Draws("two_moons", n, noise, generator)
    side, angle = 2.0 * draw.integers(2) - 1, math.pi * draw.uniform()
    arc = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=-1)
    return 2 * side[:, None] * arc + noise * draw.normal(2)


def checkerboard(n: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Uniform on the 8 squares of side 2 in [-4, 4]^2 whose row and column add to an even number.

    The density is 1/32 there, so that no model gets more than -log 32 = -3.4657 nats.

    Args:
        n: how many points.
        generator: for the draws, on its device; the global one if not given.

    Returns:
        (n, 2), float32.

    Raises:
        ValueError: for n below 1.

    >>> import torch
    >>> x = checkerboard(100, generator=torch.Generator().manual_seed(0))
    >>> bool((((x + 4) / 2).floor().sum(-1) % 2 == 0).all())
    True
    """
    draw = _Draws("checkerboard", n, 0.0, generator)
    column = draw.integers(4)
    row = 2 * draw.integers(2) + column % 2
    corner = torch.stack([column, row], dim=-1)
    return 2 * (corner + torch.stack([draw.uniform(), draw.uniform()], dim=-1)) - 4


def pinwheel(n: int, blades: int = 5, *, generator: torch.Generator | None = None) -> Tensor:
    """Blades that bend as they go outwards: x = 2 R(2 pi k / blades + exp(a) / 4) (a, b), R(t) the turn by t.

    k is one of the blades, a normal with mean 1 and standard deviation 0.3, b normal with 0 and 0.1.

    Args:
        n: how many points.
        blades: how many blades.
        generator: for the draws, on its device; the global one if not given.

    Returns:
        (n, 2), float32.

    Raises:
        ValueError: for n or blades below 1.

    Reference:
        Johnson, Duvenaud, Wiltschko, Datta, Adams, "Composing graphical models with neural networks for structured
        representations and fast inference", 2016, https://arxiv.org/abs/1603.06277.

    >>> import torch
    >>> pinwheel(3, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([3, 2])
    """
    draw, blades = _Draws("pinwheel", n, 0.0, generator), count("pinwheel", "blades", blades)
    along, across = (draw.normal(2) * torch.tensor([0.3, 0.1], device=draw.device)).unbind(-1)
    along = along + 1
    angle = 2 * math.pi / blades * draw.integers(blades) + along.exp() / 4
    cos, sin = angle.cos(), angle.sin()
    return 2 * torch.stack([cos * along - sin * across, sin * along + cos * across], dim=-1)


def eight_gaussians(n: int, noise: float = 0.3, *, generator: torch.Generator | None = None) -> Tensor:
    """An equal mixture of eight normal densities on a circle: x = 3 (cos t, sin t) + noise e, t = k pi / 4.

    k is one of 0 to 7, and e normal.

    Args:
        n: how many points.
        noise: standard deviation of each.
        generator: for the draws, on its device; the global one if not given.

    Returns:
        (n, 2), float32.

    Raises:
        ValueError: for n below 1, or a negative noise.

    >>> import torch
    >>> eight_gaussians(3, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([3, 2])
    """
    draw = _Draws("eight_gaussians", n, noise, generator)
    angle = math.pi / 4 * draw.integers(8)
    return 3 * torch.stack([angle.cos(), angle.sin()], dim=-1) + noise * draw.normal(2)


class _Draws:
    """n draws at a time from one generator, on its device."""

    def __init__(self, name: str, n: int, noise: float, generator: torch.Generator | None) -> None:
        if not 0 <= noise < math.inf:
            raise ValueError(f"{name}: noise is {noise}, wanted at least 0 and finite")
        self.n, self.generator = count(name, "n", n), generator
        self.device = None if generator is None else generator.device

    def integers(self, below: int) -> Tensor:
        return torch.randint(below, (self.n,), generator=self.generator, device=self.device)

    def uniform(self) -> Tensor:
        return torch.rand(self.n, generator=self.generator, device=self.device, dtype=torch.float32)

    def normal(self, features: int) -> Tensor:
        return torch.randn(self.n, features, generator=self.generator, device=self.device, dtype=torch.float32)
