"""The estimator of online windows: inner runs span many outer steps."""

import abc
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation import Origin
from innerloop.arguments import at_least, each, either, number, or_none, with_methods
from innerloop.batches import task_weights
from innerloop.checks import describe
from innerloop.devices.placement import Placement
from innerloop.diagnostics.known_values import first_error
from innerloop.errors import GradientError, InnerloopError, StructureError
from innerloop.estimators.base import Apart, Estimate, TaskFaults
from innerloop.estimators.horizons import Horizon, as_tuple, check_windows, lengths_of
from innerloop.estimators.learning import TASKS, LearningEstimator
from innerloop.estimators.metrics import mean_metrics
from innerloop.estimators.window import Followed, InnerRun, Window, choose, task_of_run
from innerloop.gradients.base import Aux
from innerloop.gradients.surrogate import known_gradient
from innerloop.learner import Learner
from innerloop.missing import missing_derivatives_explained
from innerloop.objective import check_meta
from innerloop.sums import sum_over_tasks
from innerloop.tasks import TaskDistribution
from innerloop.tasks.streamed import HostTasks
from innerloop.trees import all_finite, key_numbers, leaf_shapes, widened


class WindowResult(NamedTuple):
    """What an estimator makes of one window of one inner run.

    Attributes:
        followed: The window after it was run; its state is carried to the next one, and the run is
            given up if it is not finite.
        gradient: The gradient as leaves, None for a leaf that is not reached.
        diverged: The number of the run's particles that are no longer finite.
    """

    followed: Followed
    gradient: list[Array | None]
    diverged: Int[Array, ""]


