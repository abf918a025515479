"""What can be known of an experiment before it is trained: findings, comparison, plan."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from innerloop.diagnostics import Comparison, Plan, Report, check, compare, plan
from innerloop.experiments.base import Experiment, Parts
from innerloop.training.run_folder import RunFolder


def check_experiment(experiment: Experiment, tasks: int, run: bool, trained: Path | None) -> Report:
    """The findings on `tasks` of its training tasks; `run=False` for those that only trace."""
    return check(*_on_tasks(experiment, tasks, trained), run=run)


def compare_experiment(experiment: Experiment, trained: Path | None) -> Comparison:
    """Every kind of meta-gradient on one batch of training tasks."""
    *problem, _ = _on_tasks(experiment, experiment.batch, trained)
    return compare(*problem, chunk=experiment.chunk)


def plan_experiment(experiment: Experiment, memory: str) -> Plan:
    """The cheapest exact meta-gradient of a batch that fits a budget."""
    problem, adaptation, meta, episodes, *_ = _on_tasks(experiment, experiment.batch, None)
    return plan(problem, adaptation, meta, episodes, memory)


def _on_tasks(experiment: Experiment, tasks: int, trained: Path | None) -> tuple[Any, ...]:
    parts = dataclasses.replace(experiment, batch=tasks).parts()
    problem, adaptation, gradient, _ = parts.recipe
    init_key, sample_key, key = jax.random.split(jax.random.key(experiment.seed), 3)
    meta = _meta(parts, init_key, trained)
    return problem, adaptation, meta, parts.train.sample(sample_key, tasks), key, gradient


def _meta(parts: Parts, key: Any, trained: Path | None) -> PyTree:
    if trained is None:
        return parts.recipe.init_meta(key)
    return RunFolder.open(trained).load_meta(jax.eval_shape(parts.recipe.init_meta, key))
