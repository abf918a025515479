"""Influence balancing: the problem on which truncated gradients point the wrong way."""

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import GradientDescent
from innerloop.arguments import at_least, checked, require
from innerloop.problem import Episode, Problem
from innerloop.tasks.base import IndependentTasks


@checked(positive=at_least(1))
def influence_balancing(
    units: int = 23, positive: int = 10
) -> tuple[Problem, GradientDescent, IndependentTasks]:
    r"""A parameter whose influence is positive soon and negative in the long run.

    $$s_{t+1} = A s_t + \phi\, (\underbrace{1, \dots, 1}_\text{positive}, -1, \dots, -1)^\top,
      \qquad A_{ii} = A_{i,i+1} = \tfrac12, \qquad s_0 = (1, \dots, 1)^\top,$$

    with the loss $\frac12 (s_t^1 - 1)^2$ of the first unit, its mean over all steps but the start
    (Tallec & Ollivier 2017, arXiv 1702.05043). What $\phi$ does to a unit reaches the first one
    later the further away it is, so that a window of less than `positive` steps sees nothing but
    the positive part. In the long run $s^1$ is $2 (2 \cdot \text{positive} - \text{units})\,\phi$,
    which is $-6 \phi$ unless given otherwise.

    This problem is for trying out estimators. Meta is a scalar array and the loss is quadratic in
    it, so smoothing does not change its gradient. The process is not a descent: the inner loss is
    zero, and the optimizer of `GradientDescent` ignores the gradient.

    Args:
        units: The number of units.
        positive: The number of units on which the direct influence is positive.

    Returns:
        `(problem, adaptation, tasks)`.

    Raises:
        StructureError: If `positive` is below 1 or above `units`.
    """
    require(at_least(positive), "units", units, "influence_balancing")
    matrix = (np.eye(units) + np.eye(units, k=1)) / 2
    push = np.where(np.arange(units) < positive, 1.0, -1.0)

    def dynamics(meta: PyTree) -> optax.GradientTransformation:
        def update(updates, state, params=None):
            assert params is not None
            moved = jnp.asarray(matrix, params.dtype) @ params
            return moved + meta * jnp.asarray(push, params.dtype) - params, state

        return optax.GradientTransformation(lambda params: (), update)

    def loss(params: PyTree, meta: PyTree, batch: PyTree, key: PRNGKeyArray):
        return (params[0] - batch.astype(params.dtype)) ** 2 / 2

    problem = Problem(
        init=lambda meta, support, key: support.astype(meta.dtype),
        inner_loss=lambda params, meta, batch, key: 0 * jnp.sum(params),
        outer_loss=loss,
        step_weights=lambda steps: jnp.full(steps + 1, 1 / steps).at[0].set(0),
    )
    tasks = IndependentTasks(lambda key: Episode(jnp.ones(units), jnp.ones(())))
    return problem, GradientDescent(dynamics, steps=1), tasks
