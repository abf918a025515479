"""A learner: what is learned of a task, how, and what is predicted with it."""

import dataclasses
from collections.abc import Callable

from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.adaptation import Adaptation
from innerloop.arguments import CheckedModule, function, instance, optional
from innerloop.checks import describe
from innerloop.errors import StructureError
from innerloop.problem import Examples, Problem, state_form

Predict = Callable[[PyTree, PyTree, Examples, PRNGKeyArray], Array]
"""`(params, meta, batch, key) -> predictions` for the rows of `batch`, whose targets are not read.
"""


class Learner(CheckedModule):
    """A problem, the adaptation that learns its tasks, and the predictions after it.

    Args:
        problem: What is optimised.
        adaptation: How one task is learned.
        predict: `(params, meta, batch, key) -> predictions` of the adapted parameters, such as
            the logits of a classifier. None if the outer loss says all there is to say.

    Raises:
        StructureError: A part is of another kind.
    """

    problem: Problem = instance(
        Problem, what="a Problem", such_as="Problem(init, inner_loss, outer_loss)"
    )
    adaptation: Adaptation = instance(
        Adaptation, what="an Adaptation", such_as="GradientDescent(optax.sgd(0.01), 5)"
    )
    predict: Predict | None = optional(
        function("params", "meta", "batch", "key", gives="predictions")
    )

    def following(self, state: PyTree) -> "Learner":
        """`with_state(state)` if the state is one of this learner's problem; itself otherwise."""
        fits = state_form(state) == state_form(self.problem.state)
        return self.with_state(state) if fits else self

    def with_state(self, state: PyTree) -> "Learner":
        """The learner whose tasks begin with this model state, such as the one after `fit`.

        Args:
            state: The model state. A problem without a state is not changed.

        Raises:
            StructureError: If the state of the problem has another structure, or other shapes or
                dtypes.
        """
        if self.problem.state is None or state is None:
            return self
        if state_form(state) != state_form(self.problem.state):
            raise StructureError(
                "the model state is not one of this learner's problem",
                got=describe(state),
                expected=describe(self.problem.state),
            )
        problem = self.problem.holding(self.problem.frozen, state)
        return dataclasses.replace(self, problem=problem)
