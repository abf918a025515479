"""Checks of arguments that all parts of the library use."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from innerloop.errors import InnerloopError, RunError, StructureError

# JAX's own tracing errors are the clearest, so they are not replaced.
_TRACING_ERRORS = (jax.errors.JAXTypeError, jax.errors.JAXIndexError)


def describe(tree: PyTree) -> str:
    """Shapes and dtypes of a pytree on one line, for error messages: `{'w': f32[3,2]}`."""
    return eqx.tree_pformat(tree, short_arrays=True, width=10_000)


def describe_briefly(value: Any) -> str:
    """As `describe`, but only the class if the text would have more than 200 characters."""
    said = describe(value)
    return said if len(said) <= 200 else f"a {type(value).__name__}"


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is a real floating-point number or array, and so can have a gradient."""
    dtype = getattr(leaf, "dtype", None)
    return isinstance(leaf, float) or (dtype is not None and jnp.issubdtype(dtype, jnp.floating))


def check_numbers(name: str, tree: PyTree, *, write: str) -> None:
    """Raise `StructureError` if a leaf is text, or an array of text or of Python objects."""
    for leaf in jax.tree.leaves(tree):
        dtype = np.asarray(leaf).dtype if isinstance(leaf, str | np.ndarray) else None
        if dtype is not None and dtype.kind in "OSUMm":
            raise StructureError(
                f"{name} are not numbers",
                got=f"{name} of type {dtype}",
                expected="arrays of numbers",
                write=write,
            )


@contextmanager
def failures_explained(name: str, *, expected: str, write: str, **given: PyTree) -> Iterator[None]:
    """If a user's function raises on the given values, show these values in the error."""
    try:
        yield
    except (InnerloopError, *_TRACING_ERRORS):
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise StructureError(
            f"{name} failed on what it was given: {type(error).__name__}: {str(error).rstrip('.')}",
            got=", ".join(f"{part}={describe(value)}" for part, value in given.items()),
            expected=expected,
            write=write,
        ) from error


def optional_package(name: str, needed_by: str, extra: str) -> Any:
    """Import a package that `pip install innerloop` does not install.

    Args:
        name: The module to import, such as `"orbax.checkpoint"`.
        needed_by: The feature that needs it.
        extra: The extra of innerloop that installs it.

    Returns:
        The module.

    Raises:
        RunError: If it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RunError(
            f"{needed_by} needs the package {name.partition('.')[0]}",
            got=" ".join(str(error).split()),
            expected=f"a package that innerloop[{extra}] installs",
            write=f"pip install 'innerloop[{extra}]'",
        ) from error
