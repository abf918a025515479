"""Checks of rows that occur twice: in both sets of a task, in one set, or under two labels."""

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from itertools import chain, combinations
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree

from innerloop.diagnostics.checks.episodes import one_number_per_row
from innerloop.diagnostics.checks.subject import Subject
from innerloop.diagnostics.findings import Finding, Severity
from innerloop.problem import Examples
from innerloop.trees import is_key

_MOST_PAIRS = 100
"""The largest number of pairs of sets from which the chance of equal rows is estimated."""


class _Set(NamedTuple):
    """The valid rows of one set of one task.

    Attributes:
        inputs: The inputs of each row as bytes.
        targets: The targets of each row as bytes; all equal if the set has no targets.
        classes: Whether the targets are classes.
        numbers: `(rows, numbers per row)`, the inputs as unsigned integers with the same bits.
        whole: `(numbers per row,)`, whether all values of this input are integers.
    """

    inputs: list[bytes]
    targets: list[bytes]
    classes: bool
    numbers: np.ndarray
    whole: np.ndarray

    @property
    def rows(self) -> list[tuple[bytes, bytes]]:
        """Inputs and targets."""
        return list(zip(self.inputs, self.targets, strict=True))


def overlap(subject: Subject) -> Iterator[Finding]:
    """Rows of a task's query set that are also in its support set, whatever their labels.

    Shared rows count as chance if rows repeat equally often within a set, as they do with a few
    categorical inputs.
    """
    support, query = _sets(subject.episodes.support), _sets(subject.episodes.query)
    if support is None or query is None:
        return
    pairs = list(zip(support, query, strict=True))
    shared = [len(set(a.inputs) & set(b.inputs)) for a, b in pairs]
    count = sum(row in set(a.inputs) for a, b in pairs for row in b.inputs)
    possible = sum(len(a.inputs) * len(b.inputs) for a, b in pairs)
    if not _beyond_chance(count, possible, [(each, each) for each in [*support, *query]]):
        return
    place = f"task {int(np.argmax(shared))}: {max(shared)} rows"
    if all(_is_grid(*pair) for pair in pairs):
        yield Finding(
            Severity.NOTE,
            "support and query sets have the same inputs, with other targets",
            place,
            "the outer loss rewards predictions at these inputs only, and not between them",
            "inputs drawn for each set, if the task is to be learned everywhere",
        )
        return
    yield Finding(
        Severity.WARNING,
        f"support and query sets share rows in {np.count_nonzero(shared)} of {len(shared)} tasks",
        place,
        "the outer loss is computed on rows of the inner loop, so it rewards memorisation",
        "disjoint rows, as tasks.sample draws them",
    )


def repeats(subject: Subject) -> Iterator[Finding]:
    """Rows that a set has twice, and inputs that have two labels in one task.

    Repeats are not reported if the inputs have so few different values that chance explains them,
    or if a row has many targets, as a window of a text does.
    """
    given = {name: getattr(subject.episodes, name) for name in ("support", "query")}
    several = lambda batch: isinstance(batch, Examples) and not one_number_per_row(batch)
    sets = {name: None if several(batch) else _sets(batch) for name, batch in given.items()}
    of_all = list(chain(*(found for found in sets.values() if found is not None)))
    for name, tasks in sets.items():
        if tasks is None:
            continue
        twice = [_repeats(each.rows) for each in tasks]
        distinct = all(2 * len(set(each.rows)) >= len(each.rows) for each in tasks)
        if any(twice) and distinct and _is_beyond_chance(twice, tasks, of_all):
            worst = int(np.argmax(twice))
            yield Finding(
                Severity.WARNING,
                f"the {name} sets have rows twice in {np.count_nonzero(twice)} of {len(twice)} "
                "tasks",
                f"episodes.{name}, task {worst}: rows {_first_pair(tasks[worst].rows)}",
                "such a row counts twice, and a set has fewer different rows than it seems",
                "rows drawn without replacement, as by jax.random.choice(key, rows, (n,), "
                "replace=False)",
            )
    yield from _labels(sets["support"], sets["query"])


def _labels(support: list[_Set] | None, query: list[_Set] | None) -> Iterator[Finding]:
    if support is None or query is None or not (support[0].classes and query[0].classes):
        return
    if support[0].whole.shape != query[0].whole.shape:
        return
    tasks = [_joined(*pair) for pair in zip(support, query, strict=True)]
    two = [_repeats(each.inputs) - _repeats(each.rows) for each in tasks]
    if any(two) and _is_beyond_chance(two, tasks, [*support, *query]):
        worst = int(np.argmax(two))
        yield Finding(
            Severity.WARNING,
            f"one input has two labels in {np.count_nonzero(two)} of {len(tasks)} tasks",
            f"task {worst}: {two[worst]} pairs of rows",
            "no function of the inputs gives both labels, so the loss cannot reach its minimum",
            "one label for each input; numpy.unique(inputs, axis=0) finds the copies",
        )


def _is_beyond_chance(pairs: list[int], tasks: list[_Set], of_all: list[_Set]) -> bool:
    """Whether equal rows within sets are beyond chance, which pairs of different sets estimate."""
    alike = [each for each in of_all if each.whole.shape == tasks[0].whole.shape]
    once = [_chosen(each, np.unique(each.numbers, axis=0, return_index=True)[1]) for each in alike]
    possible = sum(math.comb(len(each.inputs), 2) for each in tasks)
    return _beyond_chance(sum(pairs), possible, list(combinations(once, 2)))


