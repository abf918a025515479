"""Inner-gradient operators: what an estimator hands to an adaptation that asks for a derivative."""

import jax
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.problem import Loss


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
