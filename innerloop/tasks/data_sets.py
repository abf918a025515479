"""Tasks from a list of data sets, each of which is one task."""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from innerloop.arguments import at_least, either
from innerloop.checks import describe, describe_briefly
from innerloop.errors import DataError, StructureError
from innerloop.masks import blank_rows
from innerloop.problem import Episode, Examples
from innerloop.tasks.base import OneByOne
from innerloop.tasks.classes import Classes, index_of, number_of_rows, on_device
from innerloop.tasks.classification import Count, distinct, draw_count, ends, range_of

Sets = Sequence[Examples] | Mapping[str, Examples]


def joined(sets: Sets | Classes) -> Classes:
    """Concatenates the rows of all data sets, with one class for each data set.

    Raises:
        DataError: If there is no data set, if one has no rows, or if a number is not finite.
        StructureError: If a data set is not an `Examples`, or if its rows differ from those of the
            others in their shapes or their number of classes.
    """
    if isinstance(sets, Classes):
        return sets
    named = dict(sets) if isinstance(sets, Mapping) else {str(i): s for i, s in enumerate(sets)}
    parts = {name: _rows(name, each) for name, each in named.items()}
    numbers = [number_of_rows(each) for each in parts.values()]
    ends_of = np.cumsum(numbers).tolist()
    members = [np.arange(end - n, end) for n, end in zip(numbers, ends_of, strict=True)]
    index = index_of(members, list(parts))
    first = next(iter(parts))
    for name, each in parts.items():
        if _shapes(each) != _shapes(parts[first]):
            raise StructureError(
                "the rows of the data sets do not have the same shapes",
                got=f"{first}: {describe(parts[first])}, {name}: {describe(each)}",
                expected="data sets that differ only in their number of rows",
            )
    rows = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts.values())
    return Classes(rows=on_device(rows), **index)


def _rows(name: str, examples: Any) -> Examples:
    if not isinstance(examples, Examples) or examples.mask is not None:
        raise StructureError(
            "a data set is a pair of inputs and targets",
            got=f"{name}: {describe_briefly(examples)}",
            expected="Examples without a mask",
            write="Examples(inputs, targets)",
        )
    return jax.tree.map(np.asarray, examples)


def _shapes(rows: Examples) -> list[Any]:
    return [jax.tree.structure(rows), *(leaf.shape[1:] for leaf in jax.tree.leaves(rows))]


class DataSetTasks(OneByOne):
    """Tasks that are each one of several data sets, split into a support set and a query set.

    All data sets are equally likely. The rows are drawn without replacement, so no row is in both
    sets. Data sets may differ in their number of rows: smaller tasks are padded with rows of zeros,
    and the `mask` of the `Examples` marks the rows that count. `source` holds the index of the data
    set and the index of the row in it.

    ```python
    sets = [il.Examples(inputs, targets) for inputs, targets in tables]
    tasks = il.tasks.DataSetTasks(sets, support=(5, 20), queries=30)
    ```

    Args:
        sets: The data sets: a list or a dictionary of `Examples` with leaves `(rows, ...)`.
        support: The number of rows in the support set: an int, or `(least, most)`.
        queries: The largest number of rows in the query set. If fewer rows of the data set are
            left, the query set has all of them.

    Raises:
        StructureError: If a count is below one, or the rows of the data sets have different shapes.
        DataError: If a data set has no row left for the query set.
    """

    sets: Classes = eqx.field(converter=joined)
    support: Count = either(at_least(1, such_as=5), range_of(1), static=True)
    queries: int = at_least(1, such_as=15, static=True)

    def __check_init__(self):
        most = ends(self.support)[1]
        if most >= self.sets.fewest:
            smallest = int(np.argmin(np.asarray(self.sets.sizes)))
            raise DataError(
                "a data set has no row left for the query set",
                got=f"support={most} of {self.sets.fewest} rows of {self.sets.names[smallest]!r}",
                expected="a support set that is smaller than each data set, or larger data sets",
                write=f"DataSetTasks(..., support={self.sets.fewest - 1})"
                if self.sets.fewest > 1
                else None,
            )

    def sample_one(self, key: PRNGKeyArray) -> Episode:
        """Draws one task."""
        set_key, row_key, count_key = jax.random.split(key, 3)
        chosen = jax.random.randint(set_key, (1,), 0, len(self.sets), jnp.int32)
        support, size = ends(self.support)[1], self.sets.sizes[chosen]
        number = min(support + self.queries, self.sets.most)
        drawn = distinct(row_key, number, (1, self.sets.most), size)
        rows = jax.tree.map(lambda leaf: leaf[0], self.sets.take(chosen, drawn))
        source = jnp.stack([jnp.broadcast_to(chosen, (number,)), drawn[0]], axis=-1)
        counts = draw_count(count_key, self.support, 1)[0], size[0] - support
        first = _filled(rows, source, slice(None, support), counts[0])
        return Episode(first, _filled(rows, source, slice(support, None), counts[1]))


def _filled(rows: Examples, source: jax.Array, part: slice, count: jax.Array) -> Examples:
    """Returns a part of the rows, and masks all but the first `count` of them."""
    rows, source = jax.tree.map(lambda leaf: leaf[part], (rows, source))
    mask = jnp.arange(len(source), dtype=jnp.int32) < count
    inputs, targets = (
        jax.tree.map(lambda leaf: blank_rows(leaf, mask), tree)
        for tree in (rows.inputs, rows.targets)
    )
    source = jnp.where(mask[:, None], source, -1)
    return Examples(inputs, targets, mask, rows.classes, rows.ways, source)
