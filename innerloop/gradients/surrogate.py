"""Losses with a derivative other than that of their value, and guards against its misuse.

Such a loss gives the right first derivative in meta. Any other derivative of it would be silently
wrong, mostly zero; here it raises an error instead.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation.constant import closed_values_fixed
from innerloop.checks import is_inexact
from innerloop.errors import GradientError
from innerloop.gradients.base import Aux, TaskObjective
from innerloop.gradients.reach import reached_leaves, watched_value_and_grad
from innerloop.problem import Episode
from innerloop.tangents import dense, is_zero, refuse_derivative, tangent_leaves


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def known_gradient(name: str, value: Scalar, gradient: list[Array | None], meta: PyTree) -> Scalar:
    r"""`value`, with derivative $\langle$`gradient`, $\mathrm{d}\phi\rangle$ in `meta`.

    Args:
        name: The name of the meta-gradient, for error messages.
        value: The value, computed from a stopped meta.
        gradient: One array per leaf of meta, computed from a stopped meta; None for a leaf that it
            does not reach.
        meta: The meta-parameters.

    Returns:
        The value.

    Raises:
        GradientError: If differentiated twice or in anything but meta.
    """
    return value


@functools.partial(known_gradient.defjvp, symbolic_zeros=True)
def _known_gradient_jvp(name, primals, tangents):
    value, gradient, meta = primals
    value_dot, gradient_dot, meta_dot = tangents
    if not all(is_zero(leaf) for leaf in tangent_leaves((value_dot, gradient_dot))):
        raise _in_meta_alone(name)
    gradient = _once(name, gradient, (value, meta))
    slope = jnp.zeros_like(value)
    for leaf, dot in zip(gradient, tangent_leaves(meta_dot), strict=True):
        if not (is_zero(dot) or leaf is None):
            slope += jnp.sum(leaf * dot).astype(slope.dtype)
    return value, slope


def own_gradient(
    name: str,
    objective: TaskObjective,
    finish: Callable[[PyTree], tuple[PyTree, dict[str, Any]]] = lambda gradient: (gradient, {}),
) -> TaskObjective:
    """The objective with its gradient computed here, for each task separately.

    This is for gradients that are changed depending on their length: a task's weight, or any other
    use of the loss, multiplies the gradient only afterwards.

    Args:
        name: The name of the meta-gradient, for error messages.
        objective: The objective of one task, `(meta, episode, key) -> (loss, aux)`.
        finish: Maps the gradient to `(gradient, diagnostics)`: the gradient to use in its place,
            and entries for `aux.diagnostics`.

    Returns:
        The objective of one task, which has the gradient that `finish` returns.

    Raises:
        DetachedError: If no leaf of meta reaches the loss.
        GradientError: If differentiated twice or in anything but meta.
    """

    def owned(meta: PyTree, episode: Episode, key: PRNGKeyArray) -> tuple[Scalar, Aux]:
        fixed = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, meta))
        of_task = lambda meta: objective(meta, episode, key)
        (loss, aux), gradient, unreached = watched_value_and_grad(of_task, fixed)
        gradient, said = finish(gradient)
        aux = aux._replace(diagnostics=aux.diagnostics | said)
        return known_gradient(name, loss, reached_leaves(gradient, unreached), meta), aux

    return owned


def in_meta_alone(name: str, objective: TaskObjective) -> TaskObjective:
    """The same objective; differentiating it in the episode or in closed-over values raises.

    A gradient that drops a part would drop a part of these derivatives too, and they would be zero
    if that part is all of them.
    """
    error = _in_meta_alone(name)

    def alone(meta: PyTree, episode: Episode, key: PRNGKeyArray) -> tuple[Scalar, Aux]:
        as_array = lambda leaf: leaf if eqx.is_array(leaf) else jnp.asarray(leaf)
        meta, episode = jax.tree.map(as_array, (meta, episode))
        floats, rest = eqx.partition(episode, is_inexact)
        episode = eqx.combine(refuse_derivative(floats, error), rest)
        return closed_values_fixed(objective, error)(meta, episode, key)

    return alone


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def once_differentiable(name: str, value: Scalar, meta: PyTree) -> Scalar:
    """Return `value`; differentiating its gradient in meta raises `GradientError`."""
    return value


@functools.partial(once_differentiable.defjvp, symbolic_zeros=True)
def _once_differentiable_jvp(name, primals, tangents):
    value, meta = primals
    value_dot, _ = tangents
    if is_zero(value_dot):
        return value, jnp.zeros_like(value)
    # A guard on the tangent itself would be dropped by JAX's partial evaluation. This factor is
    # computed from meta, so the rule sees whether meta is differentiated once more.
    return value, value_dot * _once(name, jnp.ones_like(value_dot), meta)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _once(name, derivative, given):
    """Return `derivative`; differentiating it, or anything in `given` beside it, raises."""
    return derivative


@functools.partial(_once.defjvp, symbolic_zeros=True)
def _once_jvp(name, primals, tangents):
    (derivative, _), (derivative_dot, given_dot) = primals, tangents
    if not all(is_zero(leaf) for leaf in tangent_leaves((derivative_dot, given_dot))):
        raise GradientError(
            f"the gradient of {name} is not itself differentiable",
            got="a second derivative",
            expected="first derivatives",
            write="Unroll()",
        )
    return derivative, jax.tree.map(dense, derivative_dot, is_leaf=is_zero)


def _in_meta_alone(name: str) -> GradientError:
    return GradientError(
        f"{name} gives a derivative in meta alone",
        got="a derivative in the episode, or in a value that the problem closes over",
        expected="a derivative in meta",
        write="Unroll(), or what is to be differentiated as a part of meta",
    )
