"""Inner-gradient operators: what an estimator hands to an adaptation that asks for a derivative."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import InnerGradient
from innerloop.errors import StructureError
from innerloop.problem import Loss

INNER_GRADIENT = "inner_gradient"
"""Name under which checkpointing finds the inner gradients, so that it can keep them."""


def exact_inner_gradient(loss: Loss):
    """The gradient itself, differentiable as often as the loss is."""
    return jax.value_and_grad(loss, has_aux=True)


def stopped_inner_gradient(loss: Loss):
    """The same numbers as constants: no derivative of value, aux or gradient remains."""
    gradient = exact_inner_gradient(loss)

    def stopped(params: PyTree, meta: PyTree, batch: PyTree, key: PRNGKeyArray):
        # Inputs are stopped too, so that no tangent of the backward pass is ever built; outputs,
        # because the loss may close over values that are being differentiated.
        params, meta, batch = jax.lax.stop_gradient((params, meta, batch))
        return jax.lax.stop_gradient(gradient(params, meta, batch, key))

    return stopped


def partly_stopped_inner_gradient(where: Callable[[PyTree], PyTree]) -> InnerGradient:
    """Constants where `where(params)`, a prefix tree of booleans, is True.

    Value and aux are constants if every leaf of the gradient is one.
    """

    def operator(loss: Loss):
        gradient = exact_inner_gradient(loss)

        def partly_stopped(params: PyTree, meta: PyTree, batch: PyTree, key: PRNGKeyArray):
            (value, aux), grads = gradient(params, meta, batch, key)
            held = _leaf_by_leaf(where(params), params)
            treedef = jax.tree.structure(grads)
            grads = treedef.unflatten(map(_stop_if, held, jax.tree.leaves(grads)))
            value, aux = jax.tree.map(lambda leaf: _stop_if(_all(held), leaf), (value, aux))
            return (value, aux), grads

        return partly_stopped

    return operator


def named(inner_gradient: InnerGradient) -> InnerGradient:
    """The same operator, its gradients named for the checkpointing that wants to keep them."""

    def operator(loss: Loss):
        gradient = inner_gradient(loss)

        def call(*args):
            result, grads = gradient(*args)
            return result, jax.tree.map(lambda leaf: checkpoint_name(leaf, INNER_GRADIENT), grads)

        return call

    return operator


def _leaf_by_leaf(held: PyTree, params: PyTree) -> list:
    """A prefix tree of booleans as one boolean per leaf of `params`."""
    try:
        flags = jax.tree.leaves(jax.tree.broadcast(held, params))
    except ValueError as error:
        raise _not_booleans(held) from error
    if all(jnp.result_type(flag) == jnp.bool_ and jnp.shape(flag) == () for flag in flags):
        return flags
    raise _not_booleans(held)


def _not_booleans(held: PyTree) -> StructureError:
    return StructureError(
        "where must say which inner gradients are constants",
        got=f"where(t, params) = {held!r}",
        expected="a boolean, or a tree of booleans that is a prefix of params",
        write="FirstOrder(where=lambda t, params: t < 3), or "
        "FirstOrder(where=lambda t, params: {'body': True, 'head': False})",
    )


def _stop_if(held: Any, leaf: Any) -> Any:
    if isinstance(held, bool):
        return jax.lax.stop_gradient(leaf) if held else leaf
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return leaf
    return jnp.where(held, jax.lax.stop_gradient(leaf), leaf)


def _all(held: list) -> Any:
    if all(isinstance(flag, bool) for flag in held):
        return all(held)
    return jnp.all(jnp.stack([jnp.asarray(flag) for flag in held]))
