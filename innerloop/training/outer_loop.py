"""The outer loop, call by call: steps, and what is done about one that is not finite."""

from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from innerloop.devices.placement import Placement
from innerloop.estimators import OnlineGradient
from innerloop.gradients import MetaGradient
from innerloop.recipes import Recipe
from innerloop.tasks import StreamedTasks, TaskDistribution
from innerloop.training.estimation import estimation
from innerloop.training.feed import Feed
from innerloop.training.non_finite import Fault, NonFinite, Treatment
from innerloop.training.step import TrainState, init_state, outer_steps, updating


class OuterLoop:
    """The outer steps of a run: `state, metrics, fault = loop(state, n)`.

    - `key`: of the steps; step i draws its tasks from `fold_in(key, i)`
    """

    def __init__(
        self,
        recipe: Recipe,
        gradient: MetaGradient | tuple[MetaGradient, ...] | OnlineGradient,
        tasks: TaskDistribution | StreamedTasks,
        optimizer: optax.GradientTransformation,
        key: PRNGKeyArray,
        *,
        batch: int,
        chunk: int | None,
        averaging: float,
        at_most: int,
        non_finite: NonFinite,
        placement: Placement,
    ):
        estimate = estimation(recipe, gradient, tasks, batch, chunk, placement)
        update = updating(optimizer, averaging, placement)
        self._take = outer_steps(estimate, update, at_most=at_most, placement=placement)
        self._treat = Treatment(estimate, non_finite, update, placement)
        self._feed = Feed(tasks, key, batch, at_most, placement)
        self._tasks, self._estimate = tasks, estimate
        self._key = placement.place(key)
        self._recipe, self._optimizer, self._placement = recipe, optimizer, placement

    def begin(self, key: PRNGKeyArray) -> TrainState:
        """The state before the first step, with the recipe's initial meta-parameters."""
        meta = self._recipe.init_meta(key)
        carry = self._estimate.begin(meta, self._tasks, jax.random.fold_in(key, 1))
        state = init_state(meta, self._optimizer, carry)
        return self._placement.place_state(state, self._optimizer)

    def close(self) -> None:
        """Draw no more tasks."""
        self._feed.close()

    def __call__(
        self, state: TrainState, n: int
    ) -> tuple[TrainState, dict[str, Any], Fault | None]:
        """Take n steps, or end with the first that is not finite.

        The metrics have a row for each step that the state has taken: where the policy ends the
        run, the state is the one before the fault, and the metrics end there too.
        """
        steps = self._placement.place(np.int32(n))
        tasks = self._feed(int(state.step), n)
        state, filled, sound = self._take(state, tasks, self._key, steps)
        taken, fault = int(sound), None
        if taken < n:
            loss = float(filled["loss"][taken])
            state, fault = self._treat(state, tasks, self._key, loss)
            taken += not fault.ends
        return state, {name: np.asarray(leaf)[:taken] for name, leaf in filled.items()}, fault
