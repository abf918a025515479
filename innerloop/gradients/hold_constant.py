"""Inner gradients as constants: the first-order meta-gradient, in whole or in part."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import Adaptation, InnerGradient, InnerRule
from innerloop.arguments import function, optional
from innerloop.arguments.requirement import of_python
from innerloop.checks import explained
from innerloop.errors import StructureError
from innerloop.fidelity import ESTIMATE, Fidelity, combined
from innerloop.gradients.base import held_state
from innerloop.gradients.inner import exact_inner_gradient, named
from innerloop.problem import Loss, Problem


class HoldConstant(InnerRule):
    r"""Differentiates the updates, but not the inner gradients in them (FOMAML: Finn et al. 2017).

    With $g_t$ the inner gradient held constant, $\theta_{t+1} = \theta_t + u(g_t, \theta_t, \phi)$.
    For gradient descent from $\theta_0 = \phi$ this leaves
    $\nabla_\phi \approx \nabla L_\text{outer}(\theta_K)$. The dependence on `meta` outside the
    inner gradient (an initialisation, a learned rate, a weight decay) is still differentiated. The
    dependence inside the inner loss is not, nor are the `value` that the optimizer receives and the
    model state that the inner loss returns, even with `Problem(..., through_state=True)`.

    Fidelity: biased, by the dropped second derivatives; exact if there are no inner steps.
    Memory: that of a plain forward pass, plus the K inner gradients if an update reads meta (as a
    learned rate does); with `where`, that of `Exact()`.

    Args:
        where: `(t, params) -> held`, a boolean or a prefix tree of params with booleans: True holds
            the gradient constant at this step or leaf; by default all are held constant. The others
            are differentiated exactly, at the cost of `Exact()`. A choice of steps is
            derivative-order annealing within the loop; a choice of leaves can differentiate the
            head exactly and the body to first order. t may be traced: the gradient of a
            meta-parameter that acts in held steps alone is then a zero that `unreached` does not
            name.

    Raises:
        StructureError: If `where` does not take these arguments, and while tracing if it returns
            anything but booleans.
    """

    where: Callable[[Any, PyTree], PyTree] | None = optional(
        function("t", "params", gives="whether constant")
    )

    def at(self, t: Any) -> InnerGradient:
        """See `InnerRule`."""
        where = self.where
        if where is None:
            return named(stopped_inner_gradient)
        explained_where = explained("where", where, "t", "params")
        return named(partly_stopped_inner_gradient(lambda params: explained_where(t, params)))

    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """Biased; exact without inner steps."""
        if adaptation.steps == 0:
            return Fidelity("exact", "There is no inner gradient to drop.")
        which = (
            "Every inner gradient" if self.where is None else "An inner gradient chosen by where"
        )
        gradients = Fidelity(
            "biased",
            f"{which} is held constant: its derivatives with respect to parameters and "
            "meta-parameters are dropped.",
            ESTIMATE,
            takes=1 if self.where is None else 2,
        )
        # The inner loss returns the model state, so it is held with the gradient.
        state = held_state(problem, always=True)
        if self.where is not None and problem is not None and problem.through_state:
            said = "The model state after a step at which all gradients are held is constant too."
            state = state if state.kind == "exact" else state._replace(sentence=said)
        return combined([gradients, state])


def stopped_inner_gradient(loss: Loss):
    """The inner gradient with value, aux and gradient as constants."""
    gradient = exact_inner_gradient(loss)

    def stopped(params: PyTree, meta: PyTree, batch: PyTree, key: PRNGKeyArray):
        # The inputs are stopped so that no tangent of the backward pass is ever built; the outputs
        # because the loss may close over values that are being differentiated.
        params, meta, batch = jax.lax.stop_gradient((params, meta, batch))
        return jax.lax.stop_gradient(gradient(params, meta, batch, key))

    return stopped


def partly_stopped_inner_gradient(where: Callable[[PyTree], PyTree]) -> InnerGradient:
    """The inner gradient, constant where `where(params)`, a prefix tree of booleans, is True.

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


def _leaf_by_leaf(held: PyTree, params: PyTree) -> list:
    """A prefix tree of booleans as one boolean per leaf of `params`."""
    try:
        flags = jax.tree.leaves(jax.tree.broadcast(held, params))
    except ValueError:  # it is no prefix of params
        flags = None
    is_boolean = lambda flag: (
        eqx.is_array_like(flag) and (jnp.result_type(flag) == jnp.bool_ and jnp.shape(flag) == ())
    )
    if flags is not None and all(map(is_boolean, flags)):
        return of_python(flags)  # for an int t, a comparison may be a boolean of NumPy
    raise StructureError(
        "where must say which inner gradients are constants",
        got=f"where(t, params) = {held!r}",
        expected="a boolean, or a tree of booleans that is a prefix of params",
        write="FirstOrder(where=lambda t, params: t < 3), or "
        "FirstOrder(where=lambda t, params: {'body': True, 'head': False})",
    )


def _stop_if(held: Any, leaf: Any) -> Any:
    if isinstance(held, bool):
        return jax.lax.stop_gradient(leaf) if held else leaf
    return jnp.where(held, jax.lax.stop_gradient(leaf), leaf)


def _all(held: list) -> Any:
    if all(isinstance(flag, bool) for flag in held):
        return all(held)
    return jnp.all(jnp.stack([jnp.asarray(flag) for flag in held]))
