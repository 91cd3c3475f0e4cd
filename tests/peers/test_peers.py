"""The kit on parts of other libraries: the faults that are known are found again, and sound parts pass."""

import pytest
import torch

from flowkit.testing import DISTRIBUTION_PROPERTIES, PROPERTIES, ConformanceError, DistributionCase, TransformCase
from tests.peers.cases import DENSITIES, PARTS, of
from tests.support import changed_by_importing

pytestmark = pytest.mark.peers


def each(rows):
    return pytest.mark.parametrize("row", [pytest.param(row, id=f"{row.library}-{row.name}") for row in rows])


def made(row):
    try:
        of(row.library)
    except ImportError:
        pytest.skip(f"{row.library} is not installed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return row.make()


def failures(case, properties):
    """Of every property that fails, what was found."""
    found = {}
    for name, check in properties.items():
        try:
            check(case)
        except ConformanceError as error:
            found[name] = error.finding
    return found


def contexts(row):
    generator = torch.Generator().manual_seed(0)
    return None if row.context is None else torch.randn(8, *row.context, generator=generator)


def compare(row, found, asked, record_property):
    # What tells least comes last: empty batches, half precision, and modes of execution.
    least = ("batch_shapes", "density_shapes", "dtypes", "autocast", "compiles", "vectorizes")
    first = next(iter(sorted(found, key=lambda name: name in least)), None)
    said = "" if first is None else f"`{first}`: {found[first].splitlines()[0][:160]}"
    record_property("peer", (row.library, row.name, asked - len(found), list(found), said, row.note))
    shown = "\n".join(f"{name}: {finding.splitlines()[0][:200]}" for name, finding in found.items())
    assert set(found) == row.fails, f"fails={sorted(found)}\n{shown}"


@each(PARTS)
def test_part(row, record_property):
    part = made(row)
    options = dict(row.options)
    only = options.pop("only", tuple(PROPERTIES))
    try:
        case = TransformCase.of(part, event_shape=row.event, context=contexts(row), **options)
    except Exception as error:
        found, asked = {"latents": f"{type(error).__name__}: {error}"}, 1
    else:
        asked = [name for name in only if PROPERTIES[name].applies(case)]
        found, asked = failures(case, {name: PROPERTIES[name] for name in asked}), len(asked)
    compare(row, found, asked, record_property)


@each(DENSITIES)
def test_density(row, record_property):
    density = made(row)
    inputs = torch.randn(8, *density.event_shape)
    case = DistributionCase.of(density, context=contexts(row), inputs=inputs, **row.options)
    asked = {name: check for name, check in DISTRIBUTION_PROPERTIES.items() if check.applies(case)}
    compare(row, failures(case, asked), len(asked), record_property)


@pytest.mark.parametrize(("library", "changed"), [("zuko", ["validate_args"]), ("flowkit", [])])
def test_what_an_import_changes(library, changed):
    found = changed_by_importing(library)
    if found is None:
        pytest.skip(f"{library} is not installed")
    assert found["changed"] == changed
