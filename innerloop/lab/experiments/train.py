"""Run an experiment from config to result: train, choose by validation, test once, draw."""

import dataclasses
import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.devices.processes import is_first, together
from innerloop.devices.sharding import placement
from innerloop.diagnostics.planning.table import summary as plan_summary
from innerloop.errors import RunError, StructureError
from innerloop.lab.experiments.base import Experiment, Parts
from innerloop.lab.experiments.cost import outer_step_record, training_cost
from innerloop.lab.experiments.curves import draw_curves
from innerloop.lab.experiments.evaluation import (
    pooled,
    summary,
    test_episodes,
    test_evaluation,
)
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
from innerloop.recipes._pretrained import started_from
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

InitMeta = Callable[[PRNGKeyArray], PyTree]

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
    init_meta = initial_meta(experiment)
    validation = _validation(experiment, parts)
    config = {
        "experiment": experiment_name(experiment),
        "config": dataclasses.asdict(experiment),
        "metric": parts.metric,
    }
    chosen = _chosen_loggers(experiment, run)
    with together():
        folder = _folder(experiment, run, config)
    with closing(folder):
        outcome = _meta_trained(experiment, parts, init_meta, validation, folder, chosen)
        return _tested(experiment, parts, config, folder, outcome, begin)


def _meta_trained(
    experiment: Experiment,
    parts: Parts,
    init_meta: InitMeta,
    validation: dict[str, Validation],
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
            parts.estimator,
            init_meta,
            optimizer=outer_optimizer(experiment),
            steps=experiment.steps,
            key=jax.random.key(experiment.seed),
            validation=validation,
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


def _validation(experiment: Experiment, parts: Parts) -> dict[str, Validation]:
    """The validations that choose the best, by name: each validation task counts alike."""
    return {
        name: Validation(
            evaluation_episodes(
                each.validation, each.validation_tasks, experiment.seed, "validation"
            ),
            experiment.validate_every,
            each.learner,
            parts.metric,
            parts.maximise,
            each.steps,
            weight=each.validation_tasks,
        )
        for name, each in parts.held_out.items()
    }


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
    experiment = dataclasses.replace(experiment, chunk=outcome.estimator.tasks_at_once)
    results = test_evaluation(experiment, parts, outcome.meta, test_episodes(experiment, parts))
    test, per_task = summary(results), pooled(results)
    result = {
        **config,
        "environment": environment(),
        "normalisation": parts.normalisation,
        "trained_steps": parts.trained_steps,
        "outer_steps": outcome.step,
        "best_step": outcome.best_step,
        "faults": outcome.faults,
        "seconds": seconds,
        "chunk": experiment.chunk,
        "plan": None if outcome.plan is None else plan_summary(outcome.plan),
        "cost": training_cost(folder.read_log())
        | outer_step_record(outcome.estimator, experiment.init_meta),
        "test": evaluation_record(test),
    }
    if is_first():
        folder.save_meta(outcome.meta)  # once more: a run that goes on may have lost it
        metrics = {name: np.asarray(x, "f4") for name, x in per_task.metrics.items()}
        folder.write_arrays(TEST_TASKS, metrics)
        folder.write_json(RESULT, result)
        with folder.writing():
            name = experiment_name(experiment)
            draw_curves(folder, parts.metric, test, name, parts.trained_steps)
            meta = jax.device_put(jax.device_get(outcome.meta))
            experiment.write_learned(parts, meta, folder.path)
    return result


def _folder(experiment: Experiment, run: Path, config: dict[str, Any]) -> RunFolder:
    """The run's folder, begun or gone on with; of several processes the first writes to it."""
    if not is_first():
        return RunFolder(run)
    if not experiment.resume:
        return RunFolder.create(run, config)
    may_change = (*_MAY_CHANGE, *(["steps"] if not experiment.cosine else []))
    may_change = tuple(name for name in may_change if name in config["config"])
    return RunFolder.resume(run, config, may_change=may_change)


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


def initial_meta(experiment: Experiment) -> InitMeta:
    """The initial meta-parameters: those of the run `--pretrained` if there is one.

    Raises `RunError` if that run's meta-parameters have other shapes.
    """
    if experiment.pretrained is None:
        return experiment.init_meta
    try:
        return started_from(experiment.init_meta, best_meta(experiment.pretrained))
    except StructureError as error:
        raise RunError(
            "the meta-parameters of that run do not fit this experiment",
            got=f"--pretrained {experiment.pretrained}: {error.got}",
            expected=error.expected,
            write="--pretrained with a run of the same network",
        ) from error
