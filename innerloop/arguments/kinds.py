"""The kinds of arguments, requirements that are declared in one line.

Each is the field specifier of a module's field: type checkers see from `default` whether the
argument is required.
"""

import math
import os
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from innerloop.arguments.requirement import Requirement, kind, requirement_of
from innerloop.checks import describe_briefly, is_floating, signature_of


@kind
def at_least(
    least: int, *, at_most: int | None = None, such_as: int | None = None, **field: Any
) -> Any:
    """A whole number of at least `least`, known while tracing; the error shows `such_as`."""
    most = math.inf if at_most is None else at_most
    span = f"of at least {least}" if at_most is None else f"from {least} to {at_most}"
    return Requirement(
        lambda value: _is_whole(value) and least <= value <= most,
        f"a whole number {span}",
        f"an int {span}, known while tracing",
        repr(max(least, 1) if such_as is None else such_as),
    )


@kind
def positive(*, such_as: int | float = 1.0, **field: Any) -> Any:
    """A finite Python number above 0; the error shows `such_as`."""
    accepts = lambda value: _is_number(value) and value > 0
    return Requirement(accepts, "a finite number above 0", "0 < number < inf", repr(such_as))


@kind
def number(*, such_as: int | float = 1.0, **field: Any) -> Any:
    """A finite Python number; the error shows `such_as`."""
    return Requirement(_is_number, "a finite number", "-inf < number < inf", repr(such_as))


@kind
def between(
    low: int | float,
    high: int | float,
    *,
    below: bool = False,
    such_as: int | float | None = None,
    **field: Any,
) -> Any:
    """A finite number from `low` to `high`, both included; with `below`, `high` is excluded.

    The error shows `such_as`, by default `low`.
    """
    below = below or high == math.inf
    accepts = lambda value: (
        _is_number(value) and low <= value and (value < high if below else value <= high)
    )
    span = f"of at least {low} and below {high}" if below else f"from {low} to {high}"
    relation = "<" if below else "<="
    cure = repr(low if such_as is None else such_as)
    return Requirement(accepts, f"a number {span}", f"{low} <= number {relation} {high}", cure)


@kind
def interval(*, above: int | float = -math.inf, point: bool = False, **field: Any) -> Any:
    """A pair `(low, high)` of finite numbers, `above < low < high`; with `point`, `low <= high`."""
    pair = _requirement(each(number(), length=2))

    def accepts(value: Any) -> bool:
        if not pair.accepts(value):
            return False
        low, high = value
        return above < low and (low < high or (point and low == high))

    bounded = above > -math.inf
    return Requirement(
        accepts,
        "a range that is not empty" + f", above {above}" * bounded,
        f"(low, high) with {f'{above} < ' * bounded}low {'<=' if point else '<'} high < inf",
        f"({above + 0.5}, {above + 1.5})" if bounded else "(0.0, 1.0)",
    )


@kind
def one_of(*choices: Any, **field: Any) -> Any:
    """One of the choices, of the same type and equal."""
    listed = ", ".join(map(repr, choices))
    accepts = lambda value: any(type(value) is type(one) and value == one for one in choices)
    return Requirement(accepts, f"one of {listed}", listed, repr(choices[0]))


@kind
def instance(
    *classes: type,
    what: str,
    such_as: str,
    instead: Mapping[type, str] = MappingProxyType({}),
    cure_for: Callable[[Any], str | None] = lambda value: None,
    **field: Any,
) -> Any:
    """An instance of one of the classes.

    Args:
        *classes: The classes, as for `isinstance`.
        what: A noun with its article, such as "a linear solver".
        such_as: Python source of an instance, which the error shows.
        instead: The source that the error shows for values of certain other classes, such as
            `{Recipe: "recipe.learner"}`.
        cure_for: `value -> source` that the error shows for a value, or None if it has none.
        **field: The keywords `default`, `static` and `kw_only` of a field.
    """
    names = " | ".join(map(_public_name, classes))
    accepts = lambda value: isinstance(value, classes)
    pairs = tuple(instead.items())
    return Requirement(accepts, what, names, such_as, instead=pairs, cure_for=cure_for)


@kind
def with_methods(
    *methods: str,
    what: str,
    such_as: str,
    instead: Mapping[type, str] = MappingProxyType({}),
    **field: Any,
) -> Any:
    """An object, and no class, that has the methods; the other arguments are as in `instance`."""
    callables = lambda value: (callable(getattr(value, method, None)) for method in methods)
    accepts = lambda value: not isinstance(value, type) and all(callables(value))
    expected = f"an object with {', '.join(methods)}"
    return Requirement(accepts, what, expected, such_as, instead=tuple(instead.items()))


