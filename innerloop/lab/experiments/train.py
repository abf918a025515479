"""A run of an experiment: train, choose by validation, test once, draw. Its initial values."""

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from jaxtyping import PyTree

from innerloop.devices.processes import is_first
from innerloop.devices.sharding import placement
from innerloop.errors import RunError, StructureError
from innerloop.lab.experiments.base import Experiment, Parts
from innerloop.lab.experiments.curves import draw_curves, series
from innerloop.lab.experiments.evaluation import pooled, summary, test_episodes, test_evaluation
from innerloop.lab.experiments.few_shot import FewShot
from innerloop.lab.experiments.ranges import COUNT, check_ranges, refuse_out_of_range
from innerloop.lab.experiments.table import best_meta, experiment_name, read_experiment
from innerloop.lab.recording import held_folder, outcome_record, run_logger
from innerloop.lab.run_folder import RESULT, TEST_TASKS, RunFolder, as_flag
from innerloop.logging import Logger, TensorBoard, WeightsAndBiases
from innerloop.recipes._pretrained import started_from
from innerloop.recipes.base import InitMeta
from innerloop.tasks import evaluation_episodes
from innerloop.training import Checkpoints, Clip, Fit, NonFinite, Skip, Stop, Validation, fit

_MAY_CHANGE = (
    *("run", "resume", "minutes", "per_call", "save_every", "check", "test_tasks"),
    *("chunk", "memory", "tensorboard", "wandb", "devices", "non_finite"),
)
"""Settings that may change when a run is resumed: the numbers do not depend on them.

The number of steps may change too, if the outer rate does not fall along it.
"""

_FIT = ("steps", "devices", "resume", "averaging", "per_call", "minutes", "memory", "check")
"""Settings that `fit` takes as they are, if the experiment has them."""

_NON_FINITE: dict[str, NonFinite] = {"stop": Stop(), "skip": Skip(), "clip": Clip()}


def train(experiment: Experiment, run: Path) -> dict[str, Any]:
    """Meta-train, keep the best by validation, evaluate once on the test tasks, draw the figures.

    Args:
        experiment: The experiment.
        run: The run folder.

    Returns:
        The content of `result.json`.

    Raises:
        StructureError: If a number is out of range.
        RunError: If the run folder cannot be used.
        DataError: If the data cannot give the tasks. Nothing is left in the folder if one of the
            three is raised before the first outer step.
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
    may_change = (*_MAY_CHANGE, *(["steps"] if not experiment.cosine else []))
    known = tuple(name for name in may_change if name in config["config"])
    with held_folder(run, config, known if experiment.resume else None) as folder:
        if is_first():  # not before the settings and the data are known to give a run
            print(f"{config['experiment']}: run folder {run}", flush=True)
        with run_logger(folder, experiment.steps, parts.metric, chosen) as log:
            outcome = fit(
                parts.estimator,
                init_meta,
                optimizer=outer_optimizer(experiment),
                key=jax.random.key(experiment.seed),
                validation=validation,
                non_finite=_NON_FINITE[experiment.non_finite],
                checkpoints=Checkpoints(run / "checkpoints", experiment.save_every),
                report=log,
                **{name: value for name, value in vars(experiment).items() if name in _FIT},
            )
        return _tested(experiment, parts, config, folder, outcome, begin)


def _validation(experiment: Experiment, parts: Parts) -> dict[str, Validation]:
    """The validations that choose the best, by name. Each validation task has the same weight."""
    found = {}
    for name, each in parts.held_out.items():
        tasks, every = each.validation_tasks, experiment.validate_every
        episodes = evaluation_episodes(each.validation, tasks, experiment.seed, "validation")
        judged = (each.learner, parts.metric, parts.maximise, each.steps)
        found[name] = Validation(episodes, every, *judged, weight=tasks)
    return found


def outer_optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """Adam or AdamW at the experiment's rate, after clipping of the meta-gradient."""
    falling = optax.cosine_decay_schedule(experiment.outer_rate, experiment.steps)
    rate = falling if experiment.cosine else experiment.outer_rate
    adam = optax.adam(rate)
    if experiment.weight_decay > 0:
        adam = optax.adamw(rate, weight_decay=experiment.weight_decay, mask=_decays)
    if experiment.clip_norm is None:
        return adam
    return optax.chain(optax.clip_by_global_norm(experiment.clip_norm), adam)


