"""Checks of the episodes: shared rows of support and query sets, and missing task axes."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jaxtyping import PyTree

from innerloop.diagnostics.checks.subject import Subject
from innerloop.diagnostics.findings import Finding, Severity
from innerloop.problem import Examples
from innerloop.trees import is_key, key_numbers


def overlap(subject: Subject) -> Iterator[Finding]:
    """Rows of a task's query set that are also in its support set, ignoring masks and labels.

    Shared rows count as chance if rows repeat as often within a set, as with few categorical
    inputs.
    """
    support, query = _rows(subject.episodes.support), _rows(subject.episodes.query)
    if support is None or query is None:
        return
    pairs = list(zip(support, query, strict=True))
    shared = [len(set(a) & set(b)) for a, b in pairs]
    sets = [*support, *query]
    within = _rate((_repeats(rows), math.comb(len(rows), 2)) for rows in sets)
    across = _rate((sum(row in set(a) for row in b), len(a) * len(b)) for a, b in pairs)
    if across > 3 * within:
        yield Finding(
            Severity.WARNING,
            f"support and query sets share rows in {np.count_nonzero(shared)} of "
            f"{len(shared)} tasks",
            f"task {int(np.argmax(shared))}: {max(shared)} rows",
            "the outer loss is computed on rows of the inner loop, so it rewards memorisation",
            "disjoint rows, as tasks.sample draws them",
        )


def same_tasks(subject: Subject) -> Iterator[Finding]:
    """Tasks that are all the same, support and query sets alike."""
    leaves = jax.tree.leaves((subject.episodes.support, subject.episodes.query))
    rows = [np.asarray(key_numbers(leaf)) for leaf in leaves]
    if subject.tasks > 1 and all((leaf == leaf[:1]).all() for leaf in rows):
        yield Finding(
            Severity.WARNING,
            f"all {subject.tasks} tasks are the same",
            "episodes",
            "they are copies of one task, or drawn without reading the key",
            "tasks.sample(key, n) that draws each task with a key of its own; a batch of one "
            "episode, if there is only one task",
        )


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


def _rate(counts: Iterable[tuple[int, int]]) -> float:
    found, possible = map(sum, zip(*counts, strict=True))
    return found / possible if possible else 0.0


def _repeats(rows: list[bytes]) -> int:
    return sum(math.comb(n, 2) for n in Counter(rows).values())


def _rows(batch: PyTree) -> list[list[bytes]] | None:
    """Each task's rows as bytes; None if the leaves have no common row axis.

    For a set that is not `Examples`, only the leaf with the most numbers per row is used.
    """
    mask = batch.mask if isinstance(batch, Examples) else None
    content = batch.inputs if isinstance(batch, Examples) else batch
    leaves = [leaf for leaf in jax.tree.leaves(content) if not is_key(leaf)]
    if not leaves or any(np.ndim(leaf) < 2 for leaf in leaves):
        return None
    if len({np.shape(leaf)[:2] for leaf in leaves}) != 1:
        return None
    if not isinstance(batch, Examples):
        leaves = [max(leaves, key=np.size)]
    tasks, rows = np.shape(leaves[0])[:2]
    counted = np.ones((tasks, rows), bool) if mask is None else np.asarray(mask, bool)
    flat = [np.ascontiguousarray(np.asarray(leaf).reshape(tasks, rows, -1)) for leaf in leaves]
    return [
        [b"".join(leaf[t, r].tobytes() for leaf in flat) for r in range(rows) if counted[t, r]]
        for t in range(tasks)
    ]
