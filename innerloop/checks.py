"""Checks that every part makes of what it is given."""

import inspect
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from innerloop.errors import StructureError


def describe(tree: PyTree) -> str:
    """Shapes and dtypes of a pytree on one line, for error messages: `{'w': f32[3,2]}`."""
    return eqx.tree_pformat(tree, short_arrays=True, width=10_000)


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is a real floating-point number or array, and so can have a gradient."""
    dtype = getattr(leaf, "dtype", None)
    return isinstance(leaf, float) or (dtype is not None and jnp.issubdtype(dtype, jnp.floating))


def check_count(name: str, value: Any, least: int = 1, *, write: str) -> int:
    """`value` as an int. Raises `StructureError` unless it is a whole number of at least `least`.

    A traced value is none: counts decide shapes, and are known while tracing.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if whole and value >= least:
        return int(value)
    raise StructureError(
        f"{name} must be a whole number of at least {least}",
        got=f"{name}={value!r}",
        expected=f"an int >= {least}, known while tracing",
        write=write,
    )


def check_signature(name: str, function: Any, arguments: tuple[str, ...]) -> None:
    """Raise `StructureError` unless `function` is None or takes exactly these arguments."""
    if function is None:
        return
    signature = f"{name}({', '.join(arguments)})"
    if not callable(function):
        raise StructureError(
            f"{name} is not a function",
            got=type(function).__name__,
            expected=signature,
            write=f"{name}=lambda {', '.join(arguments)}: ...",
        )
    try:
        given = inspect.signature(function)
    except (TypeError, ValueError):  # builtins and compiled callables may have no signature
        return
    try:
        given.bind(*arguments)
    except TypeError as error:
        raise StructureError(
            f"{name} has the wrong arguments",
            got=f"{name}{given}",
            expected=signature,
            write=f"{name}=lambda {', '.join(arguments)}: ...",
        ) from error
