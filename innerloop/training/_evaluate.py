"""How well tasks are learned after each number of inner steps, with intervals."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.adaptation import Adaptation, run
from innerloop.checks import check_count
from innerloop.devices.placement import OneDevice, Placement
from innerloop.devices.sharding import placement
from innerloop.errors import StructureError
from innerloop.gradients.inner import Exact
from innerloop.gradients.loops import StoreAll
from innerloop.objective import task_count
from innerloop.problem import Episode, Problem, ProblemMixture, loss_function, task_keys
from innerloop.recipes.base import Predict
from innerloop.training.calibration import calibration_sums, expected_calibration_error

TASKS_AT_ONCE = 100
"""Enough to fill the cores, few enough to stay in the cache: on a CPU faster than
all at once."""


class Evaluation(NamedTuple):
    """Mean over tasks of every metric, and half the width of its 95% interval.

    - `mean`, `interval`: metric name -> `(steps + 1,)`, after 0 ... `steps` inner steps
    - `tasks`: number of tasks
    - `ece`: `(steps + 1,)`, the expected calibration error over the query rows of all tasks, from 0
      to 1 (15 bins; Guo et al. 2017); None where no `predict` was given
    """

    mean: dict[str, np.ndarray]
    interval: dict[str, np.ndarray]
    tasks: int
    ece: np.ndarray | None = None


class TaskResults(NamedTuple):
    """What an evaluation found of single tasks.

    - `metrics`: name -> `(tasks, steps + 1)`
    - `calibration`: `(tasks, steps + 1, bins, 3)`, as `calibration_sums`; None without predictions
    """

    metrics: dict[str, Array]
    calibration: Array | None


def evaluator(
    problem: Problem | ProblemMixture,
    adaptation: Adaptation | tuple[Adaptation, ...],
    *,
    steps: int | None = None,
    chunk: int | None = None,
    predict: Predict | None = None,
    placement: Placement = OneDevice(),
    each_step: bool = True,
) -> Callable[[PyTree, Any, PRNGKeyArray], TaskResults]:
    """A compiled function `(meta, episodes, key) -> results of single tasks`.

    No derivative graph is built beyond the inner gradients. Metrics are `"loss"`, the outer loss,
    and the entries of its aux, a dict of scalars.

    - `steps`: how many inner steps to take; those of the adaptation unless given
    - `chunk`: tasks at a time; `TASKS_AT_ONCE` unless given
    - `predict`: the logits whose calibration is measured, as `Recipe.predict` gives them
    - `placement`: the devices that share the tasks
    - `each_step`: judge the parameters after 0 ... `steps` steps; otherwise after the last alone,
      as the one result that there is, which spares the query set after all the others

    Of a mixture, whose episodes are a tuple, the results are those of all kinds one after the
    other, in the metrics that they all have.
    """
    if chunk is not None:
        check_count("chunk", chunk, write="evaluate(problem, adaptation, ..., chunk=100)")
    how = (steps, TASKS_AT_ONCE if chunk is None else chunk, predict, placement, each_step)
    if not isinstance(problem, ProblemMixture):
        return _of_one_kind(problem, adaptation, *how)
    kinds = problem.kinds(adaptation)
    return _one_after_the_other([_of_one_kind(each, learn, *how) for each, learn in kinds])


def _of_one_kind(
    problem, adaptation, steps, chunk: int, predict, placement: Placement, each_step: bool
):
    outer_loss = loss_function("outer_loss", problem.outer_loss, needed_by="evaluate")

    def one_task(meta: PyTree, episode: Episode, key: PRNGKeyArray):
        keys = task_keys(key)

        def observe(params: PyTree, t: Any = None):
            value, aux = outer_loss(params, meta, episode.query, keys.outer)
            metrics = {"loss": value} | named_metrics(aux)
            if predict is None:
                return TaskResults(metrics, None)
            logits = predict(params, meta, episode.query, keys.outer)
            return TaskResults(metrics, calibration_sums(logits, episode.query))

        state, _, observed = run(
            problem,
            adaptation,
            meta,
            episode.support,
            keys.adapt,
            Exact(),
            StoreAll(),
            observe if each_step else None,
            steps=steps,
        )
        if each_step:
            return observed
        return jax.tree.map(lambda leaf: leaf[None], observe(adaptation.params(state)))

    @jax.jit
    def all_tasks(meta: PyTree, episodes: Episode, key: PRNGKeyArray):
        if episodes.weight is not None:
            raise StructureError(
                "evaluation counts every task alike, and these episodes carry weights",
                got="Episode(..., weight=...)",
                expected="episodes without weights",
                write="evaluate on the tasks whose weight is not zero, as Episode(support, query)",
            )
        keys = jax.random.split(key, task_count(episodes))
        return placement.each(some_tasks)(meta, episodes, keys)

    def some_tasks(meta: PyTree, episodes: Episode, keys: Array):
        return jax.lax.map(
            lambda task: one_task(meta, *task),
            (episodes, keys),
            batch_size=min(chunk, len(keys)),
        )

    return all_tasks


def _one_after_the_other(of_kinds: list[Callable[..., TaskResults]]):
    def all_kinds(meta: PyTree, episodes: tuple[Episode, ...], key: PRNGKeyArray) -> TaskResults:
        parts = zip(of_kinds, episodes, jax.random.split(key, len(of_kinds)), strict=True)
        results = [run(meta, own, key) for run, own, key in parts]
        shared = [name for name in results[0].metrics if all(name in r.metrics for r in results)]
        picked = [({name: r.metrics[name] for name in shared}, r.calibration) for r in results]
        return TaskResults(*jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *picked))

    return all_kinds


def evaluate(
    problem: Problem | ProblemMixture,
    adaptation: Adaptation | tuple[Adaptation, ...],
    meta: PyTree,
    episodes: Episode | tuple[Episode, ...],
    key: PRNGKeyArray,
    *,
    steps: int | None = None,
    chunk: int | None = None,
    predict: Predict | None = None,
    devices: Placement | Mesh | int | Literal["all"] | None = None,
) -> Evaluation:
    """Learn every task of a batch from `meta` and judge it on its query set.

    Returns mean and 95% interval (1.96 standard errors over tasks) after 0 ... `steps` inner steps,
    which may go beyond the trained number. With `predict`, a classifier's `Recipe.predict`, the
    calibration of its probabilities too. `devices` share the tasks, as in `fit`.

    The problems, adaptations and episodes of a `mixture` are taken too: every task counts alike,
    whatever its kind, in the metrics that all kinds have.
    """
    how = {"steps": steps, "chunk": chunk, "predict": predict, "devices": devices}
    return summarise(evaluate_tasks(problem, adaptation, meta, episodes, key, **how))


def evaluate_tasks(
    problem: Problem | ProblemMixture,
    adaptation: Adaptation | tuple[Adaptation, ...],
    meta: PyTree,
    episodes: Episode | tuple[Episode, ...],
    key: PRNGKeyArray,
    *,
    steps: int | None = None,
    chunk: int | None = None,
    predict: Predict | None = None,
    devices: Placement | Mesh | int | Literal["all"] | None = None,
) -> TaskResults:
    """What `evaluate` summarises."""
    place = placement(devices)
    measure = evaluator(
        problem, adaptation, steps=steps, chunk=chunk, predict=predict, placement=place
    )
    return measure(*(place.place(each) for each in (meta, episodes, key)))


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


def named_metrics(aux) -> dict:
    """An outer loss's aux as metrics. Raises `StructureError` unless it is a dict of scalars."""
    if aux is None:
        return {}
    if isinstance(aux, dict) and all(jnp.shape(leaf) == () for leaf in aux.values()):
        return aux
    raise StructureError(
        "training and evaluation report the outer loss's aux by name",
        got=f"aux of type {type(aux).__name__}",
        expected="a dict of scalars, or no aux",
        write="return loss, {'accuracy': accuracy} in outer_loss",
    )
