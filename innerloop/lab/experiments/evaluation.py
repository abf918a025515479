"""Evaluate a finished run: on its own test tasks, or by the protocol of a data set's authors."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from innerloop.devices.sharding import placement
from innerloop.errors import RunError, StructureError
from innerloop.lab.experiments.base import Experiment, Parts
from innerloop.lab.experiments.few_shot import FewShot, require_steps, support_labels_shuffled
from innerloop.lab.experiments.learned_optimizer import OptimizerTraining
from innerloop.lab.experiments.optimizer_record import optimizer_record
from innerloop.lab.experiments.protocols import PROTOCOLS, ProtocolName
from innerloop.lab.experiments.ranges import COUNT, SEEDS, check_ranges, refuse_out_of_range
from innerloop.lab.experiments.table import load_best_meta, read_experiment
from innerloop.lab.run_folder import RESULT, RunFolder, environment
from innerloop.logging.records import evaluation_record
from innerloop.problem import Episode
from innerloop.tasks import evaluation_episodes, evaluation_key
from innerloop.training._evaluate import (
    Evaluation,
    TaskResults,
    combined,
    evaluated_tasks,
    summarise,
)


def evaluate_run(
    path: Path,
    *,
    tasks: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    shots: int | None = None,
    families: tuple[str, ...] | None = None,
    shuffle_support_labels: bool = False,
    protocol: ProtocolName | None = None,
) -> dict[str, Any]:
    """Evaluate a finished run's best meta-parameters on its meta-test tasks, or by a protocol.

    Returns a record of what was found and what it was made from, and the `"file"` that holds it:
    evaluations of other seeds, steps, tasks or shots stay beside it. Of few-shot learning it has an
    entry like the `"test"` of `result.json`; of a learned optimizer, what `optimizer_record` gives,
    whose `tasks` are of each family.
    """
    folder = RunFolder.open(path)
    folder.require_writable()  # before minutes of work
    trained = read_experiment(folder)
    asked: dict[str, Any] = {"tasks": tasks, "steps": steps, "seed": seed}
    if isinstance(trained, OptimizerTraining):
        _refuse_few_shot(shots, shuffle_support_labels, protocol)
        for name, value in asked.items():
            if value is not None:
                refuse_out_of_range(name, value, SEEDS if name == "seed" else COUNT)
        meta = load_best_meta(folder, trained)
        name, record = optimizer_record(trained, meta, families=families, **asked)
    else:
        assert isinstance(trained, FewShot)
        _refuse_families(families)
        asked |= {"shots": shots, "protocol": protocol}
        name, record = _few_shot_record(
            folder, trained, shuffle_support_labels=shuffle_support_labels, **asked
        )
    record = {"run": str(path), **record, "environment": environment()}
    return record | {"file": str(folder.write_json(f"{name}.json", record))}


def _few_shot_record(
    folder: RunFolder,
    trained: FewShot,
    *,
    tasks: int | None,
    steps: int | None,
    seed: int | None,
    shots: int | None,
    shuffle_support_labels: bool,
    protocol: ProtocolName | None,
) -> tuple[str, dict[str, Any]]:
    """The name of the file, and what is in it."""
    overrides = {"test_tasks": tasks, "test_steps": steps, "seed": seed, "shots": shots}
    changed = {name: value for name, value in overrides.items() if value is not None}
    chunk = folder.read_json(RESULT).get("chunk") if folder.has(RESULT) else None
    experiment = dataclasses.replace(
        trained, memory=None, devices=None, chunk=chunk or trained.chunk, **changed
    )
    check_ranges(experiment, flags={"test_tasks": "tasks", "test_steps": "steps"})
    if protocol is None:
        parts = experiment.parts()
        episodes = test_episodes(experiment, parts)
        name = f"seed{experiment.seed}-steps{{}}-tasks{experiment.test_tasks}"
        name += "" if shots is None else f"-shots{shots}"
    else:
        _refuse_own_tasks(protocol, {"tasks": tasks, "seed": seed, "shots": shots})
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
    if protocol is not None:  # which are published as rates of error
        results = {name: _with_error(each) for name, each in results.items()}
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


def _refuse_few_shot(shots: int | None, shuffled: bool, protocol: str | None) -> None:
    """Raise `StructureError` for what asks for few-shot tasks."""
    if protocol is not None:
        given = f"--protocol {protocol}"
    elif shots is not None:
        given = f"--shots {shots}"
    elif shuffled:
        given = "--shuffle-support-labels"
    else:
        return
    raise StructureError(
        "a learned optimizer is evaluated against tuned ones, not on few-shot tasks",
        got=given,
        expected="a number of tasks, steps or a seed, or nothing",
        write=f"innerloop evaluate RUN, without {given.split()[0]}",
    )


def _refuse_families(families: tuple[str, ...] | None) -> None:
    if families is None:
        return
    raise StructureError(
        "families are of learned optimizers, not of few-shot tasks",
        got="--families " + " ".join(families),
        expected="a run of innerloop train learned-optimizer, or no families",
        write="innerloop evaluate RUN, without --families",
    )


def test_episodes(experiment: Experiment, parts: Parts) -> dict[str, Episode]:
    """The fixed test sets of the experiment's seed, by name."""
    return {
        name: evaluation_episodes(each.test, each.test_tasks, experiment.seed, "test")
        for name, each in parts.held_out.items()
    }


