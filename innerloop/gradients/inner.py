"""The inner gradient itself, as an adaptation that asks for a derivative is handed it."""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from innerloop.adaptation import Adaptation, InnerGradient, InnerRule
from innerloop.fidelity import EXACT, Fidelity
from innerloop.problem import Loss, Problem

INNER_GRADIENT = "inner_gradient"
"""Name under which checkpointing finds the inner gradients, so that it can keep them."""


class Exact(InnerRule):
    """The gradient of the inner loss, as often differentiable as the loss is.

    Its backward pass is a second reverse pass over the first: all intermediate values of both are
    kept, unless the loop takes the step again.
    """

    def at(self, t: Any) -> InnerGradient:
        """See `InnerRule`."""
        return named(exact_inner_gradient)

    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """Exact after any adaptation."""
        return EXACT


def exact_inner_gradient(loss: Loss):
    """The gradient itself, differentiable as often as the loss is."""
    return jax.value_and_grad(loss, has_aux=True)


def named(inner_gradient: InnerGradient) -> InnerGradient:
    """The same operator, its gradients named for the checkpointing that wants to keep them."""

    def operator(loss: Loss):
        gradient = inner_gradient(loss)

        def call(*args):
            result, grads = gradient(*args)
            return result, jax.tree.map(lambda leaf: checkpoint_name(leaf, INNER_GRADIENT), grads)

        return call

    return operator
