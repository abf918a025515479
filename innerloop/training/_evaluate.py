"""How well tasks are learned after each number of inner steps, with intervals."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.adaptation import run
from innerloop.arguments import at_least, checked, flag, instance, optional, random_key
from innerloop.batches import task_count
from innerloop.checks import describe, explained, require_on_host
from innerloop.devices.placement import OneDevice, Placement
from innerloop.devices.sharding import placement
from innerloop.diagnostics.known_values import refuse_values
from innerloop.diagnostics.text import plus_minus, shown_steps, table
from innerloop.errors import StructureError
from innerloop.estimators.metrics import named_metrics
from innerloop.gradients.inner import Exact
from innerloop.gradients.loops import StoreAll
from innerloop.learner import Learner
from innerloop.missing import missing_derivatives_explained
from innerloop.normal_form import loss_function
from innerloop.objective import check_meta
from innerloop.problem import Episode, task_keys
from innerloop.programs.compiled import compiled
from innerloop.recipes import Recipe
from innerloop.training.calibration import calibration_sums, expected_calibration_error
from innerloop.trees import element, element_structure

TASKS_AT_ONCE = 100
"""Enough to fill the cores, few enough to stay in the cache: on a CPU faster than all at once."""


class Evaluation(NamedTuple):
    """Mean over tasks of every metric, and half the width of its 95% interval; prints as a table.

    Attributes:
        mean: Metric name -> `(steps + 1,)`, after 0 ... `steps` inner steps.
        interval: The same for half the width of the interval.
        tasks: The number of tasks.
        ece: `(steps + 1,)`, the expected calibration error over the query rows of all tasks, from 0
            to 1 (15 bins; Guo et al. 2017); None unless it was asked for.
    """

    mean: dict[str, np.ndarray]
    interval: dict[str, np.ndarray]
    tasks: int
    ece: np.ndarray | None = None

    def __repr__(self) -> str:
        return describe(self)

    def __str__(self) -> str:
        """The metrics after each of the inner steps, or some of many; one row each after one."""
        columns = {name: plus_minus(self.mean[name], self.interval[name]) for name in self.mean}
        if self.ece is not None:
            columns["calibration error"] = [f"{error:.4f}" for error in self.ece]
        headline = f"{self.tasks:,} tasks, mean ± 95% interval"
        cells = list(zip(*columns.values(), strict=True))
        if len(cells) < 2:
            rows = [[name, *values] for name, values in columns.items()]
            return f"{headline}\n{table(['metric', 'mean'], rows, right=1)}"
        rows = [[f"{step:,}", *cells[step]] for step in shown_steps(len(cells) - 1)]
        return f"{headline}\n{table(['inner steps', *columns], rows, right=0)}"


class TaskResults(NamedTuple):
    """What an evaluation found of single tasks.

    Attributes:
        metrics: Name -> `(tasks, steps + 1)`.
        calibration: `(tasks, steps + 1, bins, 3)`, as `calibration_sums`; None unless asked for.
    """

    metrics: dict[str, Array]
    calibration: Array | None


def evaluate(
    learner: Learner,
    meta: PyTree,
    episodes: Episode,
    key: PRNGKeyArray,
    *,
    steps: int | None = None,
    chunk: int | None = None,
    calibration: bool = False,
    devices: Placement | Mesh | int | Literal["all"] | None = None,
) -> Evaluation:
    """Learn every task of a batch from `meta` and judge it on its query set.

    The program is compiled once for a learner and the shapes of meta and episodes. Metrics are
    `"loss"`, the outer loss, and the leaves of its aux, named by their paths with dots. Every task
    counts alike. No derivative graph is built beyond the inner gradients.

    Args:
        learner: Problem, adaptation and predictions.
        meta: The meta-parameters.
        episodes: A batch of episodes without weights.
        key: A random key; each task has its own, split from it.
        steps: Inner steps, which may be more than the trained number; those of the adaptation
            unless given.
        chunk: Tasks that are computed at a time; 100 unless given.
        calibration: Measure the calibration of `learner.predict`'s logits too.
        devices: The devices that share the tasks, as in `fit`.

    Returns:
        Mean and 95% interval (1.96 standard errors over tasks) after 0 ... `steps` inner steps.

    Raises:
        StructureError: The parts do not fit, the episodes carry weights, the aux of the outer
            loss has a leaf that is not a real scalar, or a label is not a class of its task.
    """
    require_on_host("evaluate", meta, episodes, key)
    how = {"steps": steps, "chunk": chunk, "calibration": calibration}
    results = evaluated_tasks(learner, meta, episodes, key, placement=placement(devices), **how)
    refuse_values_of(results, learner, meta, episodes, key)
    return summarise(results)


def refuse_values_of(
    results: TaskResults, learner: Learner, meta: PyTree, episodes: Episode, key: PRNGKeyArray
) -> None:
    """Raise the error in the values of the first task whose loss is NaN, if there is one.

    Raises:
        StructureError: A label of the task is not a class.
    """
    losses = np.asarray(results.metrics["loss"])
    for i in np.flatnonzero(np.isnan(losses).any(axis=1))[:1].tolist():
        task = element((episodes, jax.random.split(key, len(losses))), i)
        refuse_values(learner.problem, learner.adaptation, meta, *task)


@checked(
    "evaluate",
    learner=instance(
        *(Learner,),
        what="a Learner",
        such_as="Learner(problem, adaptation)",
        instead={Recipe: "recipe.learner"},
    ),
    calibration=flag(),
    key=random_key(),
    steps=optional(at_least(0)),
    chunk=optional(at_least(1, such_as=100)),
)
def evaluated_tasks(
    learner: Learner,
    meta: PyTree,
    episodes: Episode,
    key: PRNGKeyArray,
    *,
    steps: int | None = None,
    chunk: int | None = None,
    calibration: bool = False,
    placement: Placement = OneDevice(),
    each_step: bool = True,
) -> TaskResults:
    """What `evaluate` summarises.

    Args:
        learner: See `evaluate`, like the arguments after it.
        meta: See `evaluate`.
        episodes: See `evaluate`.
        key: See `evaluate`.
        steps: See `evaluate`.
        chunk: See `evaluate`.
        calibration: See `evaluate`.
        placement: The devices.
        each_step: Judge the parameters after 0 ... `steps` steps; otherwise after the last alone,
            as the only result, which spares the query set after all the others.
    """
    if calibration and learner.predict is None:
        raise StructureError(
            "calibration is measured of a learner's predictions",
            got="Learner(..., predict=None)",
            expected="a learner that predicts logits",
            write="evaluate(Learner(problem, adaptation, predict), ..., calibration=True)",
        )
    check_meta(meta)
    meta = jax.tree.map(jnp.asarray, meta)  # a number would be a part of the program
    learner, meta, episodes, key = map(placement.place, (learner, meta, episodes, key))
    at_once = TASKS_AT_ONCE if chunk is None else chunk
    how = (steps, at_once, calibration, placement, each_step)
    return _all_tasks(learner, meta, episodes, key, *how)


@compiled
def _all_tasks(
    learner: Learner,
    meta: PyTree,
    episodes: Episode,
    key: PRNGKeyArray,
    steps: int | None,
    chunk: int,
    calibration: bool,
    placement: Placement,
    each_step: bool,
) -> TaskResults:
    problem, adaptation = learner.problem, learner.adaptation
    outer_loss = loss_function("outer_loss", problem, needed_by="evaluate")
    tasks = task_count(episodes)
    if episodes.weight is not None:
        raise StructureError(
            "evaluation counts every task alike, and these episodes carry weights",
            got="Episode(..., weight=...)",
            expected="episodes without weights",
        )

    def one_task(meta: PyTree, episode: Episode, key: PRNGKeyArray) -> TaskResults:
        keys = task_keys(key)

        def observe(params: PyTree, t: Any = None) -> TaskResults:
            value, aux = outer_loss(params, meta, episode.query, keys.outer)
            metrics = {"loss": value} | named_metrics(aux)
            if not calibration:
                return TaskResults(metrics, None)
            assert learner.predict is not None
            predict = explained("predict", learner.predict, "params", "meta", "batch", "key")
            logits = predict(params, problem.whole(meta), episode.query, keys.outer)
            return TaskResults(metrics, calibration_sums(logits, episode.query))

        with missing_derivatives_explained():
            state, _, observed = run(
                *(problem, adaptation, meta, episode.support, keys.adapt),
                *(Exact(), StoreAll(), observe if each_step else None),
                steps=steps,
            )
        if each_step:
            return observed
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], observe(adaptation.params(state)))

    structure = element_structure(episodes)

    def some_tasks(meta: PyTree, leaves: list, keys: Array) -> TaskResults:
        of_leaves = lambda task: one_task(meta, structure.unflatten(task[0]), task[1])
        return jax.lax.map(of_leaves, (leaves, keys), batch_size=min(chunk, len(keys)))

    leaves, keys = jax.tree.leaves(episodes), jax.random.split(key, tasks)
    return placement.each(some_tasks)(meta, leaves, keys)


def summarise(results: TaskResults) -> Evaluation:
    """Mean and 95% interval over the task axis, the first."""
    values = {name: np.asarray(leaf, np.float64) for name, leaf in results.metrics.items()}
    sums = results.calibration
    tasks = len(values["loss"])
    with np.errstate(invalid="ignore", over="ignore"):  # a diverged task: the interval says so
        spread = {name: leaf.std(axis=0, ddof=min(1, tasks - 1)) for name, leaf in values.items()}
    return Evaluation(
        {name: leaf.mean(axis=0) for name, leaf in values.items()},
        {name: 1.96 * leaf / np.sqrt(tasks) for name, leaf in spread.items()},
        tasks,
        None if sums is None else expected_calibration_error(np.asarray(sums)),
    )


def combined(
    evaluations: Mapping[str, Evaluation], weights: Mapping[str, float | int]
) -> Evaluation:
    """Several evaluations as one.

    Each metric has its evaluation's name in front. A metric that all of them have is there under
    its own name too: the weighted mean, whose interval is that of independent sets of tasks.
    """
    named = lambda name, metrics: {f"{name}/{m}" if name else m: x for m, x in metrics.items()}
    mean, interval = {}, {}
    total = sum(weights.values())
    parts = [(weight / total, evaluations[name]) for name, weight in weights.items()]
    for metric in parts[0][1].mean:
        if all(metric in each.mean for _, each in parts):
            mean[metric] = sum(share * each.mean[metric] for share, each in parts)
            squares = sum((share * each.interval[metric]) ** 2 for share, each in parts)
            interval[metric] = np.sqrt(squares)
    for name, each in evaluations.items():
        mean |= named(name, each.mean)
        interval |= named(name, each.interval)
    return Evaluation(mean, interval, sum(each.tasks for _, each in parts))
