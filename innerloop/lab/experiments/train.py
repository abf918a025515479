"""Run an experiment from config to result: train, choose by validation, test once, draw."""

import dataclasses
import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from innerloop.devices.processes import is_first, together
from innerloop.devices.sharding import placement
from innerloop.errors import RunError, StructureError
from innerloop.lab.experiments.base import Experiment, Parts
from innerloop.lab.experiments.cost import meta_gradient_record, training_cost
from innerloop.lab.experiments.curves import draw_curves
from innerloop.lab.experiments.evaluation import test_episodes, test_evaluation
from innerloop.lab.experiments.older_runs import compared_today, refuse_without_recipe
from innerloop.lab.experiments.progress import BestMeta, ProgressBar
from innerloop.lab.experiments.ranges import check_ranges
from innerloop.lab.experiments.table import best_meta, experiment_name
from innerloop.lab.run_folder import (
    CHECKPOINTS,
    LOG,
    RESULT,
    TEST_TASKS,
    RunFolder,
    environment,
)
from innerloop.logging import JsonLines, Logger, Loggers, TensorBoard, WeightsAndBiases
from innerloop.logging.records import evaluation_record
from innerloop.problem import Episode
from innerloop.recipes import Recipe, pretrained
from innerloop.tasks import evaluation_episodes
from innerloop.training import (
    Checkpoints,
    Clip,
    Fit,
    NonFinite,
    Skip,
    Stop,
    Validation,
    fit,
)
from innerloop.training._evaluate import summarise

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
        "experiment": experiment_name(experiment),
        "config": dataclasses.asdict(experiment),
        "metric": parts.metric,
    }
    chosen = _chosen_loggers(experiment, run)
    with together():
        folder = _folder(experiment, run, config)
    with closing(folder):
        outcome = _meta_trained(experiment, parts, recipe, validation, folder, chosen)
        return _tested(experiment, parts, config, folder, outcome, begin)


def _meta_trained(
    experiment: Experiment,
    parts: Parts,
    recipe: Recipe,
    validation: Episode | tuple[Episode, ...],
    folder: RunFolder,
    chosen: list[Logger],
) -> Fit:
    loggers = (
        JsonLines(folder.path / LOG),
        BestMeta(folder),
        ProgressBar(experiment.steps, parts.metric),
        *chosen,
    )
    with Loggers(*(loggers if is_first() else ())) as log:
        return fit(
            recipe,
            parts.train,
            optimizer=outer_optimizer(experiment),
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
            non_finite=_NON_FINITE[experiment.non_finite],
            devices=experiment.devices,
            checkpoints=Checkpoints(folder.path / CHECKPOINTS, experiment.save_every),
            resume=experiment.resume,
            averaging=experiment.averaging,
            per_call=experiment.per_call,
            minutes=experiment.minutes,
            report=log,
            **experiment.fit_options(),
        )


def outer_optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """Adam or AdamW at the experiment's rate, on meta-gradients of no more than its norm."""
    falling = optax.cosine_decay_schedule(experiment.outer_rate, experiment.steps)
    rate = falling if experiment.cosine else experiment.outer_rate
    adam = optax.adam(rate)
    if experiment.weight_decay > 0:
        adam = optax.adamw(rate, weight_decay=experiment.weight_decay, mask=_decays)
    if experiment.clip_norm is None:
        return adam
    return optax.chain(optax.clip_by_global_norm(experiment.clip_norm), adam)


def _decays(meta: PyTree) -> PyTree:
    """True for each leaf but logarithms, as of rates and scales, by the name they have here."""

    def decays(path: tuple, leaf: Any) -> bool:
        return not any(str(getattr(part, "key", "")).startswith("log_") for part in path)

    return jax.tree_util.tree_map_with_path(decays, meta)


def _tested(
    experiment: Experiment,
    parts: Parts,
    config: dict[str, Any],
    folder: RunFolder,
    outcome: Fit,
    begin: float,
) -> dict[str, Any]:
    """The content of `result.json`, which is written, as the figures are."""
    seconds = time.perf_counter() - begin
    for record in folder.read_log()[-1:]:  # which counts what the run took before it went on
        seconds = max(seconds, record["seconds"])
    experiment = dataclasses.replace(experiment, chunk=outcome.chunk)
    per_task = test_evaluation(experiment, parts, outcome.meta, test_episodes(experiment, parts))
    test, trained_steps = summarise(per_task), _trained_steps(parts.recipe)
    result = {
        **config,
        "environment": environment(),
        "normalisation": parts.normalisation,
        "trained_steps": trained_steps,
        "outer_steps": outcome.step,
        "best_step": outcome.best_step,
        "faults": outcome.faults,
        "seconds": seconds,
        "chunk": outcome.chunk,
        "plan": None if outcome.plan is None else outcome.plan.summary(),
        "cost": training_cost(folder.read_log())
        | meta_gradient_record(parts, outcome, experiment.batch),
        "test": evaluation_record(test),
    }
    if is_first():
        folder.save_meta(outcome.meta)  # once more: a run that goes on may have lost it
        metrics = {name: np.asarray(x, "f4") for name, x in per_task.metrics.items()}
        folder.write_arrays(TEST_TASKS, metrics)
        folder.write_json(RESULT, result)
        with folder.writing():
            draw_curves(folder, parts.metric, test, experiment_name(experiment), trained_steps)
            meta = jax.device_put(jax.device_get(outcome.meta))
            experiment.write_learned(parts, meta, folder.path)
    return result


def _trained_steps(recipe: Recipe) -> int:
    """The most inner steps that a task is trained with; 0 where there are none to count."""
    kinds = recipe.adaptation if isinstance(recipe.adaptation, tuple) else (recipe.adaptation,)
    return max(adaptation.steps or 0 for adaptation in kinds)


def _folder(experiment: Experiment, run: Path, config: dict[str, Any]) -> RunFolder:
    """The run's folder, begun or gone on with; of several processes the first writes to it."""
    if not is_first():
        return RunFolder(run)
    if not experiment.resume:
        return RunFolder.create(run, config)
    refuse_without_recipe(RunFolder(run))
    may_change = (*_MAY_CHANGE, *(["steps"] if not experiment.cosine else []))
    may_change = tuple(name for name in may_change if name in config["config"])
    return RunFolder.resume(run, config, may_change=may_change, today=compared_today)


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
