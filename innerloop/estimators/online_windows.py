"""The estimator of online windows: inner runs span many outer steps."""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation import Origin
from innerloop.arguments import at_least, number, or_none, with_methods
from innerloop.checks import describe
from innerloop.devices.placement import Placement
from innerloop.errors import GradientError, StructureError
from innerloop.estimators.base import Apart, Estimate, TaskFaults
from innerloop.estimators.horizons import Horizon, Lengths, check_windows, lengths_of
from innerloop.estimators.learning import LearningEstimator
from innerloop.estimators.metrics import key_numbers, mean_metrics
from innerloop.estimators.window import (
    InnerRun,
    Window,
    choose,
    drawn_horizon,
    task_of_run,
)
from innerloop.gradients.base import Aux
from innerloop.gradients.surrogate import known_gradient
from innerloop.learner import Learner
from innerloop.objective import check_meta, sum_over_tasks
from innerloop.problem import Problem
from innerloop.tasks import StreamedTasks, TaskDistribution
from innerloop.trees import all_finite, leaf_shapes


class WindowResult(NamedTuple):
    """What an estimator makes of one window of one inner run.

    Attributes:
        loss: The loss of the window.
        gradient: Its gradient as leaves, None for a leaf that is not reached.
        state: What is carried to the next window.
        metrics: As in `Aux`.
        info: As in `Aux`.
        diverged: How many of the run's particles are no longer finite.
        alive: Whether any particle is finite.
    """

    loss: Scalar
    gradient: list[Array | None]
    state: PyTree
    metrics: PyTree
    info: PyTree
    diverged: Int[Array, ""]
    alive: Bool[Array, ""]


