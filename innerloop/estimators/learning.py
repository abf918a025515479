"""What estimators that learn tasks from a distribution share."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int

from innerloop.adaptation import Adaptation
from innerloop.arguments import at_least, function, instance, or_none
from innerloop.checks import describe_briefly, explained
from innerloop.devices.placement import OneDevice, Placement
from innerloop.errors import StructureError
from innerloop.estimators.base import Estimator
from innerloop.estimators.settings import NO_SETTING
from innerloop.problem import Episode, Problem

_FROM = "tasks.IndependentTasks(lambda key: jax.tree.map({}))"
TASKS: dict[str, Any] = {
    "what": "a task distribution",
    "such_as": "tasks.IndependentTasks(sample_one)",
    "instead": {
        Episode: _FROM.format("lambda leaf: jax.random.choice(key, leaf), episodes"),
        list: _FROM.format(
            "lambda *leaves: jax.random.choice(key, jax.numpy.stack(leaves)), *episodes"
        ),
    },
}
"""The task-distribution argument; for a fixed set of tasks, the error says how to draw from it."""

Schedule = Callable[[Int[Array, ""]], tuple[Problem, Adaptation]]
"""`outer step -> (problem, adaptation)`. The step is traced: numbers may differ, shapes may not."""


class LearningEstimator(Estimator):
    """An estimator that learns tasks of one problem by one adaptation.

    Attributes:
        problem: What is optimised.
        adaptation: How one task is learned.
        chunk: Tasks that are computed at a time on each device; None for all at once.
        schedule: `outer step -> (problem, adaptation)` if they change during meta-training.
        placement: The devices, which `on` sets.
    """

    problem: Problem = instance(
        Problem, what="a Problem", such_as="Problem(init, inner_loss, outer_loss)"
    )
    adaptation: Adaptation = instance(
        Adaptation, what="an Adaptation", such_as="GradientDescent(optax.sgd(0.1), 1)"
    )
    chunk: int | None = or_none(at_least(1), default=None, kw_only=True, metadata=NO_SETTING)
    schedule: Schedule | None = or_none(function("outer_step"), default=None, kw_only=True)
    placement: Placement = eqx.field(default=OneDevice(), kw_only=True, metadata=NO_SETTING)

    def at(self, outer_step: int | Int[Array, ""]) -> tuple[Problem, Adaptation]:
        """Problem and adaptation of an outer step, with the frozen arrays of `problem`."""
        if self.schedule is None:
            return self.problem, self.adaptation
        step = jnp.asarray(outer_step, jnp.int32)
        made: Any = explained("schedule", self.schedule, "outer_step")(step)
        kinds = (Problem, Adaptation)
        if not isinstance(made, tuple) or len(made) != 2 or not all(map(isinstance, made, kinds)):
            raise StructureError(
                "schedule must return a problem and an adaptation",
                got=describe_briefly(made),
                expected="(problem, adaptation)",
            )
        problem, adaptation = made
        # A schedule closes over frozen arrays, which would be constants of the compiled program.
        return problem.holding(self.problem.frozen, self.problem.state), adaptation

    @property
    def tasks_at_once(self) -> int | None:
        return self.chunk
