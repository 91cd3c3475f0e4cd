"""No exported transform or distribution without a row in the table."""

import inspect

import pytest

import flowkit as fk
from flowkit.distribution import Distribution
from flowkit.transform import Transform
from tests.conformance.cases import DISTRIBUTIONS, TRANSFORMS

PACKAGES = [fk, fk.bijectors, fk.distributions, fk.maps, fk.surjections]


def exported_under(base):
    """Classes under `base` that flowkit exports and that can be made."""
    found = set()
    for child in base.__subclasses__():
        found |= exported_under(child)
        exported = any(getattr(package, child.__name__, None) is child for package in PACKAGES)
        if exported and not inspect.isabstract(child):
            found.add(child)
    return found


def made(rows):
    return {type(row.make()) for row in rows}


@pytest.mark.parametrize(("base", "rows"), [(Transform, TRANSFORMS), (Distribution, DISTRIBUTIONS)])
def test_every_exported_class_has_a_row(base, rows):
    exported = exported_under(base)
    assert exported, "nothing found: the walk is broken"
    missing = sorted(cls.__name__ for cls in exported - made(rows))
    assert not missing, f"no row in tests/conformance/cases.py for {', '.join(missing)}"


def test_a_class_without_a_row_would_be_found():
    assert fk.Squeeze in exported_under(Transform)
    assert fk.Squeeze not in made([row for row in TRANSFORMS if not row.name.startswith("Squeeze")])


@pytest.mark.parametrize("rows", [TRANSFORMS, DISTRIBUTIONS])
def test_names_are_unique(rows):
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
