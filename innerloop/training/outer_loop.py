"""The outer loop, call by call: steps, and what is done about one that is not finite."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.devices.placement import Placement
from innerloop.estimators import Estimator
from innerloop.training.non_finite import Fault, NonFinite, treated
from innerloop.training.step import Program, TrainState, definite, init_state, outer_steps


class OuterLoop:
    """The outer steps of a run: `state, metrics, fault = loop(state, n)`.

    Args:
        estimator: The estimator whose gradient each step follows.
        optimizer: The outer optimizer.
        keys: The keys of the estimator's state and of the steps.
        averaging: The decay of the average of the meta-parameters.
        at_most: The most steps of a call.
        non_finite: The policy for steps that are not finite.
        placement: The devices.
    """

    def __init__(
        self,
        estimator: Estimator,
        optimizer: optax.GradientTransformation,
        keys: tuple[PRNGKeyArray, PRNGKeyArray],
        *,
        averaging: float,
        at_most: int,
        non_finite: NonFinite,
        placement: Placement,
    ):
        self._host = estimator.on(placement)
        self._program = Program(placement.place(self._host), optimizer, averaging, placement)
        self._init_key, self._host_key = keys
        self._key = placement.place(self._host_key)
        self._at_most, self._policy, self._placement = at_most, non_finite, placement

    def begin(self, meta: PyTree, step: int = 0) -> TrainState:
        """The state before the outer step `step`, from these meta-parameters."""
        state = init_state(meta, self._program.optimizer, self._begun(meta, step))
        return self._placed(state)

    def enter(self, state: TrainState) -> TrainState:
        """The state, its estimator's state renewed where an outer step asks for that."""
        step = int(state.step)
        if step not in self._host.boundaries:
            return state
        meta = self._placement.gathered(state.meta)
        held = self._host.enter(state.estimator, meta, self._init_key, step)
        return state._replace(estimator=self._placed_estimator(held))

    def steps_until_boundary(self, step: int) -> int | None:
        """Outer steps to the next boundary of the estimator; None if there is none."""
        later = [end - step for end in self._host.boundaries if end > step]
        return min(later, default=None)

    def close(self) -> None:
        """Draw no more data ahead."""
        self._host.close()

    def __call__(
        self, state: TrainState, n: int
    ) -> tuple[TrainState, dict[str, Any], Fault | None]:
        """Take n steps, or end with the first that is not finite.

        The metrics have a row for each step that the state has taken: if the policy ends the run,
        the state is the one before the fault, and the metrics end there too.
        """
        data = self._data(int(state.step), n)
        count = self._placement.place(np.int32(n))
        state, filled, sound = outer_steps(
            self._program, state, data, self._key, count, self._at_most
        )
        taken, fault = int(sound), None
        if taken < n:
            loss = float(filled["loss"][taken])
            of_step = jax.tree.map(lambda leaf: leaf[taken], data)
            state, fault = treated(self._program, self._policy, state, of_step, self._key, loss)
            taken += not fault.ends
        return state, {name: np.asarray(leaf)[:taken] for name, leaf in filled.items()}, fault

    def _data(self, step: int, n: int) -> Any:
        """What the host gives for n steps, filled up to the size of the largest call."""
        data = self._host.feed(self._host_key, step, n)
        rows = np.minimum(np.arange(self._at_most), n - 1)
        return self._placement.place(jax.tree.map(lambda leaf: leaf[rows], data))

    def _begun(self, meta: PyTree, step: int) -> PyTree:
        return _init(self._host, meta, self._init_key, step)

    def _placed(self, state: TrainState) -> TrainState:
        placed = self._placement.place_state(state._replace(estimator=()), self._program.optimizer)
        return placed._replace(estimator=self._placed_estimator(state.estimator))

    def _placed_estimator(self, state: PyTree) -> PyTree:
        return self._placement.place_by_task(state, self._host.per_task(state))


@eqx.filter_jit
def _init(estimator: Estimator, meta: PyTree, key: PRNGKeyArray, step: int) -> PyTree:
    return jax.tree.map(definite, estimator.init(meta, key, step))
