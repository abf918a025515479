"""What an estimator is: the gradient of the outer objective, with state between outer steps."""

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree, Scalar

from innerloop.arguments import CheckedModule
from innerloop.devices.placement import Placement
from innerloop.diagnostics import Finding
from innerloop.errors import InnerloopError, StructureError
from innerloop.estimators.settings import settings_of
from innerloop.gradients.base import Fidelity
from innerloop.learner import Learner

_WHOLE = "WholeTasks(problem, adaptation, Unroll(), tasks, batch=8)"
SUCH_AS: dict[str, Any] = {"what": "an estimator", "such_as": _WHOLE}
"""What the error says where something else is given."""


class Estimate(NamedTuple):
    """The gradient estimate that an outer step uses.

    Attributes:
        loss: The value of the outer objective, a scalar.
        grads: Its gradient, in the structure of the meta-parameters.
        metrics: Scalars by name, for the log.
        aux: What an estimator reports of its tasks one by one; `fit` does not read it.
    """

    loss: Scalar
    grads: PyTree
    metrics: dict[str, Scalar]
    aux: Any = None


class TaskFaults(NamedTuple):
    """Which tasks of a step are finite when each is computed alone.

    Attributes:
        finite: `(tasks,)`, whether the task's loss, gradient and model state are finite.
        keys: `(tasks, ...)`, the keys that the tasks were learned with, as numbers.
    """

    finite: Array
    keys: Array


class Apart(NamedTuple):
    """An outer step whose tasks were computed one by one.

    Attributes:
        grads: The weighted mean of the tasks' gradients, each clipped. Tasks whose loss,
            gradient or model state is not finite count as zero.
        state: The estimator's state after the step.
        faults: `TaskFaults` by the name of the part that the tasks belong to; the name is empty for
            an estimator without parts.
        loss: The weighted mean of the tasks' losses. A loss that is not finite counts as zero.
    """

    grads: PyTree
    state: PyTree
    faults: dict[str, TaskFaults]
    loss: Any = 0.0


class TaskSet(NamedTuple):
    """The tasks of an outer step, and the keys that they are learned with.

    Attributes:
        episodes: A batch of episodes.
        keys: `(tasks,)`, one key for each of them.
    """

    episodes: Any
    keys: PRNGKeyArray


class CheckedPart(NamedTuple):
    """What `check` looks at: one problem with its adaptation, meta-gradient and a few tasks.

    `findings` holds the findings about how the tasks are drawn.
    """

    learner: Learner
    gradient: Any
    episodes: Any
    findings: Sequence[Finding] = ()


