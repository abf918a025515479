"""Checks, comparison and plan of an experiment before it is trained."""

import dataclasses
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from innerloop.diagnostics import Comparison, Plan, Report, check, compare, plan
from innerloop.errors import RunError
from innerloop.lab.experiments.few_shot import FewShot
from innerloop.lab.experiments.ranges import COUNT, check_ranges, refuse_out_of_range
from innerloop.lab.experiments.table import experiment_name, read_experiment
from innerloop.lab.experiments.train import initial_meta
from innerloop.lab.run_folder import RunFolder, as_flag


def check_experiment(experiment: FewShot, tasks: int, run: bool, trained: Path | None) -> Report:
    """The findings on `tasks` training tasks; `run=False` for those that only trace."""
    return check(*_on_tasks(experiment, tasks, trained), run=run)


def compare_experiment(experiment: FewShot, trained: Path | None) -> Comparison:
    """Every kind of meta-gradient on one batch of training tasks."""
    *problem, _ = _on_tasks(experiment, experiment.batch, trained)
    return compare(*problem, chunk=experiment.chunk)


def plan_experiment(experiment: FewShot) -> Plan:
    """An exact meta-gradient of a batch within its budget, which is 2 GiB by default."""
    memory = experiment.memory or "2GiB"
    problem, adaptation, meta, episodes, *_ = _on_tasks(experiment, experiment.batch, None)
    return plan(problem, adaptation, meta, episodes, memory, chunk=experiment.chunk)


def _on_tasks(experiment: FewShot, tasks: int, trained: Path | None) -> tuple[Any, ...]:
    check_ranges(dataclasses.replace(experiment, memory=None))
    refuse_out_of_range("tasks", tasks, COUNT)
    estimator = dataclasses.replace(experiment, batch=tasks).parts().estimator
    init_key, sample_key, key = jax.random.split(jax.random.key(experiment.seed), 3)
    meta = _meta(experiment, init_key, trained)
    (learner, gradient, episodes), *_ = estimator.checked_parts(sample_key).values()
    return learner.problem, learner.adaptation, meta, episodes, key, gradient


def _meta(experiment: FewShot, key: Any, trained: Path | None) -> PyTree:
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
            write=f"innerloop check {kind} {flags} --trained {trained}",
        )
    return folder.load_meta(like)
