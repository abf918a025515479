"""Learned optimizers against tuned ones: loss curves over tasks, and their statistics."""

import timeit
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.adaptation.gradient_descent import MetaOptimizer
from innerloop.lab.experiments.learned_optimizer import OptimizerTraining, named_families
from innerloop.learner import Learner
from innerloop.problem import Episode
from innerloop.tasks import evaluation_episodes
from innerloop.tasks.optimization import Family
from innerloop.training._evaluate import evaluated_tasks

RATES = np.logspace(-4, 1, 26)
"""The rates that are tried: five in each factor of ten."""

BASELINES: Mapping[str, Callable[[Array, int], optax.GradientTransformation]] = {
    "SGD": lambda rate, steps: optax.sgd(rate),
    "momentum": lambda rate, steps: optax.sgd(rate, momentum=0.9),
    "Adam": lambda rate, steps: optax.adam(rate),
    "AdamW": lambda rate, steps: optax.adamw(rate),
    "Adam, cosine": lambda rate, steps: optax.adam(optax.cosine_decay_schedule(rate, steps)),
}
"""`(rate, steps of the run) -> optimizer`; the other settings are optax's defaults. The last one
depends on the length of the run, as a learned optimizer may.
"""

PER_TASK, LEARNED = "Adam, tuned per task", "learned"
TASKS = 20
"""The default number of tasks of each family."""
TIMED_RATE = 0.01


def baselines(steps: int) -> dict[str, MetaOptimizer]:
    """By name, for runs of `steps` steps, with the rate as meta-parameter."""
    of_rate = lambda build: lambda rate: build(rate, steps)
    return {name: of_rate(build) for name, build in BASELINES.items()}


class OptimizerTrial(NamedTuple):
    """One optimizer on the test tasks of one family.

    Attributes:
        losses: The loss on the query set after 0 … `steps` steps, `(tasks, steps + 1)`. Values that
            are not finite are infinite.
        by_area: The same with the rate that was tuned for the area.
        rates: The rate tuned for the last loss, and for the area; None without tuning.
        at_the_edge: Whether one of the rates is the first or the last that was tried.
    """

    losses: np.ndarray
    by_area: np.ndarray
    rates: tuple[float, float] | None = None
    at_the_edge: bool = False


def last(losses: np.ndarray) -> np.ndarray:
    """The loss after all steps."""
    return losses[..., -1]


def area(losses: np.ndarray) -> np.ndarray:
    """The mean of the losses after 1 … K steps: a straight line down has half the loss at 0."""
    return losses[..., 1:].mean(axis=-1)


LossCurves = Callable[[Sequence[PyTree], Episode, PRNGKeyArray], np.ndarray]
"""`(metas, episodes, key) -> (metas, tasks, steps + 1)`."""


def loss_curves(family: Family, optimizer: MetaOptimizer, steps: int) -> LossCurves:
    """A function that returns the losses on the query sets; values that are not finite are inf.

    It is compiled once for all metas, which may be learning rates, and for all sets of one size.
    """
    learner = Learner(family.problem, family.adaptation(optimizer, steps))

    def curves(metas: Sequence[PyTree], episodes: Episode, key: PRNGKeyArray) -> np.ndarray:
        found = [evaluated_tasks(learner, meta, episodes, key).metrics["loss"] for meta in metas]
        losses = np.stack([np.asarray(each) for each in found])
        return np.where(np.isfinite(losses), losses, np.inf)

    return curves


def tuned_trials(
    family: Family, *, steps: int, tasks: int, seed: int, rates: np.ndarray = RATES
) -> dict[str, OptimizerTrial]:
    """The baselines, each with one rate for the family, and Adam with one for each task.

    The rate of a family is the best of `rates` on as many tasks apart from the test tasks, by the
    median over tasks: one rate for the last loss and one for the area, so that each baseline is
    judged by each criterion at its best. Adam's rate of a task is the best on that task, which no
    method could choose without the result: a bound, and not a competitor.
    """
    tuning = evaluation_episodes(family.tasks, tasks, seed, "tuning")
    test = evaluation_episodes(family.tasks, tasks, seed, "test")
    key = jax.random.key(seed)
    metas = [jnp.asarray(rate, jnp.result_type(float)) for rate in rates]
    curves = {name: loss_curves(family, each, steps) for name, each in baselines(steps).items()}

    def tuned(curves: LossCurves) -> OptimizerTrial:
        tried = curves(metas, tuning, key)
        best = [int(np.argmin(np.median(score(tried), axis=1))) for score in (last, area)]
        losses, by_area = curves([metas[i] for i in best], test, key)
        edge = any(i in (0, len(rates) - 1) for i in best)
        return OptimizerTrial(losses, by_area, (float(rates[best[0]]), float(rates[best[1]])), edge)

    tried, each = curves["Adam"](metas, test, key), np.arange(tasks)
    of_task = [tried[np.argmin(score(tried), axis=0), each] for score in (last, area)]
    trials = {name: tuned(of) for name, of in curves.items()}
    return trials | {PER_TASK: OptimizerTrial(of_task[0], of_task[1])}


