"""Support and query sets that share rows."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from innerloop.diagnostics.checks.subject import Subject
from innerloop.diagnostics.findings import Finding, Severity
from innerloop.problem import Examples


def overlap(subject: Subject) -> Iterator[Finding]:
    """Rows of a task's query set that are in its support set too, mask and labels left out."""
    support, query = _rows(subject.episodes.support), _rows(subject.episodes.query)
    if support is None or query is None:
        return
    shared = [len(a & b) for a, b in zip(support, query, strict=True)]
    tasks = np.count_nonzero(shared)
    if tasks:
        yield Finding(
            Severity.WARNING,
            f"support and query sets share rows in {tasks} of {len(shared)} tasks",
            f"task {int(np.argmax(shared))}: {max(shared)} rows",
            "the outer loss judges what the inner loop has seen, so it rewards learning by heart",
            "disjoint rows, as tasks.sample draws them",
        )


def _rows(batch: PyTree) -> list[set[bytes]] | None:
    """Each task's rows as bytes; None where the leaves have no row axis in common."""
    mask = batch.mask if isinstance(batch, Examples) else None
    content = batch.inputs if isinstance(batch, Examples) else batch
    leaves = [leaf for leaf in jax.tree.leaves(content) if not _is_key(leaf)]
    if not leaves or any(np.ndim(leaf) < 2 for leaf in leaves):
        return None
    if len({np.shape(leaf)[:2] for leaf in leaves}) != 1:
        return None
    tasks, rows = np.shape(leaves[0])[:2]
    counted = np.ones((tasks, rows), bool) if mask is None else np.asarray(mask, bool)
    flat = [np.ascontiguousarray(np.asarray(leaf).reshape(tasks, rows, -1)) for leaf in leaves]
    return [
        {b"".join(leaf[t, r].tobytes() for leaf in flat) for r in range(rows) if counted[t, r]}
        for t in range(tasks)
    ]


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
