"""What an argument must be is declared in one line, and the error is written from it."""

import ast
import dataclasses
import functools
import importlib
import math
import pkgutil
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reader import reader

import innerloop as il
from innerloop.arguments import (
    CheckedModule,
    at_least,
    between,
    checked,
    each,
    either,
    flag,
    floating_dtype,
    function,
    instance,
    interval,
    number,
    one_of,
    optional,
    or_none,
    path,
    positive,
    random_key,
    require,
    requirement_of,
    with_methods,
)
from innerloop.checks import describe_briefly
from innerloop.errors import StructureError

NO_NUMBERS = st.one_of(
    st.booleans(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.sampled_from([object, jnp.ones]),
)
ARRAYS = st.sampled_from([jnp.ones(2), jnp.ones(()), np.ones(3)])
FLOATS = st.floats(width=32)
WHOLE = st.integers(-100, 100)


def outside(low, high):
    return FLOATS.filter(lambda value: not low <= value <= high)


NOT_WHOLE = FLOATS | NO_NUMBERS | ARRAYS | st.none()
NOT_FINITE = st.sampled_from([math.inf, -math.inf, math.nan])
NOT_A_NUMBER = NO_NUMBERS | ARRAYS | NOT_FINITE | st.none()
ANYTHING = FLOATS | WHOLE | NO_NUMBERS | ARRAYS | st.none()

# Two functions of a network, from which `adapters` makes a model.
GIVEN = {
    "init": lambda key: {"w": jnp.ones(2)},
    "apply": lambda params, inputs: inputs,
    "rows": np.ones((4, 2)),
    "labels": [0, 1, 0, 1],
}

# Each kind with values that it accepts, and values that it refuses.
KINDS = {
    "at_least": (at_least(2), st.integers(2, 99), st.integers(-99, 1) | NOT_WHOLE),
    "at_least_0": (at_least(0), st.integers(0, 99), st.integers(max_value=-1) | NOT_WHOLE),
    "such_as": (at_least(2, such_as=5), st.integers(2, 99).map(np.int64), NOT_WHOLE),
    "positive": (
        positive(),
        st.floats(1e-9, 1e9) | st.integers(1),
        NOT_A_NUMBER | st.floats(-9, 0),
    ),
    "number": (number(), st.floats(-9, 9) | WHOLE, NOT_A_NUMBER),
    "between": (between(0, 1), st.floats(0, 1), NOT_A_NUMBER | outside(0, 1)),
    "below": (
        between(0, 1, below=True),
        st.floats(0, 1, exclude_max=True),
        NOT_A_NUMBER | outside(0, 1) | st.just(1.0),
    ),
    "from": (between(0, math.inf), st.floats(0, 1e9), NOT_A_NUMBER | st.floats(max_value=-1e-9)),
    "interval": (
        interval(),
        st.tuples(st.floats(-9, 0), st.floats(1, 9)),
        ANYTHING | st.tuples(st.floats(1, 9), st.floats(-9, 1)) | st.just((0, math.inf)),
    ),
    "interval_above": (
        interval(above=0, point=True),
        st.tuples(st.floats(0.5, 1), st.floats(1, 9)),
        ANYTHING | st.just((0, 1)) | st.just((2.0, 1.0)) | st.just((1, 2, 3)),
    ),
    "one_of": (
        one_of("a", 1),
        st.sampled_from(["a", 1]),
        FLOATS | st.text().filter("a".__ne__) | ARRAYS,
    ),
    "instance": (
        instance(dict, what="a table", such_as="{'a': 1}"),
        st.just({"a": 2}),
        FLOATS | ARRAYS | st.none() | st.just(dict),
    ),
    "with_methods": (
        with_methods("init", "update", what="an optimizer", such_as="optax.adam(1e-3)"),
        st.just(optax.sgd(0.1)),
        ANYTHING | st.sampled_from([optax.adam, optax.GradientTransformation]),
    ),
    "function": (
        function("params", "key"),
        st.sampled_from([lambda params, key: 0, lambda *all: 0, functools.partial(pow, 2), max]),
        FLOATS
        | st.text()
        | st.none()
        | st.sampled_from([lambda: 0, lambda a: a, lambda a, b, c: a]),
    ),
    "no_arguments": (function(), st.just(lambda: 0), FLOATS | st.just(lambda a: a)),
    "flag": (
        flag(),
        st.booleans() | st.booleans().map(np.bool_),
        FLOATS | WHOLE | st.text() | st.none() | ARRAYS,
    ),
    "path": (
        path(),
        st.sampled_from(["run", Path("run")]),
        FLOATS | WHOLE | st.none() | ARRAYS | st.booleans(),
    ),
    "random_key": (
        random_key(),
        st.sampled_from([jax.random.key(1), jax.random.PRNGKey(1)]),
        ANYTHING | st.just(jax.random.split(jax.random.key(0), 2)),
    ),
    "floating_dtype": (
        floating_dtype(),
        st.sampled_from([jnp.bfloat16, "float16", np.dtype(np.float32), jnp.float8_e5m2]),
        st.sampled_from([jnp.int8, bool, "bf16", complex, "", [], {}, 3, None, jnp.ones(2)]),
    ),
    "optimizer": (
        instance(optax.GradientTransformation, what="a rule", such_as="optax.sgd(0.1)"),
        st.just(optax.adam(0.1)),
        ANYTHING | st.just(optax.adam),
    ),
    "each": (
        each(at_least(1), least=2),
        st.lists(st.integers(1, 9), min_size=2) | st.just((1, 2)),
        NOT_WHOLE | st.just((1,)) | st.just((1, 0)) | st.just([1, 2.0, 3]),
    ),
    "pair": (
        each(at_least(1), length=2),
        st.just((1, 2)),
        st.just((1, 2, 3)) | st.just((1,)) | WHOLE,
    ),
    "either": (
        either(positive(), function("meta")),
        st.sampled_from([1.0, lambda meta: meta]),
        st.sampled_from([0.0, -1, "a", lambda: 0, None]),
    ),
    "or_none": (or_none(positive()), st.sampled_from([None, 1.0]), st.sampled_from([0, "a"])),
    "optional": (optional(at_least(1)), st.sampled_from([None, 1]), st.sampled_from([0, "a", 1.5])),
}


def written(kind):
    """The value that the error tells one to write."""
    return eval(requirement_of(kind).cure, reader())


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
def test_what_fits_is_accepted(name, data):
    kind, good, _ = KINDS[name]
    require(kind, "given", data.draw(good), "call")


@pytest.mark.parametrize("name", KINDS)
@settings(deadline=None)  # the first use makes what the cures name
@given(data=st.data())
def test_what_does_not_fit_is_refused_by_name_and_value_with_a_cure_that_works(name, data):
    kind, _, bad = KINDS[name]
    value = data.draw(bad)
    with pytest.raises(StructureError) as caught:
        require(kind, "given", value, "call")
    error = caught.value
    assert error.problem.startswith("given must be ")
    shown = "given(" if "given(" in error.got else f"given={describe_briefly(value)}"
    assert error.got.startswith(shown)
    (call,) = ast.parse(error.write).body
    assert call.value.keywords[0].arg == "given"
    require(kind, "given", written(kind), "call")


class Base(CheckedModule):
    count: int = at_least(1)
    width: float = positive(default=2.0, static=True)
    chunk: int | None = optional(at_least(1))


class Derived(Base):
    fewer: int = at_least(0, default=0, kw_only=True)

    def __check_init__(self):
        assert self.fewer < self.count, "the fields are checked before"


class OwnInit(CheckedModule):
    count: int = at_least(1)

    def __init__(self, count):
        self.count = count


class Pair(NamedTuple):
    first: str
    every: int = 2


CheckedPair = checked(every=at_least(1))(Pair)


@checked(steps=at_least(1), chunk=optional(at_least(1)))
def train(steps, *, chunk=None, rest=()):
    """What it does."""
    return steps, chunk


class Tasks:
    @checked("tasks.sample", n=at_least(1))
    def sample(self, key, n):
        return n

    @checked(rows=at_least(1))
    def __init__(self, rows=1):
        self.rows = rows


REFUSED = {
    "module": (lambda: Base(0), "count must be .* at least 1.*count=0.*Write: Base\\(..., count=1"),
    "static": (lambda: Base(1, -1.0), "width=-1.0.*Write: Base\\(..., width=2.0"),
    "optional": (lambda: Base(1, chunk=0), "chunk=0.*or None"),
    "subclass": (lambda: Derived(0), "count=0.*Write: Derived\\(..., count=1"),
    "first_the_fields": (lambda: Derived("1"), "count='1'.*Write: Derived"),
    "keyword": (lambda: Derived(1, fewer=-1), "fewer=-1.*Write: Derived\\(..., fewer=0"),
    "own_init": (lambda: OwnInit(True), "count=True.*Write: OwnInit"),
    "function": (lambda: train(0), "steps=0.*Write: train\\(..., steps=1"),
    "function_keyword": (lambda: train(steps=1, chunk=1.5), "chunk=1.5.*Write: train"),
    "named_tuple": (lambda: CheckedPair("a", 0), "every=0.*Write: Pair\\(..., every=1"),
    "replaced": (lambda: CheckedPair("a")._replace(every=0), "every=0.*Write: Pair"),
    "method": (lambda: Tasks().sample(None, 0), "n=0.*Write: tasks.sample\\(..., n=1"),
    "init": (lambda: Tasks(0), "rows=0.*Write: Tasks\\(..., rows=1"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_every_way_to_declare_is_checked(call, message):
    with pytest.raises(StructureError, match=message):
        call()


def test_what_is_declared_makes_a_field_as_before():
    assert (Base(1).width, Base(1).chunk, Derived(3, fewer=2).fewer) == (2.0, None, 2)
    assert jax.tree.leaves(Base(1)) == [1]  # width is static
    with pytest.raises(TypeError, match="count"):
        Base()
    assert train(2, chunk=3) == (2, 3)
    assert (train.__name__, train.__doc__) == ("train", "What it does.")
    assert CheckedPair("a") == ("a", 2)
    with pytest.raises(TypeError, match=r"train\(\) missing"):
        train()
    with pytest.raises(TypeError, match="no arguments"):
        checked(stops=at_least(1))(lambda steps: steps)


def members():
    """Every function and class of the package, and the methods of its classes."""
    for module in pkgutil.walk_packages(il.__path__, "innerloop."):
        if "__main__" not in module.name:
            for member in vars(importlib.import_module(module.name)).values():
                yield member
                yield from vars(member).values() if isinstance(member, type) else ()


def declared(member):
    """The kinds of a member's arguments by name."""
    if isinstance(member, type) and issubclass(member, eqx.Module):
        return {field.name: field for field in dataclasses.fields(member) if requirement_of(field)}
    return getattr(member, "__kinds__", {})


def test_no_declaration_of_the_package_goes_unchecked():
    """A plain Equinox module would take the declarations, and check none."""
    for member in members():
        if declared(member) and not hasattr(member, "__kinds__"):
            assert issubclass(member, CheckedModule), member


def test_every_error_of_the_package_says_something_that_works():
    found = {
        (str(member), name): kind for member in members() for name, kind in declared(member).items()
    }
    assert len(found) > 80
    for (member, name), kind in found.items():
        requirement = requirement_of(kind)
        for cure in (requirement.cure, *(cure for _, cure in requirement.instead)):
            names = reader() | (GIVEN if cure.startswith(("adapters.", "tasks.by")) else {})
            assert requirement.accepts(eval(cure, names)), (member, name)
