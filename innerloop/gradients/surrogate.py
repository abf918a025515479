"""Losses whose derivative is not that of their value, and the guards that keep them honest.

Such a loss gives the right first derivative in meta. Any other derivative of it would be silently
wrong, mostly zero; here it raises instead.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree, Scalar

from innerloop.errors import GradientError
from innerloop.gradients.base import Aux, TaskObjective
from innerloop.gradients.reach import detached, reached_leaves, watch_reach
from innerloop.problem import Episode
from innerloop.tangents import dense, is_zero, tangent_leaves
from innerloop.trees import leaf_names


def known_gradient(
    estimator: str, value: Scalar, gradient: Sequence[Array | None], meta: PyTree
) -> Scalar:
    r"""`value`, with derivative $\langle$`gradient`, $\mathrm{d}\phi\rangle$ in `meta`.

    `gradient` holds one array per leaf of meta, None for a leaf that it does not reach. It and
    `value` are computed from a stopped meta. Raises `GradientError` when
    differentiated twice, or in anything but meta.
    """
    return _known_gradient(estimator, value, list(gradient), meta)


def own_gradient(
    estimator: str,
    objective: TaskObjective,
    finish: Callable[[PyTree], tuple[PyTree, dict[str, Any]]] = lambda gradient: (gradient, {}),
) -> TaskObjective:
    """The objective with its gradient taken here, of the loss as it is and of each task alone.

    For what depends on the gradient's length: the weight of a task, or whatever the caller does
    with the loss, then multiplies it afterwards. `finish` gives another gradient for it, and what
    is to be said of it in the diagnostics. Raises `DetachedError` where no leaf of meta reaches the
    loss, and as `known_gradient` does.
    """

    def owned(meta: PyTree, episode: Episode, key: PRNGKeyArray) -> tuple[Scalar, Aux]:
        fixed = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, meta))
        mark, unreached = watch_reach(fixed)
        differentiated = jax.value_and_grad(
            lambda meta: objective(mark(meta), episode, key), has_aux=True
        )
        (loss, aux), gradient = differentiated(fixed)
        gradient, said = finish(gradient)
        leaves = reached_leaves(gradient, unreached())
        if all(leaf is None for leaf in leaves):
            raise detached(", ".join(leaf_names(meta)))
        aux = aux._replace(diagnostics=aux.diagnostics | said)
        return known_gradient(estimator, loss, leaves, meta), aux

    return owned


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _known_gradient(estimator, value, gradient, meta):
    return value


def _known_gradient_jvp(estimator, primals, tangents):
    value, gradient, meta = primals
    value_dot, gradient_dot, meta_dot = tangents
    if not all(is_zero(leaf) for leaf in tangent_leaves((value_dot, gradient_dot))):
        raise _in_meta_alone(estimator)
    gradient = _once(estimator, gradient, meta)
    slope = jnp.zeros_like(value)
    for leaf, dot in zip(gradient, tangent_leaves(meta_dot), strict=True):
        if not (is_zero(dot) or leaf is None):
            slope += jnp.sum(leaf * dot).astype(slope.dtype)
    return value, slope


_known_gradient.defjvp(_known_gradient_jvp, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _once(estimator, derivative, meta):
    return derivative


def _once_jvp(estimator, primals, tangents):
    (derivative, _), (derivative_dot, meta_dot) = primals, tangents
    if not all(is_zero(leaf) for leaf in tangent_leaves((derivative_dot, meta_dot))):
        raise GradientError(
            f"the gradient of {estimator} is not itself differentiable",
            got="a second derivative",
            expected="first derivatives",
            write="Unroll(), whose derivatives of every order are exact",
        )
    return derivative, jax.tree.map(dense, derivative_dot, is_leaf=is_zero)


_once.defjvp(_once_jvp, symbolic_zeros=True)


def _in_meta_alone(estimator: str) -> GradientError:
    return GradientError(
        f"{estimator} gives a derivative in meta alone",
        got="a derivative in the episode, or in a value that the problem closes over",
        expected="a derivative in meta",
        write="what is to be differentiated as a part of meta, or Unroll()",
    )
