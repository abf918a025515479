"""Tangents in custom derivative rules, where structural zeros stay symbolic during tracing."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, PyTree

from innerloop.errors import GradientError


def is_zero(tangent: Any) -> bool:
    """Whether a tangent or cotangent is a structural zero, which JAX knows without computing it."""
    return isinstance(tangent, SymbolicZero)


def dense(tangent: Any) -> Array:
    """The tangent as an array; a structural zero becomes an array of zeros."""
    return jnp.zeros(tangent.shape, tangent.dtype) if is_zero(tangent) else tangent


def tangent_leaves(tangents: PyTree) -> list:
    """The leaves of a tree of tangents, structural zeros included."""
    return jax.tree.leaves(tangents, is_leaf=is_zero)


def refuse_derivative(tree: PyTree, error: GradientError) -> PyTree:
    """Return `tree`; differentiating it raises `error`."""

    @jax.custom_jvp
    def identity(tree):
        return tree

    def refuse(primals, tangents):
        (tree,), (tangent,) = primals, tangents
        if not all(is_zero(leaf) for leaf in tangent_leaves(tangent)):
            raise error
        return tree, jax.tree.map(dense, tangent, is_leaf=is_zero)

    identity.defjvp(refuse, symbolic_zeros=True)
    return identity(tree)