class OnlineWindows(LearningEstimator):
    r"""An estimator that goes window by window, while inner runs go on between outer steps.

    The meta-objective of a run of T inner steps, $\sum_{t=0}^T w_t L_\text{outer}(\theta_t)$, falls
    into windows of `window` steps. An outer step runs one window of each of `batch` inner runs and
    estimates the gradient from it; the inner states are the estimator's state. Runs that have come
    to their horizon, or are no longer finite, are replaced by new runs of new tasks.

    Losses and gradients are scaled by the number of windows in a run, so that their mean over
    windows has the size of the meta-objective and its gradient. A step uses the mean over runs,
    weighted by their episodes' weights. A run whose loss or gradient is not finite does not count,
    and begins anew with another task; the loss is NaN if no run counts. The metric `diverged` is
    the number of particles that are not finite.

    `Estimate.aux` has the metrics at the end of each run's window, and in `diagnostics`, per run,
    `"step"` and `"horizon"` (where in its run the window ended), `"key"` (for `task_of_run`),
    `"diverged"`, `"replaced"`, `"counts"` (whether the run is in the mean) and `"unreached"`.

    Attributes:
        problem: What is optimised.
        adaptation: How one task is learned; its own number of steps is not used.
        tasks: A task distribution that draws on the device.
        window: Inner steps per outer step.
        horizon: T, or a tuple of horizons that each run draws one from, as `log_uniform` makes.
        batch: The number of inner runs.
        overlap: How many steps a window shares with the one before.
        clip: The largest value that an outer loss counts with, also a loss that is not finite; None
            for no limit.
        chunk: Runs that are computed at a time; None for all at once.
        schedule: As in `WholeTasks`.
    """

    tasks: TaskDistribution = with_methods("sample", **TASKS)
    window: int = at_least(1, such_as=20)
    horizon: Horizon = either(at_least(1, such_as=100), each(at_least(1)))
    batch: int = at_least(1, such_as=8)
    clip: float | None = or_none(number(such_as=10.0), default=None, kw_only=True)

    @property
    def overlap(self) -> int:
        """How many steps a window shares with the one before."""
        return 0

    def __check_init__(self):
        name = type(self).__name__
        if isinstance(self.tasks, HostTasks):
            raise StructureError(
                "inner runs draw new tasks on the device whenever a run ends",
                got=f"{name} with {type(self.tasks).__name__}",
                expected="a task distribution over data that the device holds",
            )
        if self.adaptation.origin is not Origin.STEPS or self.adaptation.steps is None:
            raise GradientError(
                f"{name} runs a window of steps at a time, and there are no steps to stop between",
                got=f"{type(self.adaptation).__name__}: {self.adaptation.origin.value}",
                expected="an adaptation by steps; the estimator's horizon says how many are taken",
                write="GradientDescent(optimizer, steps=1)",
            )
        check_windows(self.window, self.horizon, self.overlap, name)

    def begin(self, state: PyTree, meta: PyTree) -> PyTree:
        """The state that a run carries, made of its first inner state; by default, that state.

        Args:
            state: The inner state before the first step.
            meta: The meta-parameters.
        """
        return state

    @abc.abstractmethod
    def estimate(self, window: Window, meta: PyTree, key: PRNGKeyArray) -> WindowResult:
        """Run the next window of one run.

        Args:
            window: The window; `window.run.state` is the state that the run carries.
            meta: The meta-parameters, without a derivative.
            key: A random key of this window.

        Returns:
            The window, its gradient and how many particles diverged.
        """

    @property
    def learner(self) -> Learner:
        return Learner(self.problem, self.adaptation)

    @property
    def tasks_per_step(self) -> int:
        return self.batch

    def on(self, placement: Placement) -> "OnlineWindows":
        devices = placement.devices
        if self.batch % devices:
            raise StructureError(
                "the devices cannot share the inner runs evenly",
                got=f"batch={self.batch} on {devices} devices",
                expected="a multiple of the number of devices",
            )
        return dataclasses.replace(self, placement=placement)

    def per_task(self, state: PyTree) -> PyTree:
        return True

    def init(self, meta: PyTree, key: PRNGKeyArray, outer_step: int = 0) -> InnerRun:
        """`batch` inner runs at their beginning.

        The ends of these first runs are spread evenly over their horizons. Otherwise all runs would
        always end in the same outer step.
        """
        check_meta(meta)
        begun = partial(self._begun, self._windows(outer_step), meta)
        runs = jax.vmap(begun)(jax.random.split(key, self.batch))
        stride = self.window - self.overlap
        windows = (runs.end - self.overlap) // stride
        fewer = jnp.arange(self.batch, dtype=jnp.int32) * windows // self.batch
        return runs._replace(end=runs.end - stride * fewer)

    def step(self, meta, state, data, key, outer_step) -> tuple[Estimate, InnerRun]:
        check_meta(meta)
        key = jax.random.fold_in(key, outer_step)
        windows = self._windows(outer_step)
        self._check_state(state, partial(self._begun, windows, meta), key)
        batch = len(state.step)
        weights = task_weights(state.episode.weight, batch, meta)

        def next_window(meta: PyTree, run: InnerRun, key: PRNGKeyArray):
            noise_key, new_key = jax.random.split(key)
            loss, aux, after = self._next_window(windows(run), meta, noise_key)
            fresh = self._begun(windows, meta, new_key)
            return loss, (aux, choose(aux.diagnostics["replaced"], fresh, after))

        unreached: list[str] = []
        sums = sum_over_tasks(next_window, self.chunk, self.placement.spread, unreached)
        keys = jax.random.split(key, batch)
        with missing_derivatives_explained():
            total, (aux, runs), grads = sums(meta, state, keys, weights)
        return _mean(total, aux, grads, weights, unreached), self.placement.by_task(runs)

    def apart(self, meta, state, data, key, outer_step, norm) -> Apart:
        """Runs are kept apart in every step. A step is not finite only if no run is, or if their
        weights have no mean.
        """
        estimate, after = self.step(meta, state, data, key, outer_step)
        keys = key_numbers(state.key)
        nothing = jax.tree.map(jnp.zeros_like, estimate.grads)
        return Apart(nothing, after, {"": TaskFaults(estimate.aux.diagnostics["counts"], keys)})

    def error_of_values(self, meta, state, data, key, outer_step) -> InnerloopError | None:
        keys = jax.vmap(lambda key: jax.random.split(key, 3)[1])(state.key)
        return first_error(Learner(*self.at(outer_step)), meta, state.episode, keys)

    def _windows(self, outer_step: Any) -> Callable[[InnerRun], Window]:
        """The function `run -> window` that gives the next window of a run at an outer step."""
        problem, adaptation = self.at(outer_step)
        lengths = lengths_of(self.horizon, self.window, self.overlap, problem)
        size = (self.window, self.overlap, self.clip)
        return lambda run: Window(problem, adaptation, lengths, run, *size)

    def _begun(self, windows: Callable[[InnerRun], Window], meta: PyTree, key: Any) -> InnerRun:
        """A run that has not taken a step yet.

        Its state is a placeholder; the first window initialises it, with the meta-parameters that
        the window is run with.
        """
        episode, _ = task_of_run(self.tasks, key)
        lengths = jnp.asarray(as_tuple(self.horizon), jnp.int32)
        horizon = jax.random.randint(jax.random.split(key, 3)[2], (), 0, len(lengths), jnp.int32)
        run = InnerRun(key, episode, horizon, lengths[horizon], jnp.int32(0), None)
        return run._replace(state=self.begin(windows(run).begin(meta), meta))

    def _next_window(self, window: Window, meta: PyTree, key: PRNGKeyArray):
        """Loss, aux and the run after a window."""
        fixed = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, meta))
        found, gradient, diverged = self.estimate(window, fixed, key)
        sound = jnp.isfinite(found.loss) & all_finite(gradient)
        counts = sound if self.clip is None else jnp.isfinite(found.loss)
        gradient = [None if leaf is None else jnp.where(sound, leaf, 0) for leaf in gradient]
        loss = jnp.where(counts, found.loss, 0)
        loss = known_gradient(f"{type(self).__name__}()", loss, gradient, meta)
        run, last = window.run, window.run.step + self.window
        diagnostics = {
            "step": last,
            "horizon": jnp.asarray(window.lengths.lengths)[run.horizon],
            "key": run.key,
            "diverged": diverged,
            "replaced": (last >= run.end) | ~sound | ~found.finite,
            "counts": counts,
        }
        after = run._replace(step=last - self.overlap, state=found.state)
        return loss, Aux(found.metrics, found.info, diagnostics), after

    def _check_state(self, state: Any, begun: Any, key: PRNGKeyArray) -> None:
        """Raise `StructureError` unless the state holds runs of this estimator and this meta."""
        like = _shapes(jax.eval_shape(lambda key: jax.vmap(begun)(key[None]), key))
        given = _shapes(state)
        if given == like and isinstance(state, InnerRun):
            return
        other = sorted(set(given.items()) ^ set(like.items()))
        raise StructureError(
            "the state holds inner runs of other meta-parameters, or of another estimator",
            got=", ".join(f"{n}: {s}" for n, s in other if given.get(n) == s) or describe(state),
            expected=", ".join(f"{n}: {s}" for n, s in other if like.get(n) == s) or "one run",
            write="state = estimator.init(meta, key)",
        )


def _shapes(runs: PyTree) -> dict[str, str]:
    """Dtype and shape of every leaf without its task axis, by its path."""
    one = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) if leaf.shape else leaf, runs
    )
    return leaf_shapes(one)


def _mean(total: Scalar, aux: Aux, grads: PyTree, weights: Array, unreached: list[str]) -> Estimate:
    """The estimate over the runs that count: NaN and zeros if no run does."""
    judged = jnp.where(aux.diagnostics["counts"], weights, 0)
    counted = jnp.sum(judged)

    def mean(leaf: Array) -> Array:
        wide = widened(leaf)
        return jnp.where(counted != 0, wide / counted.astype(wide.dtype), 0).astype(leaf.dtype)

    marks = {name: jnp.ones(len(weights), bool) for name in unreached}
    aux = aux._replace(diagnostics=aux.diagnostics | {"unreached": marks})
    loss = total / counted.astype(total.dtype)
    diverged = jnp.sum(aux.diagnostics["diverged"]).astype(loss.dtype)
    metrics = {"diverged": diverged} | mean_metrics(aux.metrics, judged)
    return Estimate(loss, jax.tree.map(mean, grads), metrics, aux)
