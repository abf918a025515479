"""Functions without a derivative: their results are constants, or asking for one raises."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import PyTree

from innerloop.errors import GradientError


def constant(function: Callable) -> Callable:
    """The same function without a derivative: in its arguments, or in what it closes over.

    `jax.lax.stop_gradient` on the results would do for the value; but then the derivative of what
    happens inside is still built, and inside a loop stored, before it is thrown away.
    """
    return _on_everything_it_reads(function, jax.lax.stop_gradient)


def undifferentiable(function: Callable, error: GradientError) -> Callable:
    """The same function; a derivative in its arguments or what it closes over raises `error`."""
    return _on_everything_it_reads(function, lambda tree: refuse_derivative(tree, error))


def _on_everything_it_reads(function: Callable, identity: Callable) -> Callable:
    def call(*args):
        closed = eqx.filter_closure_convert(function, *args)
        arrays, rest = eqx.partition(closed, eqx.is_array)
        arrays, args = identity((arrays, args))
        return eqx.combine(arrays, rest)(*args)

    return call


def refuse_derivative(tree: PyTree, error: GradientError) -> PyTree:
    """Return `tree`; differentiating it raises `error`."""

    @jax.custom_jvp
    def identity(tree):
        return tree

    def refuse(primals, tangents):
        (tree,), (tangent,) = primals, tangents
        if not all(isinstance(leaf, SymbolicZero) for leaf in tangent_leaves(tangent)):
            raise error
        return tree, jax.tree.map(lambda zero: jnp.zeros(zero.shape, zero.dtype), tangent)

    identity.defjvp(refuse, symbolic_zeros=True)
    return identity(tree)


def tangent_leaves(tangents: PyTree) -> list:
    """The leaves of a tree of tangents, symbolic zeros included."""
    return jax.tree.leaves(tangents, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero))