class Estimator(CheckedModule):
    """The gradient of the outer objective, which an outer step follows.

    An estimator draws its tasks, learns them and returns an `Estimate`. What it needs from one
    outer step to the next (inner runs that are not finished, control variates) is its state, a
    pytree that `fit` carries, checkpoints and resumes. The estimator itself is an argument of the
    compiled program, so arrays in its fields are not constants in the program.

    `key` is the same in all steps of a run. A step derives its own randomness from `key` and
    `outer_step`, so that a run that is resumed repeats the steps of one that was never interrupted.

    An estimator of your own needs `init`, `step` and `fidelity`; the other methods have defaults.
    """

    @abc.abstractmethod
    def init(self, meta: PyTree, key: PRNGKeyArray, outer_step: int = 0) -> PyTree:
        """The state before `outer_step`.

        Args:
            meta: The meta-parameters at that step.
            key: A random key.
            outer_step: The number of the step, known while tracing.

        Returns:
            A pytree of arrays, empty for an estimator without state.
        """

    @abc.abstractmethod
    def step(
        self,
        meta: PyTree,
        state: PyTree,
        data: Any,
        key: PRNGKeyArray,
        outer_step: Int[Array, ""],
    ) -> tuple[Estimate, PyTree]:
        """Estimate the gradient at one outer step.

        Args:
            meta: The meta-parameters.
            state: The state before the step.
            data: What `feed` gave for this step.
            key: The run's key, the same in every step.
            outer_step: The number of the step, the first being 0. It is traced.

        Returns:
            The estimate, and the state after the step.
        """

    @abc.abstractmethod
    def fidelity(self) -> Fidelity:
        """How far the mean of this estimator is from the gradient of the outer objective."""

    def feed(self, key: PRNGKeyArray, first_step: int, n: int) -> Any:
        """Data from the host for the outer steps `first_step` ... `first_step + n - 1`.

        It must depend on its arguments alone: steps are asked for again after a fault and when a
        run is resumed.

        Returns:
            NumPy arrays whose first axis has length n, or None if nothing comes from the host.
        """
        return None

    def close(self) -> None:
        """Stop whatever draws data ahead."""
        return None

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Outer steps at which the state changes its structure. `fit` calls `enter` before them."""
        return ()

    def enter(self, state: PyTree, meta: PyTree, key: PRNGKeyArray, outer_step: int) -> PyTree:
        """The state to go on with at one of the `boundaries`.

        Args:
            state: The state after the step before.
            meta: The meta-parameters at the boundary.
            key: The key that `init` was given.
            outer_step: The boundary.
        """
        return state

    def on(self, placement: Placement) -> "Estimator":
        """The same estimator with its tasks shared out over devices.

        By default every device computes the whole step.
        """
        return self

    def model_state(self, state: PyTree) -> PyTree:
        """The model state with which new tasks begin, taken from a state of the estimator.

        Validation uses it in place of the `state` of the learner's problem, and the problem of
        `Fit.learner` has it. None if the estimator carries no model state.
        """
        return None

    def with_model_state(self, state: PyTree, model_state: PyTree) -> PyTree:
        """The state of the estimator with another model state."""
        return state

    def per_task(self, state: PyTree) -> PyTree:
        """How the state lies on devices, leaf by leaf.

        Returns:
            A prefix tree of booleans: True where the leading axis of the leaves is the task axis,
            which is shared out over the devices; False where every device holds the leaves whole.
        """
        return False

    def apart(
        self,
        meta: PyTree,
        state: PyTree,
        data: Any,
        key: PRNGKeyArray,
        outer_step: Int[Array, ""],
        norm: float,
    ) -> Apart:
        """The same step, its tasks computed one by one, after it turned out not to be finite.

        By default no task is named, and the gradient is zero.

        Args:
            meta: As in `step`, like the arguments after it.
            state: See `step`.
            data: See `step`.
            key: See `step`.
            outer_step: See `step`.
            norm: The largest norm of a task's gradient, to which a larger one is scaled.
        """
        _, after = self.step(meta, state, data, key, outer_step)
        return Apart(jax.tree.map(jnp.zeros_like, meta), after, {})

    def error_of_values(
        self, meta: PyTree, state: PyTree, data: Any, key: PRNGKeyArray, outer_step: int
    ) -> InnerloopError | None:
        """The error in the values of this step's tasks, such as a label that is not a class.

        `fit` calls it when a run ends at a step that is not finite. By default it returns None.

        Args:
            meta: As in `step`, like the arguments after it.
            state: See `step`.
            data: See `step`.
            key: See `step`.
            outer_step: The number of the step.
        """
        return None

    def settings(self) -> dict[str, Any]:
        """What the numbers of a run depend on, by name: JSON values that a resumed run compares."""
        return settings_of(self)

    @property
    def learner(self) -> Learner | None:
        """The learner that is trained, if there is exactly one: `fit` validates it by default."""
        return None

    @property
    def tasks_per_step(self) -> int:
        """Tasks or inner runs of an outer step, for the speed in the log."""
        return 1

    @property
    def tasks_at_once(self) -> int | None:
        """The most tasks that are computed at a time, if that is limited."""
        return None

    def tasks_of_step(self, key: PRNGKeyArray, outer_step: int) -> "TaskSet | dict[str, Any]":
        """The tasks of an outer step, to learn them again by hand.

        Args:
            key: The key that `step` is given.
            outer_step: The number of the step.

        Returns:
            A `TaskSet`, or a dictionary of them by the name of the part.

        Raises:
            StructureError: The estimator's tasks are not drawn anew in each step.
        """
        raise self.not_whole("tasks_of_step")

    def within(self, memory: Any, meta: PyTree, held: int) -> "tuple[Estimator, Any]":
        """The same estimator within a budget of memory.

        Args:
            memory: The budget of a device, such as `"2GiB"`.
            meta: Meta-parameters, or their shapes.
            held: Bytes that the trainer keeps.

        Returns:
            An estimator whose meta-gradient and chunk fit the budget, and the plan.

        Raises:
            StructureError: The estimator cannot be planned, or nothing fits.
        """
        raise self.not_whole("fit(memory=...)")

    def checked_parts(self, key: PRNGKeyArray) -> "dict[str, CheckedPart]":
        """What `check` looks at before the first step, by the name of the part.

        Raises:
            StructureError: The estimator has no problem of whole tasks to look at.
        """
        raise self.not_whole("fit(check=True)")

    def not_whole(self, asked: str) -> StructureError:
        """The error of what is asked of estimators of whole tasks alone."""
        return StructureError(
            f"{asked} is for estimators of whole tasks",
            got=type(self).__name__,
            expected="WholeTasks",
            write=_WHOLE,
        )
