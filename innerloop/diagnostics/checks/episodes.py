"""Checks of a batch of episodes: its task axis, weights, differences between tasks, and targets."""

import math
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import PyTree

from innerloop.diagnostics.checks.loss_program import LossProgram
from innerloop.diagnostics.checks.subject import Subject
from innerloop.diagnostics.findings import Finding, Severity
from innerloop.labels import IGNORED
from innerloop.problem import Examples
from innerloop.trees import key_numbers


def task_axis(subject: Subject) -> Iterator[Finding]:
    """Sets whose first axis is not the task axis, such as a single episode given as a batch."""
    for name in ("support", "query"):
        batch = getattr(subject.episodes, name)
        leaves = jax.tree.leaves(batch)
        if isinstance(batch, Examples) and any(np.ndim(leaf) < 2 for leaf in leaves):
            yield Finding(
                Severity.WARNING,
                f"the {name} sets have no row axis, or no task axis",
                f"episodes.{name}: " + ", ".join(str(np.shape(leaf)) for leaf in leaves),
                "the first axis is taken for tasks, and a task would be a single number",
                "jax.tree.map(lambda leaf: leaf[None], episode) for a batch of one episode",
            )


def weights_not_negative(subject: Subject) -> Iterator[Finding]:
    """Weights below zero, and weights that are all zero."""
    weights = np.asarray(subject.weights, np.float64)
    cure = "weights of zero or more, such as weight=jnp.maximum(weight, 0)"
    if np.any(weights < 0):
        yield Finding(
            Severity.ERROR if weights.sum() <= 0 else Severity.WARNING,
            f"the weights of {np.count_nonzero(weights < 0)} of {subject.tasks} tasks are negative",
            f"episodes.weight, task {int(np.argmin(weights))}: {weights.min():.4g}",
            "the meta-objective divides by the sum of the weights, and rewards a large loss on a "
            "task of negative weight",
            cure,
        )
    elif not np.any(weights):
        yield Finding(
            Severity.ERROR,
            "no task counts",
            "episodes.weight",
            "all weights are zero, so the loss is NaN and the gradient zero",
            "weights above zero for the tasks that count",
        )


def no_labels(subject: Subject) -> Iterator[Finding]:
    """Sets in which no row has a label."""
    for name in ("support", "query"):
        batch = getattr(subject.episodes, name)
        targets = jax.tree.leaves(batch.targets) if isinstance(batch, Examples) else []
        whole = [np.asarray(leaf) for leaf in targets if np.asarray(leaf).dtype.kind == "i"]
        if any(leaf.size and np.all(leaf == IGNORED) for leaf in whole):
            yield Finding(
                Severity.WARNING,
                f"no row of the {name} sets has a label",
                f"episodes.{name}.targets",
                f"all targets are {IGNORED}, which marks a row without a label, so the loss and "
                "its gradient are zero",
                f"labels from 0 to classes - 1; {IGNORED} only in rows without a label",
            )


def same_tasks(subject: Subject) -> Iterator[Finding]:
    """Batches whose tasks are all the same, if no random key makes a difference either."""
    leaves = [np.asarray(key_numbers(leaf)) for leaf in jax.tree.leaves(_data(subject))]
    same = all(leaf.tobytes() == leaf[:1].repeat(len(leaf), 0).tobytes() for leaf in leaves)
    if subject.tasks == 1 or not same or subject.fidelity.draws:
        return
    objective, (episode, key) = subject.objective(subject.exact), subject.task()
    loss = lambda key: objective(subject.meta, episode, key)[0]
    if not LossProgram(loss, (key,), ("key",)).read:
        yield Finding(
            Severity.WARNING,
            f"all {subject.tasks} tasks are the same",
            "episodes",
            "support and query sets are equal in every task and no key is read, so each task has "
            "the same loss and the same gradient",
            "tasks.sample(key, n) that draws each task with a key of its own; a batch of one "
            "episode, if there is only one task",
        )


def targets_among_inputs(subject: Subject) -> Iterator[Finding]:
    """Numbers of the query inputs that are the targets, in every row of every task."""
    query = subject.episodes.query
    if not isinstance(query, Examples) or not one_number_per_row(query):
        return
    targets = np.asarray(query.targets).reshape(np.shape(query.targets)[:2])
    counted = np.ones(targets.shape, bool) if query.mask is None else np.asarray(query.mask, bool)
    targets = targets[counted]
    for path, leaf in jax.tree.leaves_with_path(query.inputs):
        if np.shape(leaf)[:2] != counted.shape:
            continue
        columns = np.asarray(leaf).reshape(*counted.shape, -1)[counted]
        if _copied(columns, targets):
            yield Finding(
                Severity.WARNING,
                "the query inputs contain the targets",
                f"episodes.query.inputs{jax.tree_util.keystr(path)}",
                "a part of the inputs equals the target, directly or one-hot, in every row of "
                "every task, so the outer loss rewards copying it",
                "inputs without their targets",
            )


def _data(subject: Subject) -> PyTree:
    return subject.episodes.support, subject.episodes.query


def one_number_per_row(batch: Examples) -> bool:
    """Whether a row has one target, as opposed to a sequence or an image of them."""
    leaves = jax.tree.leaves(batch.targets)
    return len(leaves) == 1 and np.ndim(leaves[0]) >= 2 and math.prod(np.shape(leaves[0])[2:]) == 1


def _copied(columns: np.ndarray, targets: np.ndarray) -> bool:
    """Whether one column equals the targets, or the columns contain the targets one-hot.

    False if the agreement may be chance, as with few rows and few different values.
    """
    values, counts = np.unique(targets, return_counts=True)
    chance = columns.shape[1] * float(np.sum((counts / len(targets)) ** 2)) ** len(targets)
    if len(values) < 2 or chance > 1e-4:
        return False
    marked = [targets, *(targets == value for value in values)]
    is_column = [bool(np.any(np.all(columns == each[:, None], axis=0))) for each in marked]
    return is_column[0] or (len(values) < len(targets) and all(is_column[1:]))
