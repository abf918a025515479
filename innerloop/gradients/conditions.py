"""The equations that hold at the adapted parameters, which `Implicit` differentiates."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree, Scalar

from innerloop.arguments import checked, either, function, instance, positive
from innerloop.checks import explained
from innerloop.gradients.inner import exact_inner_gradient
from innerloop.normal_form import After, at_state, initial_params, loss_function
from innerloop.problem import Problem, parameters, state_of
from innerloop.trees import add, dot

Condition = Callable[[PyTree, PyTree, PyTree, PRNGKeyArray], PyTree]
"""`(params, meta, batch, key) -> residual`, zero at the adapted parameters and shaped like them."""


def stationarity(problem: Problem) -> Condition:
    r"""The condition $F = \nabla_\theta L_\text{inner}$ of a minimum."""
    loss = loss_function("inner_loss", problem, needed_by="Implicit")

    def condition(adapted: PyTree, meta: PyTree, batch: PyTree, key: PRNGKeyArray) -> PyTree:
        gradient = exact_inner_gradient(at_state(loss, state_of(adapted)))
        return gradient(parameters(adapted), meta, batch, key)[1]

    return condition


def _without_frozen(problem: Problem) -> Problem:
    """The problem for a function that is given the frozen arrays in meta.

    The function would otherwise hold them itself, as constants of the compiled program.
    """
    return problem.holding(None, problem.state)


def fixed_point(function: Condition) -> Condition:
    r"""The condition $F = \theta - T(\theta, \phi)$ of a fixed point of `function`, T.

    Args:
        function: `(params, meta, batch, key) -> params`, such as an inner step, a projected or a
            proximal step (`projected_gradient`), or any other map under which the adaptation has
            converged.

    Returns:
        The condition, `(params, meta, batch, key) -> residual`.
    """

    def condition(params: PyTree, meta: PyTree, batch: PyTree, key: PRNGKeyArray) -> PyTree:
        after = function(params, meta, batch, key)
        return jax.tree.map(jnp.subtract, parameters(params), after)

    return condition


def projected_gradient(
    problem: Problem, projection: Callable[[PyTree, PyTree], PyTree], rate: float
) -> Condition:
    r"""The condition $F = \theta - P(\theta - \alpha \nabla_\theta L_\text{inner}(\theta), \phi)$.

    Args:
        problem: The problem with the inner loss.
        projection: `(params, meta) -> params`, the projection P onto a feasible set, or the
            proximal operator of a penalty that is not differentiable, for the step α.
        rate: The step α > 0; any step gives the same optimum.

    Returns:
        The condition, `(params, meta, batch, key) -> residual`.
    """
    gradient_at = stationarity(_without_frozen(problem))

    def step(params: PyTree, meta: PyTree, batch: PyTree, key: PRNGKeyArray) -> PyTree:
        gradient = gradient_at(params, meta, batch, key)
        return projection(add(parameters(params), gradient, -rate), meta)

    return fixed_point(step)


@checked(
    strength=either(
        positive(such_as=1.0),
        function("meta", gives="scalar"),
        instance(jax.Array, np.ndarray, what="a scalar array", such_as="jax.numpy.array(1.0)"),
    )
)
def proximal(problem: Problem, strength: float | Scalar | Callable[[PyTree], Scalar]) -> Problem:
    r"""The problem with a penalty on the distance from the initial parameters (iMAML, equation 3).

    $$L_\text{inner}(\theta) + \frac{\lambda}{2} \|\theta - \theta_0(\phi)\|^2$$

    The penalty makes the optimum depend on the initialisation, and makes an inner loss that is
    nearly flat strictly convex.

    Args:
        problem: The problem. Its `init` must give the same parameters for every key and every part
            of the support set.
        strength: λ > 0, or a function of meta that returns it.

    Returns:
        The problem with the penalty in its inner loss.

    Raises:
        StructureError: If the problem has no `init` or no `inner_loss`, or λ is a number that is
            not positive.
    """
    own = _without_frozen(problem)
    inner_loss = loss_function("inner_loss", own, needed_by="proximal")
    init = initial_params(own, needed_by="proximal")

    def pulled(params: PyTree, meta: PyTree, batch: PyTree, key: PRNGKeyArray):
        value, aux = inner_loss(params, meta, batch, key)
        pull = explained("strength", strength, "meta")(meta) if callable(strength) else strength
        way = jax.tree.map(jnp.subtract, parameters(params), init(meta, batch, key))
        penalty = jnp.asarray(pull / 2, value.dtype) * dot(way, way).astype(value.dtype)
        loss = value + penalty
        return (loss, aux.aux, aux.state) if isinstance(aux, After) else (loss, aux)

    return dataclasses.replace(problem, inner_loss=pulled)