def test_evaluation(
    experiment: Experiment, parts: Parts, meta: PyTree, episodes: Mapping[str, Episode]
) -> dict[str, TaskResults]:
    """Every metric of every task after each inner step, by the name of the test set."""
    return {
        name: evaluated_tasks(
            each.learner,
            meta,
            episodes[name],
            evaluation_key(experiment.seed, "test adaptation"),
            steps=each.steps,
            chunk=experiment.chunk,
            calibration=parts.calibration,
            placement=placement(experiment.devices),
        )
        for name, each in parts.held_out.items()
    }


def pooled(results: Mapping[str, TaskResults]) -> TaskResults:
    """The tasks of all test sets one after the other, in the metrics that all sets have."""
    first, *_ = sets = list(results.values())
    shared = [name for name in first.metrics if all(name in each.metrics for each in sets)]
    picked = [
        TaskResults({name: each.metrics[name] for name in shared}, each.calibration)
        for each in sets
    ]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *picked)


def summary(results: Mapping[str, TaskResults]) -> Evaluation:
    """Means and intervals over all test tasks, and over those of each named set."""
    whole = summarise(pooled(results))
    sets = {name: summarise(each) for name, each in results.items()}
    named = combined(sets, {name: each.tasks for name, each in sets.items()})
    return whole._replace(mean=named.mean | whole.mean, interval=named.interval | whole.interval)


def _with_error(results: TaskResults) -> TaskResults:
    error = {"error": 1 - results.metrics["accuracy"]}
    return results._replace(metrics=error | results.metrics)


def _refuse_own_tasks(protocol: str, asked: dict[str, int | None]) -> None:
    given = [f"--{name} {value}" for name, value in asked.items() if value is not None]
    if not given:
        return
    raise StructureError(
        f"{protocol} has its own tasks, each once",
        got=" ".join(given),
        expected="no number of tasks, no seed and no shots",
        write=f"innerloop evaluate RUN --protocol {protocol}",
    )


def _require_outputs(path: Path, trained: FewShot, experiment: FewShot) -> None:
    """Raise `RunError` where the run's own network has another number of outputs."""
    theirs, ours = (
        jax.eval_shape(each.init_meta, jax.random.key(0)) for each in (trained, experiment)
    )
    shapes = [[leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (theirs, ours)]
    if shapes[0] == shapes[1]:
        return
    ways = experiment.ways  # pyright: ignore[reportAttributeAccessIssue]
    raise RunError(
        f"the protocol has tasks of {ways} classes, and the run's network has other outputs",
        got=f"{path}, trained with --recipe {trained.recipe} --ways {trained.ways}",  # pyright: ignore[reportAttributeAccessIssue]
        expected=f"a run with --ways {ways}, or of a recipe whose network has no outputs of its "
        "own, such as protonet",
        write=f"innerloop train omniglot --recipe {trained.recipe} --ways {ways} ...",
    )
