"""Evaluation of a run: on its own test tasks, or by the protocol of a data set's authors."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import tyro
from jaxtyping import PyTree

from innerloop.devices.sharding import placement
from innerloop.errors import RunError, StructureError
from innerloop.lab.experiments.base import Experiment, Parts
from innerloop.lab.experiments.few_shot import FewShot, require_steps, support_labels_shuffled
from innerloop.lab.experiments.learned_optimizer import OptimizerTraining
from innerloop.lab.experiments.optimizer_record import optimizer_record
from innerloop.lab.experiments.protocols import PROTOCOLS, ProtocolName
from innerloop.lab.experiments.ranges import check_ranges
from innerloop.lab.experiments.table import load_best_meta, read_experiment
from innerloop.lab.run_folder import RESULT, RunFolder, as_flag, environment
from innerloop.logging.records import evaluation_record
from innerloop.problem import Episode
from innerloop.tasks import evaluation_episodes, evaluation_key
from innerloop.training import _evaluate as evaluation


def evaluate(
    run: tyro.conf.Positional[Path],
    *,
    tasks: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    shots: int | None = None,
    families: tuple[str, ...] | None = None,
    shuffle_support_labels: bool = False,
    protocol: ProtocolName | None = None,
) -> dict[str, Any]:
    """Evaluate a run on its meta-test tasks; a learned optimizer against tuned ones.

    Args:
        run: Folder of the run.
        tasks: Number of test tasks, for a learned optimizer of each family; the experiment's own by
            default.
        steps: Inner steps. There are results after each of 0 to this many.
        seed: Seed of the test set; the run's own by default.
        shots: Support examples, of each class where there are classes; the run's own by default.
        families: For a learned optimizer, names of training or held-out families; those that it was
            trained on by default.
        shuffle_support_labels: Shuffle each task's support labels: accuracy must fall to chance.
        protocol: Tasks that the authors of the data fixed, in place of the run's own:
            omniglot-one-shot has 20, each of 20 characters of one alphabet, with one drawing of
            each to learn from.

    Returns:
        A record of the results and what they depend on, and the `"file"` that holds it. Evaluations
        with another seed or other numbers have other files. For few-shot learning the record has an
        entry like the `"test"` of `result.json`, for a learned optimizer the entries of
        `optimizer_record`.

    Raises:
        RunError: If the folder holds no run, is damaged or cannot be written.
        StructureError: If an argument is out of range or is not meant for this kind of run.
    """
    folder = RunFolder.open(run)
    folder.require_writable()  # Before minutes of work.
    trained = read_experiment(folder)
    shuffle = shuffle_support_labels
    few_shot: Any = {"shots": shots, "protocol": protocol, "shuffle_support_labels": shuffle}
    asked = {"tasks": tasks, "steps": steps, "seed": seed}
    if isinstance(trained, FewShot):
        _refuse(
            {"families": families},
            "families are of learned optimizers, not of few-shot tasks",
            "a run of innerloop train learned-optimizer, or no families",
        )
        name, record = _few_shot_record(folder, trained, asked, **few_shot)
    else:
        assert isinstance(trained, OptimizerTraining)
        _refuse(
            few_shot,
            "a learned optimizer is evaluated against tuned ones, not on few-shot tasks",
            "a number of tasks, steps or a seed, or nothing",
        )
        _with(trained, {"test_tasks": tasks, "horizon": steps, "seed": seed})
        meta = load_best_meta(folder, trained)
        name, record = optimizer_record(trained, meta, families=families, **asked)
    record = {"run": str(run), **record, "environment": environment()}
    return record | {"file": str(folder.write_json(f"{name}.json", record))}


def _few_shot_record(
    folder: RunFolder,
    trained: FewShot,
    asked: dict[str, int | None],
    *,
    shots: int | None,
    protocol: ProtocolName | None,
    shuffle_support_labels: bool,
) -> tuple[str, dict[str, Any]]:
    """The name of the file, and its content."""
    tasks, steps, seed = asked.values()
    chunk = folder.read_json(RESULT).get("chunk") if folder.has(RESULT) else None
    trained = dataclasses.replace(trained, memory=None, devices=None, chunk=chunk or trained.chunk)
    overrides = {"test_tasks": tasks, "test_steps": steps, "seed": seed, "shots": shots}
    experiment = _with(trained, overrides)
    if protocol is None:
        parts = experiment.parts()
        episodes = test_episodes(experiment, parts)
        name = f"seed{experiment.seed}-steps{{}}-tasks{experiment.test_tasks}"
        name += "" if shots is None else f"-shots{shots}"
    else:
        own = {"tasks": tasks, "seed": seed, "shots": shots}
        _refuse(own, f"{protocol} has its own tasks, each once", "no tasks, no seed and no shots")
        experiment, episodes = PROTOCOLS[protocol](experiment)
        parts = experiment.parts()
        episodes = dict.fromkeys(parts.held_out, episodes)
        _require_outputs(folder.path, trained, experiment)
        name = f"{protocol}-steps{{}}"
    if steps is not None:
        require_steps(experiment.recipe, experiment.build_recipe().learner)
    meta = load_best_meta(folder, experiment)
    if shuffle_support_labels:
        key = evaluation_key(experiment.seed, "shuffling")
        episodes = {name: support_labels_shuffled(each, key) for name, each in episodes.items()}
    results = test_evaluation(experiment, parts, meta, episodes)
    if protocol is not None:  # Rates of error are what is published.
        for each in results.values():
            each.metrics["error"] = 1 - each.metrics["accuracy"]
    test = summary(results)
    record = {
        "protocol": protocol,
        "shuffled_support_labels": shuffle_support_labels,
        "seed": experiment.seed,
        "shots": experiment.shots,
        "normalisation": parts.normalisation,
        "test": evaluation_record(test),
    }
    name = f"evaluation-{name.format(len(test.mean['loss']) - 1)}"
    return name + "-shuffled" * shuffle_support_labels, record


def _with(experiment: Any, overrides: dict[str, int | None]) -> Any:
    """The experiment with other settings. Raises `StructureError` if one is out of range."""
    changed = {name: value for name, value in overrides.items() if value is not None}
    experiment = dataclasses.replace(experiment, **changed)
    check_ranges(experiment, {"test_tasks": "tasks", "test_steps": "steps", "horizon": "steps"})
    return experiment


def _refuse(arguments: dict[str, Any], problem: str, expected: str) -> None:
    """Raise `StructureError` if one of the arguments is given."""
    absent = lambda value: value is None or value is False
    given = [as_flag(name, value) for name, value in arguments.items() if not absent(value)]
    if given:
        write = f"innerloop evaluate RUN, without {', '.join(flag.split()[0] for flag in given)}"
        raise StructureError(problem, got=" ".join(given), expected=expected, write=write)


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


def _require_outputs(path: Path, trained: Any, experiment: Any) -> None:
    """Raise `RunError` if the run's own network has another number of outputs."""
    if not eqx.tree_equal(trained.meta_shapes(), experiment.meta_shapes()):
        ways, recipe = experiment.ways, trained.recipe
        raise RunError(
            f"the protocol has tasks of {ways} classes, and the run's network has other outputs",
            got=f"{path}, trained with --recipe {recipe} --ways {trained.ways}",
            expected=f"a run with --ways {ways}, or of a recipe whose network has no outputs of "
            "its own, such as protonet",
            write=f"innerloop train omniglot --recipe {recipe} --ways {ways} ...",
        )
