"""Checks of arguments that all parts of the library use."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from innerloop.errors import InnerloopError, RunError, StructureError
from innerloop.missing import missing_derivative

T = TypeVar("T")

# JAX's own tracing errors are the clearest, so they are not replaced.
_TRACING_ERRORS = (jax.errors.JAXTypeError, jax.errors.JAXIndexError)


def describe(tree: PyTree) -> str:
    """Shapes and dtypes of a pytree on one line, for error messages: `{'w': f32[3,2]}`."""
    return eqx.tree_pformat(tree, short_arrays=True, width=10_000)


def describe_briefly(value: Any) -> str:
    """As `describe`, but only the class if the text would have more than 200 characters."""
    said = describe(value)
    return said if len(said) <= 200 else f"a {type(value).__name__}"


def first_of(texts: Sequence[str], most: int = 8) -> str:
    """The first texts, and how many there are beyond them."""
    more = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return "; ".join([*texts[:most], *more])


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is a real floating-point number or array, and so can have a gradient."""
    dtype = getattr(leaf, "dtype", None)
    return isinstance(leaf, float) or (dtype is not None and jnp.issubdtype(dtype, jnp.floating))


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf is a real or complex floating-point number or array."""
    dtype = getattr(leaf, "dtype", None)
    is_number = isinstance(leaf, float | complex)
    return is_number or (dtype is not None and jnp.issubdtype(dtype, jnp.inexact))


def text_type(tree: PyTree) -> np.dtype | None:
    """The dtype of the first leaf that holds text, dates or Python objects; None if none does."""
    for leaf in jax.tree.leaves(tree):
        dtype = np.asarray(leaf).dtype if isinstance(leaf, str | np.ndarray) else None
        if dtype is not None and dtype.kind in "OSUMm":
            return dtype
    return None


def require_arrays(name: str, tree: PyTree) -> None:
    """Raise `StructureError` unless a tree consists of arrays and numbers.

    Args:
        name: What the tree is, for the error.
        tree: The tree.
    """
    require_tree(name, tree)
    if not all(map(eqx.is_array_like, jax.tree.leaves(tree))) or text_type(tree) is not None:
        raise StructureError(
            f"{name} holds a leaf that is not an array",
            got=describe(tree),
            expected="a pytree of arrays and numbers",
        )


def require_tree(name: str, tree: Any) -> None:
    """Raise `StructureError` if JAX cannot order the keys of a dictionary in a tree."""
    try:
        jax.tree.structure(tree)
    except ValueError as error:
        raise StructureError(
            f"{name} has a dictionary whose keys cannot be ordered",
            got=describe_briefly(tree),
            expected="keys of one type in each dictionary, such as text",
        ) from error


def require_on_host(name: str, *trees: PyTree) -> None:
    """Raise `StructureError` if a value is traced, for a function that reads concrete values."""
    require_tree(f"an argument of {name}", trees)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees)):
        raise StructureError(
            f"{name} runs on the host",
            got=f"a call of {name} inside a function that JAX traces",
            expected="a call outside jit, vmap and grad",
        )


@contextmanager
def failures_explained(
    name: str, *, write: Callable[[Exception], str | None] | None = None, **given: PyTree
) -> Iterator[None]:
    """If a user's function raises on the given values, show these values in the error.

    Args:
        name: The name of the function.
        write: Returns the cure for an error, or None.
        **given: The arguments of the function.
    """
    try:
        yield
    except InnerloopError:
        raise
    except _TRACING_ERRORS as error:
        leaked = isinstance(error, jax.errors.UnexpectedTracerError)
        told = any("innerloop: " in note for note in getattr(error, "__notes__", ()))
        if not leaked and not told:  # by a function within this one
            error.add_note(
                f"innerloop: {name} reads the value of a traced array. Use jax.numpy in place of "
                "float, numpy and math, and jnp.where or jax.lax.cond in place of if."
            )
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        if missing_derivative(error):  # the function itself is correct
            raise
        said = " ".join(str(error).split()).rstrip(".")
        raise StructureError(
            f"{name} failed on what it was given: {type(error).__name__}: {said}",
            got=", ".join(f"{part}={describe(value)}" for part, value in given.items()),
            expected="a function that runs on these values",
            write=write and write(error),
        ) from error
    except Exception as error:
        if type(error).__name__ != "TraceContextError":  # flax may not be installed
            raise
        raise StructureError(
            f"{name} changes a module of flax.nnx, such as its batch statistics or random state",
            got=" ".join(str(error).split()),
            expected="a function that changes nothing outside of itself; a Model of the module, or "
            "Problem(..., state=...), carries what changes",
            write="adapters.from_nnx(module)",
        ) from error


def explained(name: str, function: Callable[..., T], *parts: str) -> Callable[..., T]:
    """A user's function whose failures are explained.

    Args:
        name: The name of the function, for the error.
        function: The function.
        *parts: The names of its arguments.
    """

    def call(*arguments: Any) -> T:
        with failures_explained(name, **dict(zip(parts, arguments, strict=True))):
            return function(*arguments)

    return call


_ADAPTERS = {
    ("flax.nnx", "State"): ("adapters.from_nnx(module)", ""),
    ("flax.nnx", "Module"): ("adapters.from_nnx(module)", "lambda rngs: {}"),
    ("flax.linen", "Module"): ("adapters.from_linen(module, inputs)", "{}"),
    ("torch.nn", "Module"): ("adapters.from_torch(module)", "{}"),
    ("equinox", "Module"): ("adapters.from_equinox(module)", "lambda key: {}"),
}
"""The calls that make a model of a module, and what they take in place of a class of modules."""


def adapter_call(value: Any) -> str | None:
    """The call that makes a model of another library's module, or of a class of such modules.

    No library is imported: a value can only be a module of a library that is.

    Args:
        value: Any object.

    Returns:
        Python source; None for all other values.
    """
    own = __name__.partition(".")[0]
    cls = value if isinstance(value, type) else type(value)
    if any(base.__module__.partition(".")[0] == own for base in cls.__mro__):
        return None
    for (package, name), (call, maker) in _ADAPTERS.items():
        kind = getattr(sys.modules.get(package), name, None)
        if kind is not None and issubclass(cls, kind):
            of_class = call.replace("module", maker.format(_instance_of(cls, maker)), 1)
            return of_class if cls is value else call
    return None


def _instance_of(cls: type, maker: str) -> str:
    """Source that makes an instance of a class, with ... for arguments that it lacks."""
    by_name = [name for name in ("rngs", "key") if f"lambda {name}:" in maker]
    given = [f"{name}={name}" for name in by_name]
    signature = signature_of(cls)
    try:
        if signature is not None:
            signature.bind(**dict.fromkeys(by_name))
    except TypeError:
        given = ["...", *given]
    return f"{cls.__name__}({', '.join(given)})"


def signature_of(function: Any) -> inspect.Signature | None:
    """The signature of what can be called; None for all other values.

    Builtins and compiled callables may have none either.

    A class whose metaclass takes any arguments, such as those of flax.nnx, has that of `__init__`.
    """
    if isinstance(function, type) and type(function).__call__ is not type.__call__:
        function = partial(function.__init__, None)
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


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