class _Found(NamedTuple):
    """What comes back of one inner run, beside its loss."""

    aux: Aux
    run: InnerRun
    counts: Bool[Array, ""]


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

    tasks: TaskDistribution = with_methods(
        "sample", what="a task distribution", such_as="tasks.SinusoidTasks(5, 5)"
    )
    window: int = at_least(1, such_as=20)
    horizon: Horizon
    batch: int = at_least(1, such_as=8)
    clip: float | None = or_none(number(such_as=10.0), default=None, kw_only=True)

    @property
    def overlap(self) -> int:
        """How many steps a window shares with the one before."""
        return 0

    def __check_init__(self):
        name = type(self).__name__
        self._check_steps(name)
        check_windows(self.window, self.horizon, self.overlap, name)

    @abc.abstractmethod
    def begin(self, state: PyTree, meta: PyTree) -> PyTree:
        """What is carried of a run whose inner state is `state`."""

    @abc.abstractmethod
    def estimate(
        self, window: Window, meta: PyTree, state: PyTree, key: PRNGKeyArray
    ) -> WindowResult:
        """The next window of one run, from what was carried of it."""

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
                write=f"{type(self).__name__}(..., batch={-(-self.batch // devices) * devices})",
            )
        return dataclasses.replace(self, placement=placement)

    def per_task(self, state: PyTree) -> PyTree:
        return True

    def init(self, meta: PyTree, key: PRNGKeyArray, outer_step: int = 0) -> InnerRun:
        """`batch` inner runs at their beginning.

        The ends of these first runs are spread evenly over their horizons. Otherwise all runs would
        come to their end in the same outer step ever after.
        """
        check_meta(meta)
        begun = self._begins(outer_step, meta)
        runs = jax.vmap(begun)(jax.random.split(key, self.batch))
        stride = self.window - self.overlap
        windows = (runs.end - self.overlap) // stride
        fewer = jnp.arange(self.batch, dtype=jnp.int32) * windows // self.batch
        return runs._replace(end=runs.end - stride * fewer)

    def step(self, meta, state, data, key, outer_step) -> tuple[Estimate, InnerRun]:
        check_meta(meta)
        key = jax.random.fold_in(key, outer_step)
        begun = self._begins(outer_step, meta)
        self._check_state(state, begun, key)
        batch = len(state.step)
        weights = jnp.ones(batch) if state.episode.weight is None else state.episode.weight
        problem, adaptation = self.at(outer_step)
        lengths = self._lengths(problem)

        def next_window(meta: PyTree, run: InnerRun, key: PRNGKeyArray):
            noise_key, new_key = jax.random.split(key)
            loss, found = self._next_window(problem, adaptation, lengths, meta, run, noise_key)
            fresh = self._begun(problem, adaptation, lengths, meta, new_key)
            replaced = found.aux.diagnostics["replaced"]
            return loss, found._replace(run=choose(replaced, fresh, found.run))

        unreached: list[str] = []
        sums = self.placement.spread(sum_over_tasks(next_window, self.chunk, unreached))
        total, found, grads = sums(meta, state, jax.random.split(key, batch), weights)
        estimate = _mean(total, found, grads, weights, state.episode.weight, unreached)
        return estimate, self.placement.by_task(found.run)

    def apart(self, meta, state, data, key, outer_step, norm) -> Apart:
        """Runs are kept apart in every step; a step is not finite only if no run is."""
        estimate, after = self.step(meta, state, data, key, outer_step)
        keys = key_numbers(state.key)
        nothing = jax.tree.map(jnp.zeros_like, estimate.grads)
        return Apart(nothing, after, {"": TaskFaults(jnp.zeros(len(keys), bool), keys)})

    def _lengths(self, problem: Problem) -> Lengths:
        return lengths_of(self.horizon, self.window, self.overlap, problem)

    def _begins(self, outer_step: Any, meta: PyTree):
        """The function `key -> run` that begins a run."""
        problem, adaptation = self.at(outer_step)
        lengths = self._lengths(problem)
        return lambda key: self._begun(problem, adaptation, lengths, meta, key)

    def _begun(self, problem, adaptation, lengths: Lengths, meta: PyTree, key) -> InnerRun:
        """A run that has not taken a step yet.

        Its state is a placeholder; the first window initialises it, with the meta-parameters that
        the window is run with.
        """
        episode, _ = task_of_run(self.tasks, key)
        horizon = drawn_horizon(lengths, key)
        end = jnp.asarray(lengths.lengths)[horizon]
        run = InnerRun(key, episode, horizon, end, jnp.int32(0), None)
        state = self._window(problem, adaptation, lengths, run).begin(meta)
        return run._replace(state=self.begin(state, meta))

    def _window(self, problem, adaptation, lengths: Lengths, run: InnerRun) -> Window:
        return Window(problem, adaptation, lengths, run, self.window, self.overlap, self.clip)

    def _next_window(self, problem, adaptation, lengths: Lengths, meta, run: InnerRun, key):
        fixed = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, meta))
        window = self._window(problem, adaptation, lengths, run)
        result = self.estimate(window, fixed, run.state, key)
        sound = jnp.isfinite(result.loss) & all_finite(result.gradient)
        counts = sound if self.clip is None else jnp.isfinite(result.loss)
        gradient = [None if leaf is None else jnp.where(sound, leaf, 0) for leaf in result.gradient]
        loss = jnp.where(counts, result.loss, 0)
        loss = known_gradient(f"{type(self).__name__}()", loss, gradient, meta)
        last = run.step + self.window
        diagnostics = {
            "step": last,
            "horizon": jnp.asarray(lengths.lengths)[run.horizon],
            "key": run.key,
            "diverged": result.diverged,
            "replaced": (last >= run.end) | ~sound | ~result.alive,
            "counts": counts,
        }
        after = run._replace(step=last - self.overlap, state=result.state)
        return loss, _Found(Aux(result.metrics, result.info, diagnostics), after, counts)

    def _check_steps(self, name: str) -> None:
        if isinstance(self.tasks, StreamedTasks):
            raise StructureError(
                "inner runs draw their tasks on the device, when another run has ended",
                got=f"{name} with StreamedTasks",
                expected="a task distribution",
                write=f"{name}(..., tasks, ...) with tasks from data that the device holds",
            )
        if self.adaptation.origin is not Origin.STEPS or self.adaptation.steps is None:
            raise GradientError(
                f"{name} runs a window of steps at a time, and there are no steps to stop between",
                got=f"{type(self.adaptation).__name__}: {self.adaptation.origin.value}",
                expected="an adaptation by steps",
                write="GradientDescent(optimizer, steps=1); the estimator's horizon says how many "
                "steps are taken. Or WholeTasks, with a meta-gradient for this adaptation",
            )

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
            write="state = estimator.init(meta, key) with the same estimator and meta",
        )


def _shapes(runs: PyTree) -> dict[str, str]:
    """Dtype and shape of every leaf without its task axis, by its path."""
    one = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) if leaf.shape else leaf, runs
    )
    return leaf_shapes(one)


def _mean(
    total: Scalar, found: _Found, grads: PyTree, weights: Array, weight: Any, unreached: list[str]
) -> Estimate:
    """Over the runs that count: NaN and zeros if no run does."""
    counted = jnp.sum(jnp.where(found.counts, weights, 0))
    mean = lambda leaf: jnp.where(counted > 0, leaf / counted.astype(leaf.dtype), 0)
    marks = {name: jnp.ones(len(weights), bool) for name in unreached}
    aux = found.aux._replace(diagnostics=found.aux.diagnostics | {"unreached": marks})
    loss = total / counted.astype(total.dtype)
    judged = jnp.where(aux.diagnostics["counts"], 1.0 if weight is None else weight, 0.0)
    diverged = jnp.sum(aux.diagnostics["diverged"]).astype(loss.dtype)
    metrics = {"diverged": diverged} | mean_metrics(aux.metrics, judged)
    return Estimate(loss, jax.tree.map(mean, grads), metrics, aux)
