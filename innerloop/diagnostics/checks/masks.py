"""A check for masked rows that change a loss, made by computing the losses."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from innerloop.diagnostics.checks.subject import Subject, jit_quickly
from innerloop.diagnostics.findings import Finding, Severity
from innerloop.masks import row_mask
from innerloop.problem import Examples
from innerloop.trees import is_key

_SAME = 1e-4
"""The relative difference of two losses up to which rounding may explain it."""


def masked_rows(subject: Subject) -> Iterator[Finding]:
    """Losses that change with the content of rows that the mask excludes."""
    for task in _padded_tasks(subject)[:1]:
        given = subject.given_at(subject.meta, *subject.task(task))
        for name, (params, meta, batch, key) in given.items():
            if not isinstance(batch, Examples) or batch.mask is None or bool(jnp.all(batch.mask)):
                continue
            loss = jit_quickly(subject.loss(name))
            values = [float(loss(params, meta, rows, key)) for rows in (batch, *_others(batch))]
            if np.isfinite(values[0]) and not np.allclose(values[0], values[1:], _SAME, 0):
                yield Finding(
                    Severity.WARNING,
                    f"{name} counts rows that the mask excludes",
                    f"{name}, task {task}: {int(jnp.sum(~batch.mask))} rows",
                    f"it is {values[0]:.4g}, with zeros in these rows {values[1]:.4g}, and with "
                    f"copies of a row that counts {values[2]:.4g}",
                    "the mean over the rows of the mask, as models.mean_squared_error and "
                    "models.cross_entropy compute it",
                )


def _others(batch: Examples) -> Iterator[Examples]:
    """The batch with zeros in the masked rows, and with copies of the first valid row in them."""
    mask = jnp.asarray(batch.mask)

    def filled(leaf: Any, first: bool) -> Any:
        if is_key(leaf) or np.shape(leaf)[:1] != mask.shape:
            return leaf
        leaf = jnp.asarray(leaf)
        row = leaf[jnp.argmax(mask)] if first else jnp.zeros((), leaf.dtype)
        return jnp.where(row_mask(leaf, mask), leaf, row)

    for first in (False, True):
        fill = partial(filled, first=first)
        inputs, targets = (jax.tree.map(fill, tree) for tree in (batch.inputs, batch.targets))
        yield Examples(inputs, targets, batch.mask, batch.classes)


def _padded_tasks(subject: Subject) -> list[int]:
    """The tasks that have masked rows."""
    sets = (subject.episodes.support, subject.episodes.query)
    masks = [each.mask for each in sets if isinstance(each, Examples) and each.mask is not None]
    padded = [~np.asarray(mask, bool).all(axis=-1) for mask in masks]
    return np.flatnonzero(np.any(padded, axis=0)).tolist() if padded else []