def learned_trial(
    family: Family, learned: MetaOptimizer, meta: PyTree, *, steps: int, tasks: int, seed: int
) -> OptimizerTrial:
    """A learned optimizer on the same test tasks."""
    test = evaluation_episodes(family.tasks, tasks, seed, "test")
    (losses,) = loss_curves(family, learned, steps)([meta], test, jax.random.key(seed))
    return OptimizerTrial(losses, losses)


def family_record(
    family: Family, learned: MetaOptimizer, meta: PyTree, **settings: Any
) -> dict[str, dict[str, Any]]:
    """By name, the `trial_record` of a learned optimizer and of tuned ones, on the same tasks."""
    trials = {LEARNED: learned_trial(family, learned, meta, **settings)}
    trials |= tuned_trials(family, **settings)
    return {name: trial_record(trial) for name, trial in trials.items()}


def seconds_per_step(
    family: Family, optimizer: MetaOptimizer, meta: PyTree, *, steps: int, repeats: int = 3
) -> float:
    """Wall-clock time of a compiled inner step of one task, the least of a few runs."""
    learner = Learner(family.problem, family.adaptation(optimizer, steps))
    episodes = evaluation_episodes(family.tasks, 1, 0, "seconds")

    learn = lambda: evaluated_tasks(learner, meta, episodes, jax.random.key(0))
    once = lambda: jax.block_until_ready(learn())
    once()  # Compiles.
    return min(timeit.repeat(once, number=1, repeat=repeats)) / steps


def quartiles(values: np.ndarray) -> list:
    """First quartile, median and third quartile over tasks, the first axis."""
    return np.quantile(values, [0.25, 0.5, 0.75], axis=0, method="nearest").tolist()


def trial_record(trial: OptimizerTrial) -> dict[str, Any]:
    """A trial as JSON: quartiles over tasks of last loss, area and curve, and each task's own."""
    final, mean = last(trial.losses), area(trial.by_area)
    tuning = {} if trial.rates is None else {"rates": trial.rates, "at_the_edge": trial.at_the_edge}
    return {
        "final": quartiles(final),
        "area": quartiles(mean),
        "curve": quartiles(trial.losses),
        "tasks": {"final": final.tolist(), "area": mean.tolist()},
        **tuning,
    }


def optimizer_record(
    experiment: OptimizerTraining,
    meta: PyTree,
    tasks: int | None = None,
    families: tuple[str, ...] | None = None,
) -> tuple[str, dict[str, Any]]:
    """Evaluate a learned optimizer and tuned ones, on new tasks of families.

    Args:
        experiment: The experiment that trained the optimizer. Its horizon is the number of inner
            steps, which an optimizer may know, and its seed draws the tasks.
        meta: The meta-parameters of the optimizer.
        tasks: Tasks of each family, `TASKS` by default.
        families: Names of training and held-out families; those it was trained on by default.

    Returns:
        The name of the record's file, and the record: `"optimizer"`; `"settings"` (steps, tasks and
        seed); `"families"`, by family and by optimizer what `trial_record` gives; and
        `"seconds_per_step"` on the first family, by optimizer.
    """
    chosen = experiment.training_families() if families is None else named_families(families)
    steps, learned = experiment.horizon, experiment.learned()
    count = TASKS if tasks is None else tasks
    settings = {"steps": steps, "tasks": count, "seed": experiment.seed}
    found = {each.name: family_record(each, learned, meta, **settings) for each in chosen}
    rate = jnp.asarray(TIMED_RATE)
    timed = {LEARNED: (learned, meta)} | {name: (of, rate) for name, of in baselines(steps).items()}
    name = "optimizers-seed{seed}-steps{steps}-tasks{tasks}".format(**settings)
    if families is not None:  # The names of all could be too long for a file name.
        names = " ".join(family.name for family in chosen)
        name += f"-{len(chosen)}-families-{zlib.crc32(names.encode()):08x}"
    return name, {
        "optimizer": repr(learned),
        "settings": settings,
        "families": found,
        "seconds_per_step": {
            name: seconds_per_step(chosen[0], *each, steps=steps) for name, each in timed.items()
        },
    }
