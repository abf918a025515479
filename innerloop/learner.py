"""A learner: what is learned of a task, how, and what is predicted with it."""

from collections.abc import Callable

import equinox as eqx
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.adaptation import Adaptation
from innerloop.problem import Examples, Problem

Predict = Callable[[PyTree, PyTree, Examples, PRNGKeyArray], Array]
"""`(params, meta, batch, key) -> predictions` for the rows of `batch`, whose targets are not read.
"""


class Learner(eqx.Module):
    """A problem, the adaptation that learns its tasks, and the predictions after it.

    Args:
        problem: What is optimised.
        adaptation: How one task is learned.
        predict: `(params, meta, batch, key) -> predictions` of the adapted parameters, such as
            the logits of a classifier. None if the outer loss says all there is to say.
    """

    problem: Problem
    adaptation: Adaptation
    predict: Predict | None = None
