"""A window of an inner run, as a function of meta and of the state that it begins in."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation import Adaptation, InnerRule, Loop, run_from
from innerloop.estimators.horizons import Lengths
from innerloop.gradients.inner import Exact
from innerloop.gradients.loops import StoreAll, concatenate
from innerloop.normal_form import loss_function
from innerloop.problem import Episode, Problem, task_keys
from innerloop.tasks import TaskDistribution
from innerloop.tasks.base import sampled
from innerloop.trees import all_finite, element


class InnerRun(NamedTuple):
    """One inner run that has not ended. An estimator's state holds many, along a task axis.

    Attributes:
        key: The key of this run; `task_of_run` gives its task and the task's key.
        episode: Its task.
        horizon: Which of the estimator's horizons it has.
        end: The number of steps after which a new run replaces it: its horizon, except for the
            first runs of all, whose ends are spread.
        step: Inner steps taken; the next window begins there.
        state: What the estimator carries: inner states and perturbations.
    """

    key: PRNGKeyArray
    episode: Episode
    horizon: Int[Array, "..."]
    end: Int[Array, "..."]
    step: Int[Array, "..."]
    state: PyTree


class Followed(NamedTuple):
    """A window after it was run.

    Attributes:
        loss: Its weighted losses, scaled to the meta-objective.
        metrics: The aux of its last outer loss.
        state: The inner state at which the next window begins, or whatever else the estimator
            carries.
        info: The inner steps' infos, stacked.
        finite: Whether the parameters are finite; for pairs, whether any pair is finite.
    """

    loss: Scalar
    metrics: PyTree
    state: PyTree
    info: PyTree
    finite: Bool[Array, ""]


def task_of_run(tasks: TaskDistribution, key: PRNGKeyArray) -> tuple[Episode, PRNGKeyArray]:
    """The task that an inner run learns, and the key that it is learned with.

    With them a run that diverged is run again: `meta_objective(problem, adaptation)(meta, episode,
    key)`; its key is in `aux.diagnostics["key"]`.

    Args:
        tasks: The estimator's task distribution.
        key: The key of the run.
    """
    sample_key, task_key, _ = jax.random.split(key, 3)
    return element(sampled(tasks, sample_key, 1), 0), task_key


@dataclass(frozen=True, eq=False)
class Window:
    """The next window of an inner run.

    Args:
        problem: What is optimised.
        adaptation: How the task is learned.
        lengths: The horizons, and the weights of the losses.
        run: The inner run.
        size: Inner steps of the window.
        overlap: How many of the first steps were in the window before too. Their losses were
            counted there.
        clip: The largest value that an outer loss counts with, also one that is not finite.
    """

    problem: Problem
    adaptation: Adaptation
    lengths: Lengths
    run: InnerRun
    size: int
    overlap: int
    clip: float | None

    @property
    def begins(self) -> Bool[Array, ""]:
        """Whether it is the first window of its run."""
        return self.run.step == 0

    def begin(self, meta: PyTree) -> PyTree:
        """The inner state before the first step."""
        key = jax.random.fold_in(self._keys.adapt, 0)
        whole = self.problem.whole(meta)
        state = self.adaptation.init(self.problem, whole, self.run.episode.support, key)
        return jax.tree.map(jnp.asarray, state)

    def follow(
        self,
        meta: PyTree,
        state: PyTree,
        inner: InnerRule = Exact(),
        loop: Loop = StoreAll(),
    ) -> Followed:
        """Run the window from `state`, or from the beginning if it is the first of its run."""
        first, stride = self.run.step, self.size - self.overlap
        state = choose(self.begins, self.begin(meta), state)
        outer = self._outer_loss(meta)
        weighted = self.lengths.weights is not None
        start = self._start_loss(outer, state)

        def steps_on(state: PyTree, first: Any, steps: int):
            return run_from(
                *(self.problem, self.adaptation, meta, self.run.episode.support, self._keys.adapt),
                *(inner, loop, (lambda params, t: outer(params)) if weighted else None),
                state=state,
                first=first,
                steps=steps,
            )

        after, *seen = steps_on(state, first, stride)
        last = after
        if self.overlap:
            last, *more = steps_on(after, first + stride, self.overlap)
            seen = concatenate(seen, more)
        info, observed = seen
        params = self.adaptation.params(last)
        loss, metrics = self._weighed(observed) if weighted else self._last(outer(params))
        return Followed(start + loss, metrics, after, info, all_finite(params))

    @property
    def _keys(self):
        return task_keys(jax.random.split(self.run.key, 3)[1])

    def _outer_loss(self, meta: PyTree):
        loss = loss_function("outer_loss", self.problem, needed_by="the meta-objective")

        def clipped(params: PyTree):
            value, aux = loss(params, meta, self.run.episode.query, self._keys.outer)
            if self.clip is not None:
                most = jnp.asarray(self.clip, value.dtype)
                value = jnp.where(jnp.isfinite(value), jnp.minimum(value, most), most)
            return value, aux

        return clipped

    def _start_loss(self, outer: Any, state: PyTree) -> Any:
        """The loss before the first step, if it has a weight."""
        weights = self.lengths.weights
        if weights is None or not np.any(weights[:, 0]):
            return 0
        loss, _ = outer(self.adaptation.params(state))
        weight = self.lengths.scale * jnp.asarray(weights[:, 0], loss.dtype)[self.run.horizon]
        return jnp.where(self.begins & (weight != 0), weight * loss, 0)

    def _weighed(self, observed: tuple[Array, PyTree]) -> tuple[Scalar, PyTree]:
        losses, metrics = observed
        first, weights = self.run.step, self.lengths.weights
        assert weights is not None
        row = jnp.asarray(weights, losses.dtype)[self.run.horizon]
        row = self.lengths.scale * jax.lax.dynamic_slice_in_dim(row, first + 1, self.size)
        counts = self.begins | (jnp.arange(self.size) >= self.overlap)
        # A loss without weight is not read: 0 times infinity would be NaN.
        loss = jnp.sum(jnp.where(counts & (row != 0), row * losses, 0))
        return loss, jax.tree.map(lambda leaf: leaf[-1], metrics)

    def _last(self, result: tuple[Scalar, PyTree]) -> tuple[Scalar, PyTree]:
        loss, metrics = result
        length = jnp.asarray(self.lengths.lengths)[self.run.horizon]
        is_last = self.run.step + self.size == length
        return jnp.where(is_last, self.lengths.scale * loss, 0), metrics


def choose(condition: Bool[Array, ""], one: PyTree, other: PyTree) -> PyTree:
    """`one` where the condition holds, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)
