"""Normal, logistic and Student's t: independent elements, each with a location and a scale."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from flowkit.distribution import drawn_with
from flowkit.distributions.family import Family, Parameters
from flowkit.functional.student import standard_student, student_log_prob

__all__ = ["Logistic", "Normal", "StudentT"]


class LocationScale(Family):
    """x = loc + scale u, for a standard u whose elements are independent.

    Args:
        event_shape: shape of one event; an int stands for one dim.
        loc: broadcast to `event_shape`.
        scale: positive, broadcast to `event_shape`.
        trainable: whether every element has a location and a scale of its own that are trained, as `loc` and
            `log_scale`, from these values on.

    Raises:
        ShapeError: if `loc` or `scale` does not broadcast to `event_shape`.
        DomainError: if `loc` is not finite or `scale` not positive and finite.
    """

    positive: tuple[str, ...] = ("scale",)
    loc: Tensor

    def __init__(
        self,
        event_shape: int | Sequence[int],
        loc: float | Tensor = 0.0,
        scale: float | Tensor = 1.0,
        trainable: bool = False,
    ) -> None:
        super().__init__(event_shape, trainable, loc=loc, scale=scale)

    @property
    def scale(self) -> Tensor:
        """The scale; exp(log_scale) if it is trained."""
        return self._value("scale")

    @abstractmethod
    def _standard_log_prob(self, u: Tensor, parameters: Parameters) -> Tensor:
        """Log-density of the standard element."""

    @abstractmethod
    def _standard_draw(self, like: Tensor, generator: torch.Generator | None, parameters: Parameters) -> Tensor:
        """Draws of the standard element of the shape, dtype and device of `like`."""

    def pieces(self, x: Tensor, parameters: Parameters) -> Tensor:
        loc, scale = parameters["loc"], parameters["scale"]
        return self._standard_log_prob((x - loc) / scale, parameters).sub_(scale.log())  # of what nobody else reads

    def draw(self, shape: torch.Size, parameters: Parameters, generator: torch.Generator | None) -> Tensor:
        loc = parameters["loc"]
        return loc + parameters["scale"] * self._standard_draw(loc.new_empty(()).expand(shape), generator, parameters)


class Normal(LocationScale):
    """Independent normals: log p(x) = sum of -u^2/2 - log(scale) - log(2 pi)/2, with u = (x - loc) / scale.

    Args:
        event_shape: shape of one event; an int stands for one dim.
        loc: broadcast to `event_shape`.
        scale: positive, broadcast to `event_shape`.
        trainable: whether every element has a location and a scale of its own that are trained, as `loc` and
            `log_scale`, from these values on.

    Shapes:
        x: (*batch, *event_shape); log_prob: (*batch).

    Raises:
        ShapeError: if `loc` or `scale` does not broadcast to `event_shape`.
        DomainError: if `loc` is not finite or `scale` not positive and finite.

    >>> import torch
    >>> base = Normal((2,))
    >>> base.log_prob(torch.zeros(3, 2))
    tensor([-1.8379, -1.8379, -1.8379])
    >>> base.sample((5,)).shape
    torch.Size([5, 2])
    >>> list(Normal((2,), scale=3.0, trainable=True).state_dict())
    ['loc', 'log_scale']
    """

    def _standard_log_prob(self, u: Tensor, parameters: Parameters) -> Tensor:
        return (u * u).add_(math.log(2 * math.pi)).mul_(-0.5)  # in place: a tensor less to make for every step

    def _standard_draw(self, like: Tensor, generator: torch.Generator | None, parameters: Parameters) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, device=like.device, **drawn_with(generator))


class Logistic(LocationScale):
    """Independent logistics: log p(x) = sum of -u - 2 softplus(-u) - log(scale), with u = (x - loc) / scale.

    Args:
        event_shape, loc, scale, trainable: as for `Normal`.

    Shapes:
        x: (*batch, *event_shape); log_prob: (*batch).

    Raises:
        ShapeError: if `loc` or `scale` does not broadcast to `event_shape`.
        DomainError: if `loc` is not finite or `scale` not positive and finite.

    >>> import torch
    >>> Logistic((1,)).log_prob(torch.zeros(1)).exp()
    tensor(0.2500)
    """

    def _standard_log_prob(self, u: Tensor, parameters: Parameters) -> Tensor:
        return F.logsigmoid(u) + F.logsigmoid(-u)

    def _standard_draw(self, like: Tensor, generator: torch.Generator | None, parameters: Parameters) -> Tensor:
        p = _open_uniform(like, generator)
        return p.log() - torch.log1p(-p)


class StudentT(LocationScale):
    """Independent Student's t: log p(x) = sum of log t_df(u) - log(scale), with u = (x - loc) / scale.

    The density is right to rounding for any df and in the far tails; as df grows it nears the normal. Samples are
    Bailey's function of two uniform numbers, which is differentiable by df too.

    Args:
        event_shape: shape of one event; an int stands for one dim.
        df: degrees of freedom, positive and finite, broadcast to `event_shape`. At most 2, the variance is infinite; at
            most 1, there is no mean. For the limit, df infinite, take `Normal`.
        loc, scale: as for `Normal`.
        trainable: whether df, location and scale are trained, one of each for every element, as `log_df`, `loc` and
            `log_scale`; `base.log_df.requires_grad_(False)` holds df where it is.

    Shapes:
        x: (*batch, *event_shape); log_prob: (*batch).

    Raises:
        ShapeError: if `df`, `loc` or `scale` does not broadcast to `event_shape`.
        DomainError: if `loc` is not finite, or `df` or `scale` not positive and finite.

    Reference:
        Bailey, "Polar generation of random variates with the t-distribution", Mathematics of Computation 62, 1994,
        https://doi.org/10.2307/2153537; as the base of a flow, Alexanderson, Henter, "Robust model training and
        generalisation with Studentising flows", 2020, https://arxiv.org/abs/2006.06599.

    >>> import torch
    >>> StudentT((2,), df=1.0).log_prob(torch.tensor([0.0, 1e15]))
    tensor(-71.3670)
    """

    positive = ("scale", "df")

    def __init__(
        self,
        event_shape: int | Sequence[int],
        df: float | Tensor,
        loc: float | Tensor = 0.0,
        scale: float | Tensor = 1.0,
        trainable: bool = False,
    ) -> None:
        Family.__init__(self, event_shape, trainable, loc=loc, scale=scale, df=df)  # those above, and one more

    @property
    def df(self) -> Tensor:
        """The degrees of freedom; exp(log_df) if they are trained."""
        return self._value("df")

    def _standard_log_prob(self, u: Tensor, parameters: Parameters) -> Tensor:
        return student_log_prob(u, parameters["df"])

    def _standard_draw(self, like: Tensor, generator: torch.Generator | None, parameters: Parameters) -> Tensor:
        p = _open_uniform(like, generator)
        angle = torch.rand(like.shape, dtype=like.dtype, device=like.device, **drawn_with(generator))
        return standard_student(p, angle, parameters["df"])


def _open_uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform on the open interval (0, 1). A 0 of `rand` stands for the step from 0 to eps / 2: its middle is taken."""
    u = torch.rand(like.shape, dtype=like.dtype, device=like.device, **drawn_with(generator))
    return u.clamp(min=torch.finfo(like.dtype).eps / 4)
