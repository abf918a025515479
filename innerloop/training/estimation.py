"""Where an outer step has its meta-gradient from: tasks of its own, or inner runs that go on."""

import abc
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree, Scalar

from innerloop.devices.placement import OneDevice, Placement
from innerloop.estimators import OnlineGradient
from innerloop.gradients import Aux, MetaGradient
from innerloop.objective import SumOverTasks, meta_value_and_grad
from innerloop.problem import ProblemMixture
from innerloop.recipes import Recipe
from innerloop.tasks import TaskDistribution, TaskMixture
from innerloop.training._evaluate import named_metrics
from innerloop.training.batch import batch_and_key
from innerloop.training.feed import Block
from innerloop.training.step import Estimated, is_sound
from innerloop.trees import shorten

Found = tuple[Array, Array]
"""Of the tasks of one kind: which have a finite loss and gradient, and their keys as numbers."""


class Estimation(abc.ABC):
    """One protocol for the trainer: what is carried from step to step is empty for those
    meta-gradients that need nothing of it.

    `tasks`, `key` and `step` say which tasks are drawn: the same three, the same tasks.
    """

    @abc.abstractmethod
    def begin(self, meta: PyTree, tasks: Any, key: PRNGKeyArray) -> PyTree:
        """The carry before the first step."""

    @abc.abstractmethod
    def __call__(
        self,
        meta: PyTree,
        carry: PyTree,
        tasks: TaskDistribution | Block,
        key: PRNGKeyArray,
        step: Int[Array, ""],
    ) -> Estimated:
        """The meta-gradient of a step."""

    @abc.abstractmethod
    def singly(
        self,
        meta: PyTree,
        carry: PyTree,
        tasks: TaskDistribution | Block,
        key: PRNGKeyArray,
        step: Int[Array, ""],
        norm: float,
    ) -> tuple[PyTree, PyTree, list[Found]]:
        """The same step, each task's gradient clipped to `norm`, those not finite as zeros.

        Returns the gradient, the carry, and what was found, by kind.
        """


class FromTasks(Estimation):
    """Each step learns `batch` tasks of its own, from beginning to end. Nothing is carried."""

    def __init__(
        self,
        recipe: Recipe,
        gradient: MetaGradient | tuple[MetaGradient, ...],
        batch: int,
        chunk: int | None = None,
        placement: Placement = OneDevice(),
    ):
        self._recipe, self._batch = recipe, batch
        self._chunk, self._placement = chunk, placement
        self._gradients = [*(phase.gradient for phase in recipe.phases), gradient]
        for each in self._gradients:
            meta_value_and_grad(*recipe.at(0), each)  # refuses now what it would later

    def begin(self, meta: PyTree, tasks: Any, key: PRNGKeyArray) -> PyTree:
        return ()

    def __call__(self, meta, carry, tasks, key, step) -> Estimated:
        episodes, task_key = batch_and_key(tasks, key, step, self._batch, self._placement)

        def estimated(value_and_grad):
            (loss, aux), grads = value_and_grad(meta, episodes, task_key)
            # A mixture has an aux of each kind, and no metrics of all.
            means = _means(aux.metrics, episodes.weight) if isinstance(aux, Aux) else {}
            return Estimated(loss, means, grads, carry)

        return self._in_phase(step, estimated, chunk=self._chunk, spread=self._placement.spread)

    def singly(self, meta, carry, tasks, key, step, norm):
        # Without what would fill the batch up for the devices: every device does it all.
        episodes, task_key = batch_and_key(tasks, key, step, self._batch, OneDevice())
        whole = self._placement.whole(episodes)

        def found(value_and_grad):
            (_, aux), grads = value_and_grad(meta, whole, task_key)
            kinds = (aux,) if isinstance(aux, Aux) else aux
            return grads, carry, [kind.diagnostics[_FOUND] for kind in kinds]

        return self._in_phase(step, found, spread=_task_by_task(norm))

    def _in_phase(self, step: Int[Array, ""], of: Callable[[Callable], Any], **how: Any) -> Any:
        """What `of` makes of the `meta_value_and_grad` of the step's phase and schedule.

        All phases are in the one compiled program, so that none compiles when it begins.
        """
        build = partial(meta_value_and_grad, *self._recipe.at(step), **how)
        each = [partial(of, build(gradient)) for gradient in self._gradients]
        if len(each) == 1:
            return each[0]()
        ends = jnp.array([phase.until for phase in self._recipe.phases], step.dtype)
        return jax.lax.switch(jnp.sum(step >= ends), each)


