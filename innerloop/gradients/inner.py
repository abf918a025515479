"""The plain inner gradient, as an adaptation receives it."""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from innerloop.adaptation import Adaptation, InnerGradient, InnerRule
from innerloop.fidelity import EXACT, Fidelity
from innerloop.problem import Loss, Problem

INNER_GRADIENT = "inner_gradient"
"""Name by which the checkpointing policy finds the inner gradients."""


class Exact(InnerRule):
    """The gradient of the inner loss, differentiable as often as the loss is.

    Its backward pass is a second reverse pass over the first. All intermediate values of both are
    kept, unless the loop recomputes the step.
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
    """The same operator, with its gradients named for the checkpointing policy."""

    def operator(loss: Loss):
        gradient = inner_gradient(loss)

        def call(*args):
            result, grads = gradient(*args)
            return result, jax.tree.map(lambda leaf: checkpoint_name(leaf, INNER_GRADIENT), grads)

        return call

    return operator
