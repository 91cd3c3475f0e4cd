"""Every public name has a docstring, which gives the shapes of tensors, what is raised, and the source of a method."""

import ast
import inspect
import re
import textwrap
from functools import cache

from scripts import public_api

THINGS = public_api.public()
CLASSES = {thing for thing in THINGS.values() if inspect.isclass(thing)}


def documented():
    """Name, thing and class of all that a docstring can have; what has two names once."""
    seen = set()
    for name, thing in THINGS.items():
        if id(thing) in seen or not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue
        seen.add(id(thing))
        yield name, thing, None
        if inspect.isclass(thing):
            for member, value in public_api.members(thing, CLASSES):
                yield f"{name}.{member}", value, thing


NAMES = {name: (thing, owner) for name, thing, owner in documented()}


def docstring(name):
    """Its own; an override may leave it to the method of flowkit that it overrides, which promises the same."""
    thing, owner = NAMES[name]
    if owner is None:
        return vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    ways = [vars(base).get(name.rsplit(".")[-1]) for base in owner.__mro__ if base.__module__.startswith("flowkit")]
    return next((way.__doc__ for way in ways if way is not None and way.__doc__), None)


def read_with(name):
    """The docstring and, for a member, that of its class: what a reader of the page has before them."""
    owner = NAMES[name][1]
    return f"{docstring(name)}\n{owner.__doc__ if owner else ''}"


def said_to_be_raised(name):
    """Where a method has a section of its own for this, that of its class is of other things."""
    own = NAMES[name][0].__doc__ or ""
    return own if "Raises:" in own else read_with(name)


def functions(name):
    """The functions that run when the thing is used: of a class, its construction and the directions of a layer."""
    thing, owner = NAMES[name]
    if isinstance(thing, property):
        return [(thing.fget, owner)]
    if not inspect.isclass(thing):
        return [(inspect.unwrap(thing), owner)]
    used = ("__init__", "__post_init__", "forward", "inverse")
    return [(vars(thing)[each], thing) for each in used if inspect.isfunction(vars(thing).get(each))]


def _run(statements):
    """All nodes below, but for the bodies of `try` and of inner functions."""
    for statement in statements:
        yield statement
        if isinstance(statement, ast.Try) and statement.handlers:
            yield from _run([*statement.handlers, *statement.orelse, *statement.finalbody])
        elif isinstance(statement, ast.With) and ast.unparse(statement.items[0]).startswith("_"):
            continue  # a context of this file, which turns one error into another
        elif not isinstance(statement, ast.FunctionDef | ast.Lambda):
            yield from _run(ast.iter_child_nodes(statement))


@cache
def raised(function, owner):
    """Exceptions that a function raises, itself, by a helper with an underscore, or by a check of its arguments.

    What is raised under a `try` may be caught, and what a function inside it raises is for whoever calls that.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except OSError:  # what dataclass writes
        return frozenset()
    found = set()
    for node in _run(tree.body[0].body):
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            found.add(ast.unparse(error).split(".")[-1])
        elif isinstance(node, ast.Call):
            callee = ast.unparse(node.func)
            helper = None
            if re.fullmatch(r"self\._[a-z]\w*", callee) and owner is not None:
                helper = getattr(owner, callee.removeprefix("self."), None)
            elif re.fullmatch(r"[a-z_]\w*", callee):
                helper = function.__globals__.get(callee)
                private = callee.startswith("_") or getattr(helper, "__module__", "") == "flowkit.arguments"
                helper = helper if private else None
            if inspect.isfunction(helper) and helper is not function:
                found |= raised(helper, owner)
    return frozenset(name for name in found if name[0].isupper()) - {"NotImplementedError"}


def takes_tensors(function):
    return any("Tensor" in str(each.annotation) for each in inspect.signature(function).parameters.values())


def test_it_is_there():
    assert [name for name in NAMES if not (docstring(name) or "").strip()] == []


def test_it_is_more_than_what_dataclass_writes():
    assert [name for name in NAMES if docstring(name).startswith(f"{name.split('.')[-1]}(")] == []


def test_it_says_what_is_raised():
    """What every part raises for a tensor that is no event of it is said once, at `Transform` and `Distribution`."""
    missing = {
        (name, error)
        for name in NAMES
        for function, owner in functions(name)
        for error in raised(function, owner)
        if error not in said_to_be_raised(name)
    }
    assert sorted(missing) == []


# Of parts, nets, arithmetic, losses and models: what nobody needs to be cited for.
ELEMENTARY = {
    "flowkit": """Bijector Chain Elementwise Exp Flip FromContext Given Inverse LeakyReLU Logistic Map Mixture
        MixtureOfNormals MultivariateNormal Normal PairChannels Permute Power ScaleShift Sigmoid Tanh Transform Uniform
        within""",
    "flowkit.distributions": "Family",
    "flowkit.functional": """log_term_dtype pair_channels pair_checkerboard pair_columns sum_rightmost unpair_channels
        unpair_checkerboard unpair_columns unsqueeze""",
    "flowkit.losses": "forward_kl",
    "flowkit.nets": "ClassContext MLP VectorContext",
    "flowkit.zoo": "FlowppConfig WeightsError available cache_folder card fetch_weights load save",
}


def test_it_names_its_source():
    rooms = {"bijectors", "distributions", "functional", "losses", "maps", "nets", "surjections", "transform", "zoo"}
    excused = {f"{module}.{name}" for module, names in ELEMENTARY.items() for name in names.split()}
    cited = {name for name, (_, owner) in NAMES.items() if owner is None and "Reference:" in docstring(name)}
    of_rooms = {
        name for name, (thing, owner) in NAMES.items() if owner is None and thing.__module__.split(".")[1] in rooms
    }
    assert sorted(of_rooms - cited - excused) == []
    assert sorted(excused & cited | excused - of_rooms) == []
    assert [name for name in cited if not re.search(r"\b(19|20)\d\d\b|https://", docstring(name))] == []


def test_it_gives_shapes():
    shape = re.compile(r"\(\*?\w+(, ?[^)]*)?\)|\bShapes:|\bshape|any tensor")
    taking = [name for name in NAMES if any(takes_tensors(function) for function, _ in functions(name))]
    assert len(taking) > 100
    assert [name for name in taking if not shape.search(read_with(name))] == []
