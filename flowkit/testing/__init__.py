"""The laws that every transform and every distribution keeps, as checks to run on parts of your own.

`check_transform(part, event_shape=...)` and `check_distribution(distribution)` run every property of `PROPERTIES` and
of `DISTRIBUTION_PROPERTIES`. A property is a function of a case, to be run by itself as well: so a table of cases and a
table of properties make a test suite. What fails says which property, where, by how much, and what usually causes it.

Everything is checked on copies with their parameters moved by a little noise, because many parts start as the identity,
where most faults do not show. Arithmetic is checked in float64, in eval mode unless a property says otherwise.
"""

from __future__ import annotations

from flowkit.testing.case import DistributionCase, TransformCase, perturb_
from flowkit.testing.distributions import check_distribution, density_compiles
from flowkit.testing.finding import DISTRIBUTION_PROPERTIES, PROPERTIES, ConformanceError
from flowkit.testing.transforms import check_transform, compiles

__all__ = [
    "DISTRIBUTION_PROPERTIES",
    "PROPERTIES",
    "ConformanceError",
    "DistributionCase",
    "TransformCase",
    "check_distribution",
    "check_transform",
    "compiles",
    "density_compiles",
    "perturb_",
]
