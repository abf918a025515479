"""A function whose every result is a constant, whatever it closes over."""

from collections.abc import Callable

import equinox as eqx
import jax


def constant(function: Callable) -> Callable:
    """The same function without a derivative: in its arguments, or in what it closes over.

    `jax.lax.stop_gradient` on the results would do for the value; but then the derivative of what
    happens inside is still built, and inside a loop stored, before it is thrown away.
    """

    def call(*args):
        args = jax.lax.stop_gradient(args)
        closed = eqx.filter_closure_convert(function, *args)
        arrays, rest = eqx.partition(closed, eqx.is_array)
        return eqx.combine(jax.lax.stop_gradient(arrays), rest)(*args)

    return call
