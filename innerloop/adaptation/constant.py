"""Functions without a derivative: their results are constants, or asking for one raises."""

from collections.abc import Callable

import equinox as eqx
import jax

from innerloop.checks import is_floating
from innerloop.errors import GradientError
from innerloop.tangents import refuse_derivative


def constant(function: Callable) -> Callable:
    """The same function without a derivative: in its arguments, or in what it closes over.

    `jax.lax.stop_gradient` on the results would do for the value; but then the derivative of what
    happens inside is still built, and inside a loop stored, before it is thrown away.
    """
    return _on_everything_it_reads(function, jax.lax.stop_gradient)


def undifferentiable(function: Callable, error: GradientError) -> Callable:
    """The same function; a derivative in its arguments or what it closes over raises `error`."""
    return _on_everything_it_reads(function, lambda tree: refuse_derivative(tree, error))


def closed_values_fixed(function: Callable, error: GradientError) -> Callable:
    """The same function; a derivative in a value that it closes over raises `error`."""

    def call(*args):
        closed = eqx.filter_closure_convert(function, *args)
        arrays, rest = eqx.partition(closed, is_floating)
        return eqx.combine(refuse_derivative(arrays, error), rest)(*args)

    return call


def _on_everything_it_reads(function: Callable, identity: Callable) -> Callable:
    def call(*args):
        closed = eqx.filter_closure_convert(function, *args)
        arrays, rest = eqx.partition(closed, eqx.is_array)
        arrays, args = identity((arrays, args))
        return eqx.combine(arrays, rest)(*args)

    return call
