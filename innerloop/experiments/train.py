"""Run an experiment from config to result: train, choose by validation, test once, draw."""

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from innerloop.diagnostics.planning.table import summary as plan_summary
from innerloop.errors import RunError, StructureError
from innerloop.experiments.base import (
    Experiment,
    Parts,
    require_steps,
    support_labels_shuffled,
)
from innerloop.experiments.cost import meta_gradient_record, training_cost
from innerloop.experiments.curves import draw_curves
from innerloop.experiments.digits import Digits
from innerloop.experiments.older_runs import ADDED, refuse_without_recipe, with_recipe
from innerloop.experiments.omniglot import Omniglot
from innerloop.experiments.photographs import CifarFS, MiniImageNet
from innerloop.experiments.progress import BestMeta, ProgressBar
from innerloop.experiments.ranges import check_ranges
from innerloop.experiments.sinusoid import Sinusoid
from innerloop.recipes import Recipe, pretrained
from innerloop.tasks import evaluation_episodes, evaluation_key
from innerloop.training import (
    Checkpoints,
    Clip,
    JsonLines,
    Logger,
    Loggers,
    NonFinite,
    Skip,
    Stop,
    TensorBoard,
    Validation,
    WeightsAndBiases,
    fit,
)
from innerloop.training.evaluate import evaluate_tasks, summarise
from innerloop.training.logging.records import evaluation_record
from innerloop.training.processes import is_first, together
from innerloop.training.run_folder import (
    CHECKPOINTS,
    CONFIG,
    LOG,
    RESULT,
    TEST_TASKS,
    RunFolder,
    environment,
)
from innerloop.training.sharding import placement

EXPERIMENTS: dict[str, type[Experiment]] = {
    "sinusoid": Sinusoid,
    "digits": Digits,
    "omniglot": Omniglot,
    "mini-imagenet": MiniImageNet,
    "cifar-fs": CifarFS,
}


_MAY_CHANGE = (
    *("run", "resume", "minutes", "per_call", "save_every", "check", "test_tasks"),
    *("chunk", "memory", "tensorboard", "wandb", "devices", "non_finite"),
)
"""Settings that a run may go on with others of: the numbers do not depend on them.

The number of steps is one where the outer rate does not fall along it.
"""

_NON_FINITE: dict[str, NonFinite] = {"stop": Stop(), "skip": Skip(), "clip": Clip()}


def train(experiment: Experiment, run: Path) -> dict[str, Any]:
    """Meta-train, keep the best by validation, evaluate once on the test tasks, draw the figures.

    Returns the content of `result.json`. Raises `StructureError` for numbers out of range,
    `RunError` for an unusable run folder and `DataError` for data that cannot give the tasks, all
    of them before anything is written.
    """
    begin = time.perf_counter()
    check_ranges(experiment)
    placement(experiment.devices)
    parts = experiment.parts()
    recipe = initial_recipe(experiment, parts.recipe)
    validation = evaluation_episodes(
        parts.validation, experiment.validation_tasks, experiment.seed, "validation"
    )
    config = {
        "experiment": _name(experiment),
        "config": dataclasses.asdict(experiment),
        "metric": parts.metric,
    }
    chosen = _chosen_loggers(experiment, run)
    with together():
        folder = _folder(experiment, run, config)
    rate = optax.cosine_decay_schedule(experiment.outer_rate, experiment.steps)
    optimizer = optax.adam(rate if experiment.cosine else experiment.outer_rate)
    loggers = (
        JsonLines(folder.path / LOG),
        BestMeta(folder),
        ProgressBar(experiment.steps, parts.metric),
        *chosen,
    )
    with Loggers(*(loggers if is_first() else ())) as log:
        outcome = fit(
            recipe,
            parts.train,
            optimizer=optimizer,
            steps=experiment.steps,
            batch=experiment.batch,
            key=jax.random.key(experiment.seed),
            validation=Validation(
                validation,
                experiment.validate_every,
                parts.metric,
                parts.maximise,
                experiment.steps_at_test(recipe),
            ),
            chunk=experiment.chunk,
            memory=experiment.memory,
            check=experiment.check,
            non_finite=_NON_FINITE[experiment.non_finite],
            devices=experiment.devices,
            checkpoints=Checkpoints(folder.path / CHECKPOINTS, experiment.save_every),
            resume=experiment.resume,
            averaging=experiment.averaging,
            per_call=experiment.per_call,
            minutes=experiment.minutes,
            report=log,
        )
    seconds = time.perf_counter() - begin
    for record in folder.read_log()[-1:]:  # which counts what the run took before it went on
        seconds = max(seconds, record["seconds"])
    experiment = dataclasses.replace(experiment, chunk=outcome.chunk)
    per_task = test_evaluation(experiment, parts, outcome.meta)
    test = summarise(per_task)
    result = {
        **config,
        "environment": environment(),
        "normalisation": parts.normalisation,
        "outer_steps": outcome.step,
        "best_step": outcome.best_step,
        "faults": outcome.faults,
        "seconds": seconds,
        "chunk": outcome.chunk,
        "plan": None if outcome.plan is None else plan_summary(outcome.plan),
        "cost": training_cost(folder.read_log())
        | meta_gradient_record(parts, outcome, experiment.batch),
        "test": evaluation_record(test),
    }
    if is_first():
        folder.save_meta(outcome.meta)  # once more: a run that goes on may have lost it
        folder.write_arrays(TEST_TASKS, {name: np.asarray(x, "f4") for name, x in per_task.items()})
        folder.write_json(RESULT, result)
        with folder.writing():
            trained_steps = recipe.adaptation.steps or 0  # pyright: ignore[reportAttributeAccessIssue]
            draw_curves(folder, parts.metric, test, _name(experiment), trained_steps)
            experiment.figures(parts, jax.device_put(jax.device_get(outcome.meta)), folder.path)
    return result


