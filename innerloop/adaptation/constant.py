"""Functions without a derivative: the result is a constant, or differentiation raises."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from innerloop.checks import is_inexact
from innerloop.errors import GradientError
from innerloop.tangents import refuse_derivative


def constant(function: Callable) -> Callable:
    """The same function, constant in its arguments and in the values that it closes over.

    `jax.lax.stop_gradient` on the results would give the same value, but JAX would still build the
    derivative of the function (and store it, inside a loop) before dropping it.
    """
    # A copy is a value of the program that is being traced. Without it, `stop_gradient` would drop
    # the tangent of a value that an outer forward mode differentiates, and nothing could refuse it.
    copied = lambda leaf: jnp.copy(leaf) if is_inexact(leaf) else leaf
    stopped = lambda tree: jax.lax.stop_gradient(jax.tree.map(copied, tree))
    return _on_everything_it_reads(function, stopped)


def undifferentiable(function: Callable, error: GradientError) -> Callable:
    """The same function; a derivative in its arguments or closed-over values raises `error`."""
    return _on_everything_it_reads(function, lambda tree: refuse_derivative(tree, error))


def closed_values_fixed(function: Callable, error: GradientError) -> Callable:
    """The same function; a derivative in a value that it closes over raises `error`."""

    def call(*args):
        closed = eqx.filter_closure_convert(function, *args)
        arrays, rest = eqx.partition(closed, is_inexact)
        return eqx.combine(refuse_derivative(arrays, error), rest)(*args)

    return call


def _on_everything_it_reads(function: Callable, identity: Callable) -> Callable:
    def call(*args):
        closed = eqx.filter_closure_convert(function, *args)
        arrays, rest = eqx.partition(closed, eqx.is_array)
        arrays, args = identity((arrays, args))
        return eqx.combine(arrays, rest)(*args)

    return call