def _decays(meta: PyTree) -> PyTree:
    """True for each leaf whose name does not begin with `log_`, as logarithms of rates do."""

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
    """The content of `result.json`. Also writes it and the figures."""
    log, seconds = series(folder.read_log(), parts.metric), time.perf_counter() - begin
    experiment = dataclasses.replace(experiment, chunk=outcome.estimator.tasks_at_once)
    results = test_evaluation(experiment, parts, outcome.meta, test_episodes(experiment, parts))
    test, per_task = summary(results), pooled(results)
    result = {
        **config,
        "normalisation": parts.normalisation,
        "trained_steps": parts.trained_steps,
        **outcome_record(outcome, experiment.init_meta, log, test, seconds),
    }
    if is_first():
        folder.save_meta(outcome.meta)  # Once more: a resumed run may have lost it.
        metrics = {name: np.asarray(x, "f4") for name, x in per_task.metrics.items()}
        folder.write_arrays(TEST_TASKS, metrics)
        folder.write_json(RESULT, result)
        with folder.writing():
            judged = (log, parts.metric, test, parts.trained_steps)
            draw_curves(folder.path, config["experiment"], *judged)
            meta = jax.device_put(jax.device_get(outcome.meta))
            experiment.write_learned(parts, meta, folder.path)
    return result


def _chosen_loggers(experiment: Experiment, run: Path) -> list[Logger]:
    """The loggers that the user asks for. Raises `RunError` if a package is missing."""
    chosen: list[Logger] = []
    if experiment.tensorboard and is_first():
        chosen.append(TensorBoard(run))
    if experiment.wandb is not None and is_first():
        mode = os.environ.get("WANDB_MODE", "offline")
        config = dataclasses.asdict(experiment)
        chosen.append(WeightsAndBiases(experiment.wandb, run, mode=mode, config=config))
    return chosen


def initial_meta(experiment: Experiment) -> InitMeta:
    """The initial meta-parameters: those of the run `--pretrained` if it is given.

    Args:
        experiment: The experiment.

    Returns:
        A function of a random key.

    Raises:
        RunError: If that run's meta-parameters have other shapes.
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
        ) from error


def on_tasks(experiment: FewShot, tasks: int, trained: Path | None) -> tuple[Any, ...]:
    """The arguments of `check` for a number of training tasks.

    Args:
        experiment: The experiment.
        tasks: The number of tasks.
        trained: The run whose meta-parameters are used; the initial ones by default.
    """
    check_ranges(dataclasses.replace(experiment, memory=None))
    refuse_out_of_range("tasks", tasks, COUNT)
    estimator = dataclasses.replace(experiment, batch=tasks).parts().estimator
    init_key, sample_key, key = jax.random.split(jax.random.key(experiment.seed), 3)
    meta = _trained_meta(experiment, init_key, trained)
    part, *_ = estimator.checked_parts(sample_key).values()
    learner = part.learner
    return learner.problem, learner.adaptation, meta, part.episodes, key, part.gradient


def _trained_meta(experiment: FewShot, key: Any, trained: Path | None) -> PyTree:
    if trained is None:
        return initial_meta(experiment)(key)
    folder = RunFolder.open(trained)
    other = read_experiment(folder)
    like = experiment.meta_shapes()
    if type(other) is not type(experiment) or not eqx.tree_equal(like, other.meta_shapes()):
        mine, theirs = dataclasses.asdict(experiment), dataclasses.asdict(other)
        different = [name for name in mine if theirs.get(name) != mine[name] and name != "run"]
        flags = " ".join(as_flag(name, theirs.get(name)) for name in different)
        kind = experiment_name(other)
        raise RunError(
            "the run was trained with other settings than those given",
            got=f"{trained}, a run of {kind}, with {flags or 'the same settings'}",
            expected=f"a run of {experiment_name(experiment)} with meta-parameters of the same "
            "shapes",
        )
    return folder.load_meta(like)