def evaluate_run(
    path: Path,
    *,
    tasks: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    shuffle_support_labels: bool = False,
) -> dict[str, Any]:
    """Evaluate a finished run's best meta-parameters on its meta-test tasks.

    Returns a record like the `"test"` entry of `result.json`, with what it was made from, and the
    `"file"` that holds it: evaluations of other seeds, steps or tasks stay beside it.
    """
    folder = RunFolder.open(path)
    folder.require_writable()  # before minutes of work
    overrides = {"test_tasks": tasks, "test_steps": steps, "seed": seed}
    changed = {name: value for name, value in overrides.items() if value is not None}
    chunk = folder.read_json(RESULT).get("chunk") if folder.has(RESULT) else None
    experiment = read_experiment(folder)
    experiment = dataclasses.replace(
        experiment, memory=None, devices=None, chunk=chunk or experiment.chunk, **changed
    )
    check_ranges(experiment)
    parts = experiment.parts()
    if steps is not None:
        require_steps(experiment.recipe, parts.recipe)
    meta = _best_meta(folder, parts.recipe)
    test = summarise(test_evaluation(experiment, parts, meta, shuffle_support_labels))
    record = {
        "run": str(path),
        "shuffled_support_labels": shuffle_support_labels,
        "seed": experiment.seed,
        "normalisation": parts.normalisation,
        "environment": environment(),
        "test": evaluation_record(test),
    }
    name = f"evaluation-seed{experiment.seed}-steps{len(test.mean['loss']) - 1}"
    name += f"-tasks{experiment.test_tasks}" + "-shuffled" * shuffle_support_labels
    return record | {"file": str(folder.write_json(f"{name}.json", record))}


def test_evaluation(
    experiment: Experiment, parts: Parts, meta: Any, shuffle_support_labels: bool = False
) -> dict[str, jax.Array]:
    """Every metric of every task in the fixed test set of the experiment's seed.

    Each `(test_tasks, test_steps + 1)`: after 0 ... `test_steps` inner steps.
    """
    episodes = evaluation_episodes(parts.test, experiment.test_tasks, experiment.seed, "test")
    if shuffle_support_labels:
        episodes = support_labels_shuffled(episodes, evaluation_key(experiment.seed, "shuffling"))
    return evaluate_tasks(
        *parts.recipe.at_test,
        meta,
        episodes,
        evaluation_key(experiment.seed, "test adaptation"),
        steps=experiment.steps_at_test(parts.recipe),
        chunk=experiment.chunk,
        devices=experiment.devices,
    )


def _folder(experiment: Experiment, run: Path, config: dict[str, Any]) -> RunFolder:
    """The run's folder, begun or gone on with; of several processes the first writes to it."""
    if not is_first():
        return RunFolder(run)
    if not experiment.resume:
        return RunFolder.create(run, config)
    refuse_without_recipe(RunFolder(run))
    may_change = (*_MAY_CHANGE, *(["steps"] if not experiment.cosine else []))
    return RunFolder.resume(run, config, may_change=may_change, added=ADDED)


def _chosen_loggers(experiment: Experiment, run: Path) -> list[Logger]:
    """Those that the user asks for. Raises `RunError` where one lacks its package."""
    chosen: list[Logger] = []
    if not is_first():
        return chosen
    if experiment.tensorboard:
        chosen.append(TensorBoard(run))
    if experiment.wandb is not None:
        mode = os.environ.get("WANDB_MODE", "offline")
        config = dataclasses.asdict(experiment)
        chosen.append(WeightsAndBiases(experiment.wandb, run, mode=mode, config=config))
    return chosen


def best_meta(run: str | os.PathLike[str]) -> PyTree:
    """The best meta-parameters, by validation, of a run folder that `innerloop train` wrote.

    Of a run that goes on, those so far. No data are read. Raises `RunError` where the folder holds
    no run, or a damaged one.
    """
    folder = RunFolder.open(Path(run))
    return _best_meta(folder, read_experiment(folder).build_recipe())


def _best_meta(folder: RunFolder, recipe: Recipe) -> PyTree:
    return folder.load_meta(jax.eval_shape(recipe.init_meta, jax.random.key(0)))


def initial_recipe(experiment: Experiment, recipe: Recipe) -> Recipe:
    """The recipe, to start from the run `--pretrained` where there is one.

    Raises `RunError` where that run's meta-parameters have other shapes.
    """
    if experiment.pretrained is None:
        return recipe
    try:
        return pretrained(recipe, best_meta(experiment.pretrained))
    except StructureError as error:
        raise RunError(
            "the meta-parameters of that run do not fit this experiment",
            got=f"--pretrained {experiment.pretrained}: {error.got}",
            expected=error.expected,
            write="--pretrained with a run of the same network",
        ) from error


def _name(experiment: Experiment) -> str:
    return next(name for name, kind in EXPERIMENTS.items() if type(experiment) is kind)


def read_experiment(folder: RunFolder) -> Experiment:
    """The experiment of a run. Raises `RunError` for a config that is none."""
    content = folder.read_config()
    try:
        kind = EXPERIMENTS[content["experiment"]]
        config = with_recipe(content["config"])
        paths: dict[str, Any] = {
            name: Path(config[name]) for name in ("run", "data", "pretrained") if config.get(name)
        }
        return kind(**(config | paths))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise folder.damaged(CONFIG, error) from error
