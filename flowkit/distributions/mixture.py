"""Mixtures of densities of one family."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkit.arguments import as_shape, finite, whole
from flowkit.distribution import drawn_with
from flowkit.distributions.family import Family, Parameters, as_parameter
from flowkit.distributions.location_scale import Normal
from flowkit.errors import DomainError, ShapeError
from flowkit.functional.reduce import sum_rightmost

__all__ = ["Mixture", "MixtureOfNormals"]


class Mixture(Family):
    """A mixture of K densities of one family: log p(x) = log of the sum over k of weights_k p_k(x).

    The first axis of the family's event counts the components: `Mixture(Normal((8, 2), loc=...))` has 8 components over
    events of shape (2,). The weights are trained if the family is, as `logits`, the logarithms of what they are
    proportional to. Samples draw a component, which has no gradient: `has_rsample` is False, and `rsample` refuses.

    Args:
        family: K densities along the first axis of its event, such as `Normal`, `StudentT`, `MultivariateNormal`.
        weights: K positive numbers; they count by their share of the sum. All equal if not given.

    Shapes:
        x: (*batch, *family.event_shape[1:]); log_prob: (*batch).

    Raises:
        TypeError: for a family whose parameters are not to be had.
        ShapeError: if the family's event has no axis of components, or the weights are not K.
        DomainError: if a weight is not positive and finite.
        ValueError: if all components are alike; in training they would stay so.

    >>> import torch, flowkit as fk
    >>> mixture = Mixture(fk.Normal((2, 1), loc=torch.tensor([[-3.0], [3.0]])), weights=[1.0, 3.0])
    >>> mixture.log_prob(torch.tensor([[-3.0], [3.0]])).exp()
    tensor([0.0997, 0.2992])
    >>> full = Mixture(fk.MultivariateNormal((8, 2), loc=torch.randn(8, 2), trainable=True))
    >>> full.sample((5,)).shape
    torch.Size([5, 2])
    """

    has_rsample = False
    logits: Tensor

    def __init__(self, family: Family, weights: Sequence[float] | Tensor | None = None) -> None:
        name = type(self).__name__
        if not isinstance(family, Family):
            raise TypeError(f"{name}: family is a {type(family).__name__}, wanted one such as flowkit.Normal")
        if family.event_ndim <= family.own_ndim or not family.event_shape[0]:
            raise ShapeError(
                f"{name}: the event of the family is {tuple(family.event_shape)}, wanted (components, *event)"
            )
        event = family.event_shape[1:]
        self._components = torch.Size(family.event_shape[:1])
        own = {key: value.expand(family.shape_of(key)) for key, value in family.own_parameters().items()}
        if self._components[0] > 1 and all(_alike(value) for value in own.values()):
            raise ValueError(
                f"{name}: all {self._components[0]} components are alike, and would stay so in training; "
                f"wanted them spread, such as loc=torch.randn{tuple(family.event_shape)}"
            )
        first = next(iter(own.values()))
        values = as_parameter(name, "weights", 1.0 if weights is None else weights, self._components)
        values = values.detach().to(first)
        if values.device.type != "meta" and not (values > 0).all():
            raise DomainError(f"{name}: weights are {weights}, wanted positive and finite")
        super().__init__(event, family.trainable, logits=(values.log() + first.new_zeros(())).expand(values.shape))
        self.family = family

    @property
    def own_ndim(self) -> int:  # type: ignore[override]
        """One piece is the whole event."""
        return self.event_ndim

    @property
    def weights(self) -> Tensor:
        """The shares of the components: (K), their sum is 1."""
        return self.logits.expand(self._components).softmax(-1)

    @property
    def params_shape(self) -> torch.Size:
        """The logits, then the family's own, flattened."""
        return torch.Size((self._components[0] + self.family.params_shape.numel(),))

    def shape_of(self, name: str) -> torch.Size:
        return self._components if name == "logits" else self.family.shape_of(name)

    def is_positive(self, name: str) -> bool:
        return name != "logits" and self.family.is_positive(name)

    def own_parameters(self) -> Parameters:
        return {"logits": self.logits.expand(self._components), **self.family.own_parameters()}

    def split(self, raw: Tensor) -> Parameters:
        logits, others = raw.tensor_split([self._components[0]], dim=-1)
        return {"logits": logits, **self.family.split(others.unflatten(-1, self.family.params_shape))}

    def pieces(self, x: Tensor, parameters: Parameters) -> Tensor:
        pieces = self.family.pieces(x.unsqueeze(-1 - self.event_ndim), parameters)
        terms = sum_rightmost(pieces, self.family.event_ndim - 1 - self.family.own_ndim)
        return torch.logsumexp(terms + parameters["logits"].log_softmax(-1), -1)

    def sample(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        self._refuse(context)
        with torch.no_grad():
            return self.draw(as_shape(sample_shape) + self.event_shape, self.own_parameters(), generator)

    def draw(self, shape: torch.Size, parameters: Parameters, generator: torch.Generator | None) -> Tensor:
        batch = shape[: len(shape) - self.event_ndim]
        shares = parameters["logits"].softmax(-1)
        u = torch.rand(batch, dtype=shares.dtype, device=shares.device, **drawn_with(generator))
        chosen = (u.unsqueeze(-1) >= shares.cumsum(-1)[..., :-1]).sum(-1)
        of_chosen = {}
        for name, value in parameters.items():
            if name == "logits":
                continue
            full = self.family.shape_of(name)
            # Not `take_along_dim`, which would fix the batch of an exported program.
            index = chosen.reshape(*batch, *[1] * len(full)).expand(*batch, 1, *full[1:])
            of_chosen[name] = value.expand(*batch, *full).gather(-len(full), index).squeeze(-len(full))
        return self.family.draw(shape, of_chosen, generator)


class MixtureOfNormals(Mixture):
    """A trainable mixture of normals with diagonal covariances: a `Mixture` with its family chosen and spread.

    The locations start at normal draws of deviation `spread`. In the state dict are `logits`, `family.loc` and
    `family.log_scale`. For full covariances, `Mixture(MultivariateNormal((components, D), loc=..., trainable=True))`.

    Args:
        event_shape: shape of one event; an int stands for one dim.
        components: K, at least 1.
        spread: deviation of the locations at the start, above 0.
        scale: of every component at the start, positive.
        trainable: whether weights, locations and scales are trained.

    Shapes:
        x: (*batch, *event_shape); log_prob: (*batch).

    Raises:
        ValueError: for fewer than one component, or a spread that is not above 0.
        DomainError: if `scale` is not positive and finite.
        ShapeError: if `event_shape` is none.

    >>> import torch
    >>> base = MixtureOfNormals((2,), components=8, spread=3.0)
    >>> base.sample((5,)).shape, base.log_prob(torch.zeros(4, 2)).shape
    (torch.Size([5, 2]), torch.Size([4]))
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        components: int,
        spread: float = 1.0,
        scale: float | Tensor = 1.0,
        trainable: bool = True,
    ) -> None:
        event, count = as_shape(event_shape, "MixtureOfNormals: event_shape"), whole(components)
        if count is None or count < 1:
            raise ValueError(f"MixtureOfNormals: components is {components!r}, wanted a whole number of at least 1")
        if not finite("MixtureOfNormals", "spread", spread) > 0:
            raise ValueError(f"MixtureOfNormals: spread is {spread}, wanted above 0")
        super().__init__(Normal((count, *event), spread * torch.randn(count, *event), scale, trainable))


def _alike(value: Tensor) -> bool:
    """Whether all rows are the same; not known on the meta device."""
    return value.device.type != "meta" and bool((value == value[:1]).all())
