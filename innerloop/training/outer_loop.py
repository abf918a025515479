"""The outer loop: many steps in one call to the device, and what is done about faulty ones."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree, Scalar

from innerloop.checks import failures_explained
from innerloop.devices.placement import OneDevice, Placement
from innerloop.diagnostics.checks.source import place_of
from innerloop.errors import InnerloopError, StructureError
from innerloop.estimators import Estimator
from innerloop.estimators.base import TaskFaults
from innerloop.gradients.surrogate import known_gradient
from innerloop.masks import padding_rows
from innerloop.programs import traced_twice
from innerloop.programs.compiled import compiled
from innerloop.training.non_finite import Fault, NonFinite, in_a_step
from innerloop.transformations import (
    Judged,
    Offers,
    Transformation,
    begin,
    lenient_promotion,
    other_optimizer,
    take_step,
)
from innerloop.trees import all_finite, cast_like, definite, length, widened


class TrainState(NamedTuple):
    """All that the next outer step needs.

    Attributes:
        meta: The meta-parameters.
        average: The exponential moving average of the meta-parameters to be evaluated. It is
            float32 at least, because a narrower type would round its small changes away.
        optimizer: The outer optimizer's state.
        step: The number of outer steps taken.
        faults: How many of them had a loss, a meta-gradient or a model state that was not finite.
        in_a_row: How many since the last step that was finite.
        estimator: The estimator's state.
    """

    meta: PyTree
    average: PyTree
    optimizer: PyTree
    step: Int[Array, ""]
    faults: Int[Array, ""]
    in_a_row: Int[Array, ""]
    estimator: PyTree = ()


class Kept(NamedTuple):
    """What is validated, and kept if it is the best.

    Attributes:
        meta: The average of the meta-parameters.
        model_state: The model state that tasks begin with; None if the estimator carries none.
    """

    meta: PyTree
    model_state: PyTree = None


class Program(eqx.Module):
    """What is compiled: the outer step of an estimator, an optimizer and a placement.

    It is an argument of the compiled functions, so its arrays are not constants in them.
    """

    estimator: Estimator
    optimizer: Transformation
    averaging: float = eqx.field(static=True)
    placement: Placement = OneDevice()
    judged: Judged | None = None

    def update(
        self, state: TrainState, loss: Scalar, grads: PyTree, data: Any, key: PRNGKeyArray
    ) -> TrainState:
        """The state after a step whose loss, meta-gradient and model state are finite."""

        def objective(meta: PyTree) -> Scalar:
            """The loss of the step at other meta-parameters, with the estimator's gradient."""
            fixed = jax.lax.stop_gradient(meta)
            found, _ = self.estimator.step(fixed, state.estimator, data, key, state.step)
            return known_gradient("the outer loss", found.loss, jax.tree.leaves(found.grads), meta)

        offers = Offers.of(loss, grads, objective, jax.grad(objective))
        with _explained(meta=state.meta), lenient_promotion():
            after = take_step(self.optimizer, state.optimizer, state.meta, offers)
            meta, optimizer_state = after
            wide = widened(self._judged(optimizer_state, meta))
            average = optax.incremental_update(wide, state.average, 1 - self.averaging)
        place = self.placement
        meta, average = place.as_state(meta), place.as_state(average)
        optimizer_state = place.as_optimizer_state(optimizer_state, meta)
        moved = {"meta": meta, "average": average, "optimizer": optimizer_state}
        return state._replace(**moved, step=state.step + 1, in_a_row=jnp.int32(0))

    def _judged(self, optimizer_state: PyTree, meta: PyTree) -> PyTree:
        if self.judged is None:
            return meta
        return cast_like(self.judged(optimizer_state, meta), meta)

    def step(self, state: TrainState, data: Any, key: PRNGKeyArray):
        """One outer step: `(state, metrics, sound)`. A step that is not sound changes nothing."""
        estimate, after = self.estimator.step(state.meta, state.estimator, data, key, state.step)
        norm = length(estimate.grads)
        found = estimate.loss, estimate.grads, self.estimator.model_state(after)
        sound = all_finite(found)

        def moved(state: TrainState, after: PyTree) -> TrainState:
            moved = self.update(state, estimate.loss, estimate.grads, data, key)
            return moved._replace(estimator=after)

        state = jax.lax.cond(sound, moved, lambda state, _: state, state, after)
        metrics = {"loss": estimate.loss, "gradient_norm": norm} | estimate.metrics
        return state, self.placement.whole(metrics), sound

    @compiled
    def step_apart(
        self, policy: NonFinite, state: TrainState, data: Any, key: PRNGKeyArray
    ) -> tuple[TrainState, dict[str, TaskFaults]]:
        """A faulty step again, its tasks one by one: the state after it, and what was found."""
        norm = 1.0 if policy.norm is None else policy.norm
        apart = self.estimator.apart(state.meta, state.estimator, data, key, state.step, norm)
        after = state._replace(step=state.step + 1)
        if policy.norm is not None:
            after = self.update(state, apart.loss, apart.grads, data, key)
        counts = {"faults": state.faults + 1, "in_a_row": state.in_a_row + 1}
        after = after._replace(**counts, estimator=apart.state)
        return after, self.placement.whole(apart.faults)


