"""What can be known of an experiment before it is trained: findings, comparison, plan."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from innerloop.diagnostics import Comparison, Plan, Report, check, compare, plan
from innerloop.errors import RunError
from innerloop.lab.experiments.few_shot import FewShot
from innerloop.lab.experiments.ranges import COUNT, check_ranges, refuse_out_of_range
from innerloop.lab.experiments.table import experiment_name, read_experiment
from innerloop.lab.experiments.train import initial_meta
from innerloop.lab.run_folder import RunFolder


def check_experiment(experiment: FewShot, tasks: int, run: bool, trained: Path | None) -> Report:
    """The findings on `tasks` of its training tasks; `run=False` for those that only trace."""
    return check(*_on_tasks(experiment, tasks, trained), run=run)


def compare_experiment(experiment: FewShot, trained: Path | None) -> Comparison:
    """Every kind of meta-gradient on one batch of training tasks."""
    *problem, _ = _on_tasks(experiment, experiment.batch, trained)
    return compare(*problem, chunk=experiment.chunk)


def plan_experiment(experiment: FewShot) -> Plan:
    """The cheapest exact meta-gradient of a batch that fits its budget, 2 GiB unless given."""
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
    like, theirs = (jax.eval_shape(each.init_meta, key) for each in (experiment, other))
    if type(other) is not type(experiment) or not _same_shapes(like, theirs):
        mine, others = dataclasses.asdict(experiment), dataclasses.asdict(other)
        different = [name for name in mine if others.get(name) != mine[name] and name != "run"]
        flags = " ".join(f"--{name.replace('_', '-')} {others.get(name)}" for name in different)
        kind = experiment_name(other)
        raise RunError(
            "the run was trained with other settings than those given",
            got=f"{trained}, a run of {kind}, with {flags or 'the same settings'}",
            expected=f"a run of {experiment_name(experiment)} with meta-parameters of the "
            "same shapes",
            write=f"innerloop check {kind} {flags} --trained {trained}",
        )
    return folder.load_meta(like)


def _same_shapes(one: PyTree, two: PyTree) -> bool:
    shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (one, two)]
    return jax.tree.structure(one) == jax.tree.structure(two) and shapes[0] == shapes[1]