@kind
def function(*arguments: str, gives: str = "...", only: bool = False, **field: Any) -> Any:
    """A function that is called with these arguments, by position.

    Args:
        *arguments: The names of the arguments.
        gives: What the function returns, in words.
        only: Whether further arguments that have defaults are refused.
        **field: The keywords `default`, `static` and `kw_only` of a field.
    """
    listed = ", ".join(arguments)

    def accepts(value: Any) -> bool:
        signature = signature_of(value)
        if signature is None:
            return callable(value)
        try:
            signature.bind(*arguments)
        except TypeError:
            return False
        return not only or len(signature.parameters) == len(arguments)

    def shown(name: str, value: Any) -> str:
        signature = signature_of(value)
        return f"{name}={describe_briefly(value)}" if signature is None else f"{name}{signature}"

    cure = f"lambda {listed}: ..." if arguments else "lambda: ..."
    return Requirement(accepts, f"a function of ({listed})", f"({listed}) -> {gives}", cure, shown)


@kind
def flag(**field: Any) -> Any:
    """True or False."""
    accepts = lambda value: isinstance(value, bool | np.bool_)
    return Requirement(accepts, "True or False", "a bool", "True")


@kind
def path(*, such_as: str = "'run'", **field: Any) -> Any:
    """A path, as text or as a `pathlib.Path`; the error shows `such_as`."""
    accepts = lambda value: isinstance(value, str | os.PathLike)
    return Requirement(accepts, "a path", "str | pathlib.Path", such_as)


@kind
def random_key(**field: Any) -> Any:
    """One random key, of the new kind or the old."""

    def accepts(value: Any) -> bool:
        dtype, axes = getattr(value, "dtype", None), len(getattr(value, "shape", ()))
        if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
            return axes == 0
        return dtype == jnp.uint32 and axes == 1

    expected = "one key, as jax.random.key makes"
    return Requirement(accepts, "a random key", expected, "jax.random.key(0)")


@kind
def floating_dtype(**field: Any) -> Any:
    """A floating-point dtype that JAX has, as a type or as a name."""

    def accepts(value: Any) -> bool:
        try:
            return value is not None and is_floating(jax.eval_shape(lambda: jnp.zeros((), value)))
        except (TypeError, ValueError, SyntaxError):  # NumPy parses texts
            return False

    what = "a floating-point dtype"
    return Requirement(accepts, what, "a floating-point dtype of JAX", "jax.numpy.bfloat16")


@kind
def each(kind: Any, *, least: int = 1, length: int | None = None, **field: Any) -> Any:
    """A tuple or list of at least `least` entries of the kind, or of exactly `length`."""
    entry = _requirement(kind)
    count = least if length is None else length
    many = f"{'at least ' * (length is None)}{count} {'entry' if count == 1 else 'entries'}"

    def accepts(value: Any) -> bool:
        if not isinstance(value, tuple | list) or len(value) < count:
            return False
        return length in (None, len(value)) and all(map(entry.accepts, value))

    return Requirement(
        accepts,
        f"a tuple of {many}, each {entry.what}",
        f"({entry.expected}, ...)",
        f"({', '.join([entry.cure] * count)}{',' * (count == 1)})",
    )


@kind
def either(*kinds: Any, **field: Any) -> Any:
    """One kind or another; the error shows a value of the first."""
    ways = [_requirement(kind) for kind in kinds]
    return Requirement(
        lambda value: any(way.accepts(value) for way in ways),
        " or ".join(way.what for way in ways),
        ", or ".join(way.expected for way in ways),
        ways[0].cure,
    )


@kind
def or_none(kind: Any, **field: Any) -> Any:
    """What `kind` declares, or None; required unless it has a default."""
    inner = _requirement(kind)
    return inner._replace(
        accepts=lambda value: value is None or inner.accepts(value),
        what=f"{inner.what}, or None",
        expected=f"{inner.expected}, or None",
    )


def optional(kind: Any, *, default: Any = None, **field: Any) -> Any:
    """What `kind` declares, or None, which is the default."""
    return or_none(kind, default=default, **field)


def _public_name(cls: type) -> str:
    """The name of a class, behind the package that it comes from if that is another one."""
    package, _, _ = cls.__module__.partition(".")
    if package == __name__.partition(".")[0]:
        return cls.__name__
    return f"{cls.__module__ if package in sys.stdlib_module_names else package}.{cls.__name__}"


def _requirement(kind: Any) -> Requirement:
    requirement = requirement_of(kind)
    if requirement is None:
        raise TypeError(f"{kind!r} is none of the kinds of innerloop.arguments")
    return requirement


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float | np.floating) and math.isfinite(value))