def init_state(meta: PyTree, optimizer: Transformation, estimator: PyTree = ()) -> TrainState:
    """The state before the first outer step.

    Its leaves are arrays of a definite dtype, as they come back from a checkpoint: numbers and
    weakly typed arrays in an optimizer's state would be promoted differently after a restart.
    """
    meta = jax.tree.map(definite, meta)
    average = widened(meta)
    zero = jnp.int32(0)
    with _explained(meta=meta), lenient_promotion():
        optimizer_state = begin(optimizer, meta)
    return TrainState(meta, average, optimizer_state, zero, zero, zero, estimator)


def _explained(**given: PyTree) -> AbstractContextManager[None]:
    return failures_explained("the outer optimizer", write=other_optimizer, **given)


def averaged(state: TrainState) -> PyTree:
    """The average in the dtypes of the meta-parameters."""
    return jax.tree.map(lambda leaf, mean: mean.astype(leaf.dtype), state.meta, state.average)


@compiled
def outer_steps(
    program: Program,
    state: TrainState,
    data: Any,
    key: PRNGKeyArray,
    n: Int[Array, ""],
    at_most: int,
) -> tuple[TrainState, dict[str, Any], Int[Array, ""]]:
    """Take n <= `at_most` outer steps, or end at the first that is not finite.

    n is a traced number: one compiled program serves every n.

    Args:
        program: What a step does.
        state: The state before the first step.
        data: What the host gave for these steps, leaves `(at_most, ...)`.
        key: The run's key.
        n: How many steps are wanted.
        at_most: The size of the arrays of metrics.

    Returns:
        The state, the metrics, and the number of steps that were finite. A step that is not finite
        leaves the state as it was. The metrics are arrays of length `at_most`, whose rows are
        filled up to and including that step.

    Raises:
        StructureError: If two traces of a step differ. A trace takes a small part of the time that
            compilation takes, and a number of the host would be the same in every step.
    """
    of_step = lambda i: jax.tree.map(lambda leaf: leaf[i], data)
    step, (_, shapes, _), found = traced_twice(program.step, state, of_step(0), key)
    if found is not None:
        raise StructureError(
            "an outer step is a different program each time it is traced",
            got=f"another number or operation in the second trace, at {place_of(found)}",
            expected="functions of their arguments alone; a number that a function draws or reads "
            "on the host is read once and is then a constant of the compiled program",
            write="jax.random with the key that the function is given",
        )
    empty = jax.tree.map(lambda leaf: jnp.full(at_most, jnp.nan, leaf.dtype), shapes)

    def goes_on(carry):
        _, _, i, sound = carry
        return (i < n) & sound

    def body(carry):
        state, filled, i, _ = carry
        state, metrics, sound = step(state, of_step(i), key)
        filled = jax.tree.map(lambda row, x: row.at[i].set(x), filled, metrics)
        return state, filled, i + sound.astype(i.dtype), sound

    start = (state, empty, jnp.int32(0), jnp.bool_(True))
    state, filled, taken, _ = jax.lax.while_loop(goes_on, body, start)
    return state, filled, taken