class FromRuns(Estimation):
    """Each step takes `batch` inner runs one window further. They are carried."""

    def __init__(
        self,
        recipe: Recipe,
        gradient: OnlineGradient,
        batch: int,
        chunk: int | None = None,
        placement: Placement = OneDevice(),
    ):
        self._recipe, self._gradient, self._batch = recipe, gradient, batch
        self._chunk, self._placement = chunk, placement

    def begin(self, meta: PyTree, tasks: Any, key: PRNGKeyArray) -> PyTree:
        @eqx.filter_jit
        def init(meta: PyTree, tasks: TaskDistribution, key: PRNGKeyArray):
            return self._gradient.init(*self._recipe.at(0), tasks, meta, key, self._batch)

        return init(meta, tasks, key)

    def __call__(self, meta, carry, tasks, key, step) -> Estimated:
        ((loss, aux), grads), carry = self._next(meta, carry, tasks, key, step)
        found, weight = aux.diagnostics, carry.episode.weight
        weights = jnp.where(found["counts"], 1.0 if weight is None else weight, 0.0)
        diverged = jnp.sum(found["diverged"]).astype(loss.dtype)
        metrics = {"diverged": diverged} | _means(aux.metrics, weights)
        return Estimated(loss, metrics, grads, self._placement.by_task(carry))

    def singly(self, meta, carry, tasks, key, step, norm):
        """Runs are kept apart in any step; where it is not finite, none of them is."""
        (_, grads), after = self._next(meta, carry, tasks, key, step)
        keys = _as_numbers(carry.key)
        nothing = jax.tree.map(jnp.zeros_like, grads)
        return nothing, self._placement.by_task(after), [(jnp.zeros(len(keys), bool), keys)]

    def _next(self, meta, carry, tasks, key, step):
        where, spread = (*self._recipe.at(step), tasks), self._placement.spread
        window = self._gradient.value_and_grad(*where, chunk=self._chunk, spread=spread)
        return window(meta, carry, jax.random.fold_in(key, step))


class FromKindsOfRuns(Estimation):
    """Each kind of a mixture has inner runs of its own; their carry is a tuple, one per kind.

    The step is the weighted mean over the kinds of which a run is finite.
    """

    def __init__(
        self,
        recipe: Recipe,
        gradient: OnlineGradient,
        tasks: TaskMixture,
        batch: int,
        chunk: int | None = None,
        placement: Placement = OneDevice(),
    ):
        mixed: Any = recipe.problem
        self._weights = mixed.weights
        self._kinds = [
            FromRuns(_of_kind(recipe, i), gradient, n, chunk, placement)
            for i, n in enumerate(tasks.shares(batch))
        ]

    def begin(self, meta: PyTree, tasks: Any, key: PRNGKeyArray) -> PyTree:
        keys = jax.random.split(key, len(self._kinds))
        parts = zip(self._kinds, tasks.tasks, keys, strict=True)
        return tuple(kind.begin(meta, own, own_key) for kind, own, own_key in parts)

    def __call__(self, meta, carry, tasks, key, step) -> Estimated:
        parts = self._parts(carry, tasks, key)
        found = [each(meta, held, own, own_key, step) for each, held, own, own_key in parts]
        losses = jnp.stack([each.loss for each in found])
        finite = jnp.isfinite(losses)
        weights = jnp.where(finite, jnp.asarray(self._weights, losses.dtype), 0)
        weights = weights / jnp.sum(weights)  # NaN where no kind is finite, as of a single kind

        def mean(*leaves: Array) -> Any:
            return sum(w.astype(leaf.dtype) * leaf for w, leaf in zip(weights, leaves, strict=True))

        loss = mean(*jnp.where(finite, losses, 0))
        grads = jax.tree.map(mean, *(each.grads for each in found))
        diverged = jnp.sum(jnp.stack([each.metrics["diverged"] for each in found]))
        return Estimated(loss, {"diverged": diverged}, grads, tuple(each.carry for each in found))

    def singly(self, meta, carry, tasks, key, step, norm):
        by_kind = [
            each.singly(meta, held, own, own_key, step, norm)
            for each, held, own, own_key in self._parts(carry, tasks, key)
        ]
        nothing, carries, found = zip(*by_kind, strict=True)
        return nothing[0], tuple(carries), [one for of_kind in found for one in of_kind]

    def _parts(self, carry, tasks, key):
        keys = jax.random.split(key, len(self._kinds))
        return zip(self._kinds, carry, tasks.tasks, keys, strict=True)


