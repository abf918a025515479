"""What an online estimator is: a meta-gradient whose inner runs span many outer steps."""

import abc
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation import Adaptation
from innerloop.checks import check_count, check_key, is_floating
from innerloop.errors import StructureError
from innerloop.estimators.arguments import check_carry, check_parts
from innerloop.estimators.horizons import Horizon, Lengths, check_windows, lengths_of
from innerloop.estimators.window import (
    InnerRun,
    Window,
    all_finite,
    choose,
    drawn_horizon,
    task_of_run,
)
from innerloop.gradients.base import Aux, Fidelity
from innerloop.gradients.surrogate import known_gradient
from innerloop.objective import Spread, check_meta, sum_over_tasks
from innerloop.problem import Problem
from innerloop.tasks import TaskDistribution

OnlineValueAndGrad = Callable[
    [PyTree, InnerRun, PRNGKeyArray], tuple[tuple[tuple[Scalar, Aux], PyTree], InnerRun]
]
"""`(meta, carry, key) -> (((loss, aux), grads), carry)`."""


class Estimate(NamedTuple):
    """What an estimator makes of one window of one inner run.

    - `loss`, `gradient`: of the window; the gradient as leaves, None for one that is not reached
    - `state`: what is carried to the next window
    - `metrics`, `info`: as in `Aux`
    - `diverged`: how many of the run's particles are no longer finite; `alive`: whether any is
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


class OnlineGradient(eqx.Module):
    r"""A meta-gradient that is estimated window by window, while inner runs go on between.

    The meta-objective of a run of T inner steps, $\sum_{t=0}^T w_t L_\text{outer}(\theta_t)$, falls
    into windows of `window` steps. An outer step runs one window of each of many inner runs and
    estimates the gradient from it; the inner states wait in the *carry* for the next one. Runs that
    have come to their horizon, or are no longer finite, are replaced by new ones, of new tasks.

    Losses and gradients are scaled by the number of windows in a run, so that their mean over
    windows has the size of the meta-objective and its gradient.

    - `window`: inner steps per outer step
    - `horizon`: T, or a tuple of horizons that each run draws one from, such as `log_uniform` makes
    - `overlap`: how many steps a window shares with the one before
    - `clip`: the most that an outer loss counts, also one that is not finite; None for no limit
    """

    if TYPE_CHECKING:  # type checkers would count the abstract variables as arguments
        window: ClassVar[int]
        horizon: ClassVar[Horizon]
        overlap: ClassVar[int]
        clip: ClassVar[float | None]
    else:
        window: eqx.AbstractVar[int]
        horizon: eqx.AbstractVar[Horizon]
        overlap: eqx.AbstractVar[int]
        clip: eqx.AbstractVar[float | None]

    def __check_init__(self):
        name = type(self).__name__
        check_windows(self.window, self.horizon, self.overlap, name)
        if self.clip is not None and not (is_floating(self.clip) and math.isfinite(self.clip)):
            raise StructureError(
                "a loss is clipped to a finite number",
                got=f"clip={self.clip!r}",
                expected="a float, or None for no limit",
                write=f"{name}(..., clip=10.0)",
            )

    @abc.abstractmethod
    def fidelity(self, adaptation: Adaptation) -> Fidelity:
        """How far the mean of this estimator is from the gradient of the meta-objective."""

    @abc.abstractmethod
    def start(self, state: PyTree, meta: PyTree) -> PyTree:
        """What is carried of a run whose inner state is `state`."""

    @abc.abstractmethod
    def estimate(self, window: Window, meta: PyTree, state: PyTree, key: PRNGKeyArray) -> Estimate:
        """The next window of one run, from what was carried of it."""

    def init(
        self,
        problem: Problem,
        adaptation: Adaptation,
        tasks: TaskDistribution,
        meta: PyTree,
        key: PRNGKeyArray,
        batch: int,
    ) -> InnerRun:
        """The carry before the first outer step: `batch` inner runs at their beginning.

        So that they do not all come to their end in the same outer step ever after, the ends of
        these first runs are spread evenly over their horizons.

        Raises `StructureError` for parts that do not fit, `GradientError` for an adaptation without
        steps.
        """
        check_parts(self, problem, adaptation, tasks)
        check_meta(meta)
        check_key(key)
        check_count("batch", batch, write="init(problem, adaptation, tasks, meta, key, batch=8)")
        lengths = self._lengths(problem)
        begun = lambda key: self._begun(problem, adaptation, tasks, lengths, meta, key)
        runs = jax.vmap(begun)(jax.random.split(key, batch))
        stride = self.window - self.overlap
        windows = (runs.end - self.overlap) // stride
        fewer = jnp.arange(batch, dtype=jnp.int32) * windows // batch
        return runs._replace(end=runs.end - stride * fewer)

    def value_and_grad(
        self,
        problem: Problem,
        adaptation: Adaptation,
        tasks: TaskDistribution,
        *,
        chunk: int | None = None,
        spread: Spread | None = None,
    ) -> OnlineValueAndGrad:
        """The outer step's function `(meta, carry, key) -> (((loss, aux), grads), carry)`.

        The mean over runs, weighted by their episodes' weights; a run whose loss or gradient is not
        finite counts as none, and begins anew with another task. `chunk` and `spread` are as in
        `meta_value_and_grad`, of runs.

        `aux.metrics` are those at the end of the window; `aux.diagnostics` has, per run, `"step"`
        and `"horizon"` (where in its run the window ended), `"key"` (for `task_of_run`),
        `"diverged"` (how many of its particles are not finite), `"replaced"`, `"counts"` (whether
        it is in the mean), and `"unreached"`. The loss is NaN where no run counts.

        Raises, while tracing, `StructureError` for parts that do not fit together or a carry of
        other meta-parameters, `GradientError` for an adaptation without steps.
        """
        check_parts(self, problem, adaptation, tasks)
        if chunk is not None:
            check_count("chunk", chunk, write="value_and_grad(problem, adaptation, tasks, chunk=1)")
        lengths = self._lengths(problem)

        def next_window(meta: PyTree, run: InnerRun, key: PRNGKeyArray):
            noise_key, new_key = jax.random.split(key)
            loss, found = self._next_window(problem, adaptation, lengths, meta, run, noise_key)
            fresh = self._begun(problem, adaptation, tasks, lengths, meta, new_key)
            replaced = found.aux.diagnostics["replaced"]
            return loss, found._replace(run=choose(replaced, fresh, found.run))

        def step(meta: PyTree, carry: InnerRun, key: PRNGKeyArray):
            check_meta(meta)
            check_key(key)
            begun = lambda key: self._begun(problem, adaptation, tasks, lengths, meta, key)
            batch = check_carry(carry, lambda key: jax.vmap(begun)(key[None]), key)
            weights = jnp.ones(batch) if carry.episode.weight is None else carry.episode.weight
            unreached: list[str] = []
            sums = sum_over_tasks(next_window, chunk, unreached)
            keys = jax.random.split(key, batch)
            result = (spread(sums) if spread else sums)(meta, carry, keys, weights)
            return _mean(*result, weights, unreached)

        return step

    def _lengths(self, problem: Problem) -> Lengths:
        return lengths_of(self.horizon, self.window, self.overlap, problem)

    def _begun(self, problem, adaptation, tasks, lengths: Lengths, meta: PyTree, key) -> InnerRun:
        """A run that has not taken a step yet. Its state holds a place: the first window makes it
        anew, of the meta-parameters that it is run with.
        """
        episode, _ = task_of_run(tasks, key)
        horizon = drawn_horizon(lengths, key)
        end = jnp.asarray(lengths.lengths)[horizon]
        run = InnerRun(key, episode, horizon, end, jnp.int32(0), None)
        state = self._window(problem, adaptation, lengths, run).begin(meta)
        return run._replace(state=self.start(state, meta))

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


def _mean(total: Scalar, found: _Found, grads: PyTree, weights: Array, unreached: list[str]):
    """Over the runs that count: NaN and zeros where none does."""
    weight = jnp.sum(jnp.where(found.counts, weights, 0))
    mean = lambda leaf: jnp.where(weight > 0, leaf / weight.astype(leaf.dtype), 0)
    marks = {name: jnp.ones(len(weights), bool) for name in unreached}
    aux = found.aux._replace(diagnostics=found.aux.diagnostics | {"unreached": marks})
    loss = total / weight.astype(total.dtype)
    return ((loss, aux), jax.tree.map(mean, grads)), found.run