@dataclass
class OuterLoop:
    """The outer steps of a run: `state, metrics, fault = loop(state, n)`.

    Args:
        estimator: The estimator whose gradient each step follows, on its devices.
        optimizer: The outer optimizer.
        init_key: The key of the estimator's state.
        step_key: The key of the steps.
        averaging: The decay of the average of the meta-parameters.
        at_most: The most steps of a call.
        non_finite: The policy for steps that are not finite.
        placement: The devices.
        judged: Returns the meta-parameters that are averaged and validated; if None, these are the
            meta-parameters at which the gradient is taken.
    """

    estimator: Estimator
    optimizer: Transformation
    init_key: PRNGKeyArray
    step_key: PRNGKeyArray
    averaging: float
    at_most: int
    non_finite: NonFinite
    placement: Placement
    judged: Judged | None = None

    def __post_init__(self):
        placed = self.placement.place(self.estimator)
        parts = (placed, self.optimizer, self.averaging, self.placement, self.judged)
        self._program = Program(*parts)
        self._key = self.placement.place(self.step_key)

    def begin(self, meta: PyTree, step: int = 0) -> TrainState:
        """The state before the outer step `step`, from these meta-parameters."""
        state = self.placement.place_state(init_state(meta, self.optimizer))
        held = _init(self.estimator, meta, self.init_key, step)
        return state._replace(estimator=self._placed(held))

    def kept(self, state: TrainState) -> Kept:
        """What is validated and kept of a state."""
        return Kept(averaged(state), self.estimator.model_state(state.estimator))

    def enter(self, state: TrainState) -> TrainState:
        """The state, with the estimator's part replaced at one of the estimator's boundaries."""
        step = int(state.step)
        if step not in self.estimator.boundaries:
            return state
        meta = self.placement.gathered(state.meta)
        held = self.estimator.enter(state.estimator, meta, self.init_key, step)
        return state._replace(estimator=self._placed(held))

    def __call__(
        self, state: TrainState, n: int
    ) -> tuple[TrainState, dict[str, Any], Fault | None]:
        """Take n steps, or end with the first that is not finite.

        The metrics have a row for each step that the state has taken: if the policy ends the run,
        the state is the one before the fault, and the metrics end there too.
        """
        data = self.estimator.feed(self.step_key, int(state.step), n)
        rows = padding_rows(n, self.at_most)
        data = self.placement.place(jax.tree.map(lambda leaf: leaf[rows], data))
        count = self.placement.place(np.int32(n))
        try:
            after, filled, sound = outer_steps(
                self._program, state, data, self._key, count, self.at_most
            )
            taken, fault = int(sound), None
        except eqx.EquinoxRuntimeError as error:  # a solver raises for values that are not finite
            why = self._error_of_values(state, jax.tree.map(lambda leaf: leaf[0], data))
            if why is None:
                raise
            raise in_a_step(why, int(state.step)) from error
        state = after
        if taken < n:
            loss = float(filled["loss"][taken])
            of_step = jax.tree.map(lambda leaf: leaf[taken], data)
            state, fault = self._treated(state, of_step, loss)
            taken += not fault.ends
        return state, {name: np.asarray(leaf)[:taken] for name, leaf in filled.items()}, fault

    def _treated(self, state: TrainState, data: Any, loss: float) -> tuple[TrainState, Fault]:
        """The state after a faulty step, or as it was if the run ends, and what was found.

        It is compiled when the first such step comes, and not before.
        """
        after, found = self._program.step_apart(self.non_finite, state, data, self._key)
        goes_on = int(state.in_a_row) < self.non_finite.in_a_row
        why = None if goes_on else self._error_of_values(state, data)
        tasks, keys = [], []
        for part, (finite, numbers) in jax.tree.map(np.asarray, found).items():
            for i in np.flatnonzero(~finite).tolist():
                tasks.append((part, i) if part else i)
                keys.append(numbers[i].tolist())
        name = type(self.non_finite).__name__.lower()
        fault = Fault(int(state.step), loss, tuple(tasks), tuple(keys), name, not goes_on, why)
        return (after if goes_on else state), fault

    def _error_of_values(self, state: TrainState, data: Any) -> InnerloopError | None:
        given = (state.meta, state.estimator, data, self.step_key, int(state.step))
        return self.estimator.error_of_values(*given)

    def _placed(self, state: PyTree) -> PyTree:
        return self.placement.place_by_task(state, self.estimator.per_task(state))


@compiled
def _init(estimator: Estimator, meta: PyTree, key: PRNGKeyArray, step: int) -> PyTree:
    return jax.tree.map(definite, estimator.init(meta, key, step))
