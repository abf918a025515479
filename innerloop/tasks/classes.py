"""Labelled data, grouped by class and stored once on the device."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PyTree

from innerloop.checks import describe, first_of, text_type
from innerloop.errors import DataError, StructureError

C = TypeVar("C", bound="Classes")


class Classes(eqx.Module):
    """The rows of a data set by class, from which few-shot tasks are drawn.

    `by_label` makes it from arrays with one label for each row, and `images_by_label` from images.
    The arrays are stored once: a selection of the classes refers to the same arrays.

    Attributes:
        rows: The data, a pytree of arrays with leaves `(rows, ...)`.
        order: int32, the indices of the rows of each class, class after class.
        first: int32 `(classes,)`, the position in `order` at which each class begins.
        sizes: int32 `(classes,)`, the number of rows of each class.
        names: The names of the classes.
        fewest: The number of rows of the smallest class.
        most: The number of rows of the largest class.
    """

    rows: PyTree[Array]
    order: Int[Array, " members"]
    first: Int[Array, " classes"]
    sizes: Int[Array, " classes"]
    names: tuple[str, ...] = eqx.field(static=True)
    fewest: int = eqx.field(static=True)
    most: int = eqx.field(static=True)

    def __len__(self) -> int:
        """Returns the number of classes."""
        return len(self.names)

    def members(self, number: int) -> np.ndarray:
        """Returns the indices of the rows of a class."""
        start = int(self.first[number])
        return np.asarray(self.order[start : start + int(self.sizes[number])])

    def only(self: C, numbers: Sequence[int]) -> C:
        """Returns the classes with these indices, in the given order, of the same data.

        Raises:
            DataError: If no index is given.
            StructureError: If an index is out of range, or occurs twice.
        """
        chosen = [int(number) for number in numbers]
        if len({*chosen}) < len(chosen) or any(not 0 <= each < len(self) for each in chosen):
            raise StructureError(
                "the indices of the classes must be different and in range",
                got=f"only({chosen}) of {len(self)} classes",
                expected=f"different whole numbers from 0 to {len(self) - 1}",
            )
        return dataclasses.replace(self, **self._fields_of(chosen))

    def _fields_of(self, chosen: Sequence[int]) -> dict[str, Any]:
        """Returns the fields that change if only the chosen classes are kept."""
        return index_of([self.members(i) for i in chosen], [self.names[i] for i in chosen])

    def of_rows(self: C, members: Sequence[np.ndarray]) -> C:
        """Returns the same classes with other rows of the same data.

        Args:
            members: The indices of the rows of each class.
        """
        return dataclasses.replace(self, **index_of(members, self.names))

    def with_examples(self: C, least: int) -> C:
        """Keeps the classes with at least `least` examples. Raises `DataError` if there is none."""
        enough = np.flatnonzero(np.asarray(self.sizes) >= least)
        if not len(enough):
            raise DataError(
                "no class has that many examples",
                got=f"with_examples({least}) of {len(self)} classes",
                expected=f"at most {self.most}",
            )
        return self.only(enough.tolist())

    def with_at_least(self, least: int) -> int:
        """Returns the number of classes with at least `least` examples."""
        return int(np.sum(np.asarray(self.sizes) >= least))

    def row_numbers(self, chosen: Array, examples: Array) -> Int[Array, "classes examples"]:
        """Returns the indices in the data of some examples of each chosen class.

        Args:
            chosen: int `(classes,)`, the indices of the classes.
            examples: int `(classes, examples)`, indices within each class, below its size.
        """
        return self.order[self.first[chosen][:, None] + examples]

    def take(self, chosen: Array, examples: Array) -> PyTree[Array]:
        """Returns the data of these rows, leaves `(classes, examples, ...)`; see `row_numbers`."""
        numbers = self.row_numbers(chosen, examples)
        return jax.tree.map(lambda leaf: leaf[numbers], self.rows)


def index_of(members: Sequence[np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    """Returns the fields of `Classes` except `rows`, from the row indices of each class."""
    sizes = [len(each) for each in members]
    if not sizes or min(sizes) == 0:
        without = [name for name, size in zip(names, sizes, strict=True) if size == 0]
        raise DataError(
            "there are classes without rows" if sizes else "there are no classes",
            got=", ".join(without[:3]) or "no rows",
            expected="at least one class, and at least one row in each",
        )
    starts = np.cumsum([0, *sizes[:-1]])
    return {
        "order": jnp.asarray(np.concatenate(members), jnp.int32),
        "first": jnp.asarray(starts, jnp.int32),
        "sizes": jnp.asarray(sizes, jnp.int32),
        "names": tuple(names),
        "fewest": min(sizes),
        "most": max(sizes),
    }


def by_label(rows: PyTree, labels: ArrayLike | Sequence[Any]) -> Classes:
    """Makes one class for each distinct label, in the order of the sorted labels.

    Classes may differ in their number of rows, and labels may be whole numbers or text:

    ```python
    classes = il.tasks.by_label({"signal": signals, "age": ages}, ["sit", "run", "sit", ...])
    tasks = il.tasks.ClassificationTasks(classes, ways=3, shots=5, queries=10)
    ```

    Args:
        rows: An array or a pytree of arrays of numbers, `(rows, ...)`, in any order. Tasks contain
            the rows without a conversion; use `images_by_label` for images.
        labels: One label for each row: whole numbers or text.

    Returns:
        The classes. Their names are the labels.

    Raises:
        StructureError: If the data are not arrays of numbers with the same number of rows, if there
            are not as many labels as rows, or if the labels are floating-point numbers, which are
            rarely equal.
        DataError: If there are no rows, or a number is not finite.
    """
    rows = jax.tree.map(lambda leaf: leaf if eqx.is_array(leaf) else np.asarray(leaf), rows)
    members, names = members_of(labels, number_of_rows(rows))
    return Classes(rows=on_device(rows), **index_of(members, names))


def number_of_rows(rows: PyTree) -> int:
    """Returns the number of rows that all arrays of a tree have."""
    if text_type(rows) is not None or not jax.tree.leaves(rows):
        raise StructureError(
            "the data must be arrays of numbers",
            got=describe(rows) if text_type(rows) is None else f"type {text_type(rows)}",
            expected="arrays of numbers (rows, ...)",
        )
    shapes = {name: np.shape(leaf) for name, leaf in _by_path(rows).items()}
    if len({shape[:1] for shape in shapes.values()}) > 1 or () in shapes.values():
        raise StructureError(
            "the arrays of the data do not have the same number of rows",
            got=first_of([f"{name} {shape}" for name, shape in shapes.items()]),
            expected="arrays (rows, ...) with the same first axis",
        )
    return next(iter(shapes.values()))[0]


def _by_path(rows: PyTree) -> dict[str, Any]:
    return {
        f"rows{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree.leaves_with_path(rows)
    }


def members_of(labels: ArrayLike | Sequence[Any], n: int) -> tuple[list[np.ndarray], list[str]]:
    """Returns the indices of the rows of each label, and the names of the labels."""
    given = np.asarray(labels)
    if given.dtype == object and all(isinstance(name, str) for name in given.flat):
        given = given.astype(str)
    if given.shape != (n,):
        raise StructureError(
            "each row must have one label",
            got=f"labels of shape {given.shape}, {n} rows",
            expected=f"labels ({n},)",
        )
    if given.dtype.kind not in "biuUS":
        raise StructureError(
            "labels must be whole numbers or text",
            got=f"labels of type {given.dtype}",
            expected="integers or strings, equal for rows of one class",
        )
    if not n:
        return [], []
    if given.dtype.kind == "S":
        given = np.char.decode(given)
    found, label = np.unique(given, return_inverse=True)
    order = np.argsort(label, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(label, minlength=len(found)))[:-1])
    return members, [str(name) for name in found.tolist()]


def on_device(rows: PyTree) -> PyTree:
    """Returns the rows as JAX arrays. Raises `DataError` if a number is not finite."""
    arrays = jax.tree.map(jnp.asarray, rows)
    for name, leaf in _by_path(arrays).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or isinstance(leaf, Tracer):
            continue
        finite = np.asarray(jnp.all(jnp.isfinite(leaf.reshape(len(leaf), -1)), axis=1))
        if not finite.all():
            raise DataError(
                "the data contain numbers that are not finite",
                got=f"{np.count_nonzero(~finite)} of {finite.size} rows, the first of which is "
                f"{name}[{np.flatnonzero(~finite)[0]}]",
                expected="finite numbers in every row",
            )
    return arrays