def _is_grid(support: _Set, query: _Set) -> bool:
    """Whether all query inputs are in the support set, and none of them with the same target."""
    same = set(query.inputs) <= set(support.inputs)
    return same and not support.classes and not set(query.rows) & set(support.rows)


def _beyond_chance(count: int, possible: int, apart: list[tuple[_Set, _Set]]) -> bool:
    """Whether there are more pairs of equal inputs than a small number of values would explain.

    Args:
        count: The number of pairs of rows that are equal.
        possible: The number of all pairs.
        apart: Pairs of sets between which rows are equal only by chance. A pair of a set with
            itself stands for the pairs of different rows of this set.
    """
    if not count or not apart:
        return False
    apart = apart[:_MOST_PAIRS]
    pairs, by_row, by_number = 0, 0, np.zeros(apart[0][0].whole.shape, int)
    for a, b in apart:  # One after the other, because all of them may not fit into memory.
        equal = (a.numbers[:, None] == b.numbers)[_different(a, b)]
        pairs += len(equal)
        by_row += int(np.sum(np.all(equal, -1)))
        by_number += np.sum(equal, axis=0)
    # Integers may be equal by chance even if none of these pairs is equal: if no pair among n is
    # equal, the chance is below 3 / n with 95% confidence.
    whole = np.all([each.whole for pair in apart for each in pair], axis=0)
    chance = max(by_row / max(pairs, 1), float(np.prod((by_number + 3 * whole) / (pairs + 3))))
    expected = chance * possible
    return count > 3 * expected + 3 * (expected > 0.05)


def _different(a: _Set, b: _Set) -> np.ndarray:
    """The pairs of rows of two sets, each pair once if they are the same set."""
    every = np.ones((len(a.inputs), len(b.inputs)), bool)
    return np.triu(every, 1) if a is b else every


def _chosen(rows: _Set, which: np.ndarray) -> _Set:
    inputs, targets = ([part[i] for i in which] for part in (rows.inputs, rows.targets))
    return rows._replace(inputs=inputs, targets=targets, numbers=rows.numbers[which])


def _repeats(rows: Sequence[Hashable]) -> int:
    """The number of pairs of equal rows."""
    return sum(math.comb(n, 2) for n in Counter(rows).values())


def _first_pair(rows: Sequence[Hashable]) -> str:
    twice = next(row for row in rows if rows.count(row) > 1)
    return " and ".join(str(i) for i, row in enumerate(rows) if row == twice)


def _joined(a: _Set, b: _Set) -> _Set:
    numbers, whole = np.concatenate([a.numbers, b.numbers]), a.whole & b.whole
    return _Set(a.inputs + b.inputs, a.targets + b.targets, a.classes, numbers, whole)


def _sets(batch: PyTree) -> list[_Set] | None:
    """The set of each task; None if the leaves have no common row axis.

    If a set is not `Examples`, its largest leaf counts as the inputs.
    """
    if isinstance(batch, Examples):
        inputs, targets, mask = batch.inputs, batch.targets, batch.mask
    else:
        leaves = [leaf for leaf in jax.tree.leaves(batch) if not is_key(leaf)]
        inputs = max(leaves, key=np.size, default=None)
        targets, mask = [leaf for leaf in leaves if leaf is not inputs], None
    inputs, targets = (
        [leaf for leaf in jax.tree.leaves(t) if not is_key(leaf)] for t in (inputs, targets)
    )
    shapes = {np.shape(leaf)[:2] for leaf in [*inputs, *targets]}
    if not inputs or len(shapes) != 1 or any(np.ndim(leaf) < 2 for leaf in [*inputs, *targets]):
        return None
    ((tasks, rows),) = shapes
    counted = np.ones((tasks, rows), bool) if mask is None else np.asarray(mask, bool)
    classes = isinstance(batch, Examples) and [np.asarray(t).dtype.kind for t in targets] == ["i"]
    given, wanted = _bits(inputs, tasks, rows), _bits(targets, tasks, rows)
    flat = [_numbers(leaf, tasks * rows) for leaf in inputs]
    whole = np.concatenate([np.all(leaf == np.trunc(leaf), axis=0) for leaf in flat])
    return [
        _Set(
            [row.tobytes() for row in given[t][counted[t]]],
            [row.tobytes() for row in wanted[t][counted[t]]],
            classes,
            given[t][counted[t]],
            whole,
        )
        for t in range(tasks)
    ]


def _bits(leaves: list[Array | np.ndarray], tasks: int, rows: int) -> np.ndarray:
    """The values of each row, `(tasks, rows, numbers)`, as unsigned integers of the same bits."""
    flat = [_numbers(leaf, tasks, rows) for leaf in leaves]
    whole = [leaf.view(f"u{leaf.dtype.itemsize}").astype(np.uint64) for leaf in flat]
    return np.concatenate(whole or [np.zeros((tasks, rows, 0), np.uint64)], axis=-1)


def _numbers(leaf: Array | np.ndarray, *axes: int) -> np.ndarray:
    """The real numbers of each row, `(*axes, numbers)`: of complex ones, both parts."""
    flat = np.ascontiguousarray(np.asarray(leaf)).reshape(*axes, -1)
    return flat.view(np.real(flat).dtype) if np.iscomplexobj(flat) else flat
