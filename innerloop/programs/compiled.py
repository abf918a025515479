"""Compiled functions whose programs do not outlive their use.

`equinox.filter_jit` and JAX's own loops keep the program of every function that they are given
until the process ends, and the losses of a problem are mostly new functions in each run.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.core import Tracer

KEPT = 64
"""How many programs of `compiled` functions are kept; the least recently used is dropped first."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled for the arrays in its arguments; everything else in them is static.

    A call with the same static parts uses the same program, unless `KEPT` others were used since.

    Args:
        function: A function of positional arguments, which are pytrees. Leaves that are not arrays
            must be hashable.

    Returns:
        The compiled function.
    """

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        arrays, rest = eqx.partition(args, eqx.is_array)
        leaves, treedef = jax.tree.flatten(rest)
        return _program(function, tuple(leaves), treedef)(arrays)

    return call


def compiled_while_used(function: Callable[..., Any]) -> Callable[..., Any]:
    """`equinox.filter_jit(function)`, whose programs are freed together with it."""
    program: Any = eqx.filter_jit(function)
    # Equinox's cache maps the function to programs that refer to it, so it would never be freed.
    # The cache has no public name: without it, the programs stay as long as the process.
    clear = getattr(getattr(program, "_cached", None), "clear_cache", None)
    if clear is not None:
        weakref.finalize(program, clear).atexit = False
    return program


def if_concrete(compile: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """`compile(function)` for concrete arguments, and `function` itself for traced ones."""
    program = compile(function)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(args))
        return (function if traced else program)(*args)

    return call


@functools.lru_cache(maxsize=KEPT)
def _program(function: Callable[..., Any], leaves: tuple, treedef: Any) -> Callable[[Any], Any]:
    def of_arrays(arrays: Any) -> Any:
        return function(*eqx.combine(arrays, jax.tree.unflatten(treedef, leaves)))

    of_arrays.__name__ = of_arrays.__qualname__ = function.__name__  # the program's name
    return compiled_while_used(of_arrays)
