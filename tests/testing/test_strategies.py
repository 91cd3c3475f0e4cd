"""What hypothesis draws lies in its set, reaches the ends, and makes chains that keep the laws."""

import importlib
import subprocess
import sys

import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st
from torch.distributions import constraints

import flowkit as fk
from flowkit.testing import PROPERTIES, TransformCase, strategies

SETS = [
    constraints.real,
    constraints.positive,
    constraints.nonnegative,
    constraints.less_than(-3.0),
    constraints.unit_interval,
    constraints.half_open_interval(0.0, 1.0),
    constraints.interval(-1e-3, 255.0),
    constraints.independent(constraints.positive, 1),
    constraints.boolean,
    constraints.integer_interval(-2, 5),
    constraints.nonnegative_integer,
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constraint", SETS, ids=str)
@given(data=st.data())
def test_values_lie_in_their_set(constraint, dtype, data):
    x = data.draw(strategies.values(constraint, (2, 3), dtype=dtype, reach=50.0))
    assert x.shape == (2, 3)
    assert x.dtype == (torch.int64 if constraint.is_discrete else dtype)
    assert bool(constraint.check(x).all())
    assert bool(x.double().isfinite().all())


@pytest.mark.parametrize(
    ("constraint", "ends"),
    [
        (constraints.unit_interval, [0.0, 1.0]),
        (constraints.positive, [5e-324]),
        (constraints.less_than(0.0), [-5e-324]),
        (constraints.nonnegative, [0.0]),
        (constraints.half_open_interval(0.0, 1.0), [0.0, 1.0 - 2.0**-53]),
        (constraints.integer_interval(-2, 5), [-2, 5]),
        (constraints.real, [-10.0, 10.0, 0.0]),
    ],
    ids=str,
)
def test_ends_are_drawn(constraint, ends):
    for end in ends:
        assert find(strategies.values(constraint, ()), lambda x, end=end: x.item() == end).item() == end


def test_a_margin_keeps_away_from_the_ends():
    with pytest.raises(Exception, match="NoSuchExample|No examples"):
        find(strategies.values(constraints.unit_interval, (), margin=0.01), lambda x: x.item() < 0.0099)


def test_a_set_without_bounds_is_refused():
    with pytest.raises(ValueError, match="no way to draw values from Simplex"):
        strategies.values(constraints.simplex, (3,))


@given(chain=strategies.chains(3), seed=strategies.seeds())
def test_random_chains_keep_the_laws(chain, seed):
    case = TransformCase.of(chain, event_shape=(3,), perturb=0.0, tails=2.0, seed=seed)
    for name in ("law_1", "law_2", "log_term"):
        PROPERTIES[name](case)


@given(data=st.data(), batch=strategies.batch_shapes())
def test_inputs_and_latents_of_a_transform_run(data, batch):
    part = fk.Chain(fk.Exp(), fk.ScaleShift(2.0, 0.0, domain=constraints.positive))
    _, l = part(data.draw(strategies.inputs_of(part, (3,), batch=batch)))
    assert l.shape == (*batch, 3)
    x, _ = part.inverse(data.draw(strategies.latents_of(part, (3,), batch=batch, margin=1e-6)))
    assert bool(x.isfinite().all())


def test_without_hypothesis_the_extra_is_named():
    script = "import sys; sys.modules['hypothesis'] = None; import flowkit.testing; import flowkit.testing.strategies"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'flowkit[testing]'" in done.stderr


@pytest.mark.skipif(not settings.default.derandomize, reason="the thorough profile is to draw what it likes")
def test_examples_of_the_quick_profile_do_not_depend_on_what_is_imported(tmp_path, monkeypatch):
    def drawn():
        found = []

        @settings(max_examples=200, derandomize=True, database=None)
        @given(seed=strategies.seeds())
        def keep(seed):
            found.append(seed)

        keep()
        return found

    before = drawn()
    (tmp_path / "constants_of_its_own.py").write_text(f"NUMBERS = {list(range(100, 160))}\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("constants_of_its_own")
    assert drawn() == before
