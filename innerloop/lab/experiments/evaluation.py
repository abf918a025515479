"""Evaluation of a run: on its own test tasks, or by the protocol of a data set's authors."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from innerloop.devices.sharding import placement
from innerloop.errors import StructureError
from innerloop.lab.experiments.base import Experiment, Parts
from innerloop.lab.experiments.few_shot import FewShot, support_labels_shuffled
from innerloop.lab.experiments.learned_optimizer import OptimizerTraining
from innerloop.lab.experiments.omniglot import ProtocolName, one_shot_protocol
from innerloop.lab.experiments.optimizer_trials import optimizer_record
from innerloop.lab.experiments.ranges import check_ranges
from innerloop.lab.experiments.table import read_experiment
from innerloop.lab.run_folder import RESULT, RunFolder, as_flag, environment
from innerloop.logging.records import evaluation_record
from innerloop.problem import Episode
from innerloop.storage.kinds import anything, count, fields, or_null
from innerloop.tasks import evaluation_episodes, evaluation_key
from innerloop.training import _evaluate as evaluation

_ENDED = fields({}, {"chunk": or_null(count)}, rest=anything)


@dataclass(frozen=True)
class Asked:
    """The options in which an evaluation differs from the run's own test."""

    tasks: int | None = None
    """Number of test tasks: the run's own by default. For a learned optimizer, tasks of each
    family, 20 by default."""
    steps: int | None = None
    """Inner steps; results are given after 0, 1, … and this many."""
    seed: int | None = None
    """Seed of the test set; the run's own by default."""
    shots: int | None = None
    """Support examples, of each class where there are classes; the run's own by default."""
    families: tuple[str, ...] | None = None
    """Training or held-out families of a learned optimizer; those it was trained on by default."""
    shuffle_support_labels: bool = False
    """Shuffle each task's support labels: accuracy must fall to chance."""
    protocol: ProtocolName | None = None
    """Tasks that the authors of the data fixed, in place of the run's own.
    omniglot-one-shot has 20, each of 20 characters of one alphabet, with one drawing of each."""


def evaluate(run: Path, asked: Asked) -> dict[str, Any]:
    """Evaluate a run on its meta-test tasks; a learned optimizer against tuned ones.

    Args:
        run: The folder of the run.
        asked: How the evaluation differs from the run's own test.

    Returns:
        A record of the results and what they depend on, and the `"file"` that holds it. Evaluations
        with a different seed or different numbers go into different files. For few-shot learning
        the record has an entry like the `"test"` of `result.json`, for a learned optimizer the
        entries of `optimizer_record`.

    Raises:
        RunError: If the folder holds no run, is damaged or cannot be written.
        StructureError: If an argument is out of range or is not meant for this kind of run.
    """
    folder = RunFolder.open(run)
    folder.require_writable()  # Before minutes of work.
    trained = read_experiment(folder)
    if isinstance(trained, FewShot):
        problem = "families apply to learned optimizers, not to few-shot tasks"
        expected = "a run of innerloop train learned-optimizer, or no families"
        _refuse(asked, ("families",), problem, expected)
        name, record = _few_shot_record(folder, trained, asked)
    else:
        assert isinstance(trained, OptimizerTraining)
        problem = "a learned optimizer is evaluated against tuned ones, not on few-shot tasks"
        expected = "a number of tasks, steps or a seed, or nothing"
        _refuse(asked, ("shots", "protocol", "shuffle_support_labels"), problem, expected)
        tested = _with(trained, test_tasks=asked.tasks, horizon=asked.steps, seed=asked.seed)
        meta = folder.load_meta(trained.meta_shapes())
        name, record = optimizer_record(tested, meta, asked.tasks, asked.families)
    record = {"run": str(run), **record, "environment": environment()}
    return record | {"file": str(folder.write_json(f"{name}.json", record))}