def _of_kind(recipe: Recipe, i: int) -> Recipe:
    """The recipe of one kind of a mixture."""

    def at(step: Any) -> tuple[Any, Any]:
        mixture, adaptations = recipe.at(step)
        problem, adaptation = mixture.kinds(adaptations)[i]
        return problem, adaptation

    schedule = None if recipe.schedule is None else at
    problem, adaptation = at(0)
    return recipe._replace(problem=problem, adaptation=adaptation, schedule=schedule)


def estimation(
    recipe: Recipe,
    gradient: MetaGradient | tuple[MetaGradient, ...] | OnlineGradient,
    tasks: Any,
    batch: int,
    chunk: int | None,
    placement: Placement,
) -> Estimation:
    """What a recipe's kind of gradient needs."""
    if not isinstance(gradient, OnlineGradient):
        return FromTasks(recipe, gradient, batch, chunk, placement)
    if isinstance(recipe.problem, ProblemMixture):
        return FromKindsOfRuns(recipe, gradient, tasks, batch, chunk, placement)
    return FromRuns(recipe, gradient, batch, chunk, placement)


def _means(metrics: PyTree, weight: Array | None) -> dict[str, Scalar]:
    """Means over tasks of the outer loss's metrics, for the log, weighted as the loss is."""
    named_metrics(jax.tree.map(lambda leaf: leaf[0], metrics))
    if not metrics:
        return {}
    if weight is None:
        return {name: jnp.mean(leaf) for name, leaf in metrics.items()}

    def weighted(leaf: Array) -> Scalar:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            leaf = leaf.astype(weight.dtype)
        weights = weight.astype(leaf.dtype)
        return jnp.sum(jnp.where(weights != 0, weights * leaf, 0)) / jnp.sum(weights)

    return {name: weighted(leaf) for name, leaf in metrics.items()}


_FOUND = "found by task"


def _task_by_task(norm: float) -> Callable[[SumOverTasks], SumOverTasks]:
    """One task at a time, each gradient clipped; those that are not finite count as zero."""

    def spread(sums: SumOverTasks) -> SumOverTasks:
        def run(meta: PyTree, episodes: PyTree, keys: jax.Array, weights: jax.Array):
            def add(total: PyTree, task: PyTree):
                loss, aux, grads = sums(meta, *jax.tree.map(lambda leaf: leaf[None], task))
                sound = is_sound(loss, grads)
                short = shorten(grads, task[-1] * norm)
                clipped = jax.tree.map(lambda leaf: jnp.where(sound, leaf, 0), short)
                total = jax.tree.map(jnp.add, total, clipped)
                return total, (jnp.where(sound, loss, 0), aux, sound)

            zero = jax.tree.map(jnp.zeros_like, meta)
            grads, (losses, aux, sound) = jax.lax.scan(add, zero, (episodes, keys, weights))
            aux = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), aux)
            diagnostics = aux.diagnostics | {_FOUND: (sound, _as_numbers(keys))}
            return jnp.sum(losses), aux._replace(diagnostics=diagnostics), grads

        return run

    return spread


def _as_numbers(keys: jax.Array) -> jax.Array:
    is_typed = jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(keys) if is_typed else keys