def _few_shot_record(
    folder: RunFolder, trained: FewShot, asked: Asked
) -> tuple[str, dict[str, Any]]:
    """The name of the file, and its content."""
    chunk = folder.read_json(RESULT, _ENDED).get("chunk") if folder.has(RESULT) else None
    trained = dataclasses.replace(trained, memory=None, devices=None, chunk=chunk or trained.chunk)
    counts = {"test_tasks": asked.tasks, "test_steps": asked.steps, "shots": asked.shots}
    experiment = _with(trained, seed=asked.seed, **counts)
    if asked.protocol is None:
        parts = experiment.parts()
        episodes = test_episodes(experiment, parts)
        name = f"seed{experiment.seed}-steps{{}}-tasks{experiment.test_tasks}"
        name += "" if asked.shots is None else f"-shots{asked.shots}"
    else:
        problem = f"{asked.protocol} has its own tasks, each used once"
        _refuse(asked, ("tasks", "seed", "shots"), problem, "no tasks, no seed and no shots")
        experiment, episodes = one_shot_protocol(folder.path, experiment)
        parts = experiment.parts()
        episodes = dict.fromkeys(parts.held_out, episodes)
        name = f"{asked.protocol}-steps{{}}"
    if asked.steps is not None and parts.held_out[""].steps is None:
        raise StructureError(
            f"{experiment.recipe} learns a task in one go",
            got="--steps",
            expected="no number of inner steps",
        )
    meta = folder.load_meta(experiment.meta_shapes())
    if asked.shuffle_support_labels:
        key = evaluation_key(experiment.seed, "shuffling")
        episodes = {name: support_labels_shuffled(each, key) for name, each in episodes.items()}
    results = test_evaluation(experiment, parts, meta, episodes)
    if asked.protocol is not None:  # Rates of error are what is published.
        for each in results.values():
            each.metrics["error"] = 1 - each.metrics["accuracy"]
    test = summary(results)
    record = {
        "protocol": asked.protocol,
        "shuffled_support_labels": asked.shuffle_support_labels,
        "seed": experiment.seed,
        "shots": experiment.shots,
        "normalisation": parts.normalisation,
        "test": evaluation_record(test),
    }
    name = f"evaluation-{name.format(len(test.mean['loss']) - 1)}"
    return name + "-shuffled" * asked.shuffle_support_labels, record


def _with(experiment: Any, **overrides: int | None) -> Any:
    """The experiment with other settings. Raises `StructureError` if one is out of range."""
    changed = {name: value for name, value in overrides.items() if value is not None}
    experiment = dataclasses.replace(experiment, **changed)
    check_ranges(experiment, {"test_tasks": "tasks", "test_steps": "steps", "horizon": "steps"})
    return experiment


def _refuse(asked: Asked, names: tuple[str, ...], problem: str, expected: str) -> None:
    """Raise `StructureError` if one of these is asked for."""
    given = {name: getattr(asked, name) for name in names}
    flags = [as_flag(name, x) for name, x in given.items() if x is not None and x is not False]
    if flags:
        raise StructureError(problem, got=" ".join(flags), expected=expected)


def test_episodes(experiment: Experiment, parts: Parts) -> dict[str, Episode]:
    """The fixed test sets of the experiment's seed, by name."""
    return {
        name: evaluation_episodes(each.test, each.test_tasks, experiment.seed, "test")
        for name, each in parts.held_out.items()
    }


def test_evaluation(
    experiment: Experiment, parts: Parts, meta: PyTree, episodes: Mapping[str, Episode]
) -> dict[str, evaluation.TaskResults]:
    """Every metric of every task after each inner step, by the name of the test set."""
    key = evaluation_key(experiment.seed, "test adaptation")
    settings: dict[str, Any] = {"chunk": experiment.chunk, "calibration": parts.calibration}
    settings["placement"] = placement(experiment.devices)
    evaluated = lambda name, each: evaluation.evaluated_tasks(
        each.learner, meta, episodes[name], key, steps=each.steps, **settings
    )
    return {name: evaluated(name, each) for name, each in parts.held_out.items()}


def pooled(results: Mapping[str, evaluation.TaskResults]) -> evaluation.TaskResults:
    """The tasks of all test sets one after the other, in the metrics that all sets have."""
    first, *_ = sets = list(results.values())
    shared = [name for name in first.metrics if all(name in each.metrics for each in sets)]
    picked = [each._replace(metrics={name: each.metrics[name] for name in shared}) for each in sets]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *picked)


def summary(results: Mapping[str, evaluation.TaskResults]) -> evaluation.Evaluation:
    """Means and intervals over all test tasks, and over those of each named set."""
    whole = evaluation.summarise(pooled(results))
    sets = {name: evaluation.summarise(each) for name, each in results.items()}
    named = evaluation.combined(sets, {name: each.tasks for name, each in sets.items()})
    return whole._replace(mean=named.mean | whole.mean, interval=named.interval | whole.interval)
