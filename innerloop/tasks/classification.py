"""Few-shot tasks and batches of all classes, drawn from labelled data on the device."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PRNGKeyArray

from innerloop.arguments import Requirement, at_least, either, kind, requirement_of
from innerloop.errors import DataError, StructureError
from innerloop.masks import blank_rows
from innerloop.problem import Episode, Examples
from innerloop.tasks.base import OneByOne
from innerloop.tasks.classes import Classes
from innerloop.tasks.image_classes import upright
from innerloop.tasks.splits import Splits


def as_classes(data: Classes | ArrayLike) -> Classes:
    """Returns `Classes` unchanged, and converts an array of images by class to upright classes.

    Raises:
        StructureError: If `data` is a `Splits`, which contains all splits of a data set.
    """
    if isinstance(data, Splits):
        raise StructureError(
            "the tasks are drawn from one split of the data",
            got="Splits, which contains the classes of all three",
            expected="classes, or an array of images by class",
            write="splits.train, or splits.validation or splits.test for evaluation",
        )
    return data if isinstance(data, Classes) else upright(data)


@dataclass(frozen=True)
class PerClass:
    """A number from `least` to `most`, inclusive, that is drawn for each class separately.

    As the `shots` of a task, it makes imbalanced support sets, in which some classes have more
    examples than others.

    Args:
        least: The smallest number.
        most: The largest number.
    """

    least: int
    most: int


Count = int | tuple[int, int]
"""A number, or an inclusive range `(least, most)` from which one is drawn for each task."""


def ends(count: Count | PerClass) -> tuple[int, int]:
    """Returns the smallest and the largest number of a count."""
    if isinstance(count, PerClass):
        return count.least, count.most
    return count if isinstance(count, tuple) else (count, count)


@kind
def range_of(least: int) -> Any:
    """The kind of argument that is a range of whole numbers of at least `least`."""
    number = requirement_of(at_least(least))
    assert number is not None

    def accepts(value: Any) -> bool:
        if not isinstance(value, tuple | PerClass):
            return False
        both = ends(value)
        return len(both) == 2 and all(map(number.accepts, both)) and both[0] <= both[1]

    what = f"a range (least, most) of numbers from {least} up"
    expected = f"(least, most) with {least} <= least <= most"
    return Requirement(accepts, what, expected, f"({least}, {least + 4})")


def draw_count(key: PRNGKeyArray, count: Count | PerClass, classes: int) -> Int[Array, " classes"]:
    """Draws a number uniformly from the range, for all classes together or for each separately."""
    least, most = ends(count)
    shape = (classes,) if isinstance(count, PerClass) else (1,)
    drawn = jax.random.randint(key, shape, least, most + 1, jnp.int32)
    return jnp.broadcast_to(drawn, (classes,))


class ClassificationTasks(OneByOne):
    """`ways`-way, `shots`-shot classification tasks.

    A task has `ways` classes, drawn without replacement and in random order, and `shots + queries`
    examples of each class, drawn without replacement. No example is in both the support set and the
    query set. Because the order is random, a label does not reveal which class it stands for.

    If `ways`, `shots` or `queries` is a range, tasks differ in size, and all sizes are equally
    likely. Every task is padded with rows of zeros to the largest size, and the `mask` of its
    `Examples` marks the rows that count. A task of n classes has the labels 0 … n - 1. The field
    `ways` of the `Examples` and, if tasks differ in their number of classes, the field `classes`
    mark the outputs of a network that are classes. Losses, heads and predictions ignore the other
    outputs, so the result is the same as for the n-way task alone.

    The support set and the query set are `Examples`. The inputs `(rows, ...)` are the data without
    a conversion. Images are real numbers in [0, 1] in JAX's default floating-point type: uint8 is
    divided by 255, bool becomes 0 or 1, and floating-point images are not converted. The targets
    are int32 `(rows,)`, from 0 to ways - 1. The rows are ordered by label, and the padding of a
    class follows its rows. `source` holds the class and the row of the data from which each row
    comes: `classes.names[source[i, 0]]` is the name of its class.

    Source: Vinyals et al. 2016, "Matching networks for one shot learning". If the classes include
    quarter turns, a task may contain one character in two orientations, because each orientation is
    a class of its own; the code of MAML draws characters first and then turns them.

    Args:
        classes: The result of `by_label` or `images_by_label`, or an array of images by class,
            `(classes, examples, height, width)` or `(…, channels)`. Its arrays are leaves of this
            module: pass the module to a compiled function as an argument, so that they are not
            copied into the program.
        ways: Classes per task: an int of at least 2, or `(least, most)`.
        shots: Examples per class in the support set: an int, `(least, most)` for the same number in
            every class, or `PerClass(least, most)` for a separate number in each class (an
            imbalanced support set).
        queries: Examples per class in the query set, of the same form.

    Raises:
        StructureError: If `ways` is below 2, `shots` or `queries` is below 1, or a range is empty.
        DataError: If there are too few classes, or too few examples of a class.
    """

    classes: Classes = eqx.field(converter=as_classes)
    ways: Count = either(at_least(2, such_as=5), range_of(2), static=True)
    shots: Count | PerClass = either(at_least(1), range_of(1), static=True)
    queries: Count | PerClass = either(at_least(1, such_as=15), range_of(1), static=True)

    def __check_init__(self):
        ways, shots, queries = (ends(each)[1] for each in (self.ways, self.shots, self.queries))
        classes, fewest = len(self.classes), self.classes.fewest
        if ways > classes:
            raise DataError(
                "there are not enough classes",
                got=f"ways={ways} of {classes} classes",
                expected=f"at most {classes} ways" if classes > 1 else "at least two classes",
                write=f"ClassificationTasks(..., ways={classes})" if classes > 1 else None,
            )
        if shots + queries > fewest:
            fewer, needed = min(shots, fewest - 1), shots + queries
            cures = [f"ClassificationTasks(..., shots={fewer}, queries={fewest - fewer})"]
            if self.classes.with_at_least(needed) >= ways:
                cures.append(f"classes.with_examples({needed}) in place of classes")
            raise DataError(
                "there are not enough examples of each class",
                got=f"shots={shots} + queries={queries} of {fewest} examples",
                expected=f"shots + queries of at most {fewest}, or classes that have {needed}",
                write=", or ".join(cures[fewer == 0 :]) or None,
            )

    def sample_one(self, key: PRNGKeyArray) -> Episode:
        """Draws one task."""
        counts = self.ways, self.shots, self.queries
        ways, shots, queries = (ends(each)[1] for each in counts)
        vary = [ends(each)[0] < ends(each)[1] for each in counts]
        # Only as many keys as needed, so that the draws of tasks of fixed size do not change.
        number = 5 if vary[2] else 4 if any(vary) else 2
        class_key, example_key, *count_keys = jax.random.split(key, number)
        chosen = distinct(class_key, ways, (len(self.classes),))
        support, query = self._draw(example_key, chosen, shots, queries)
        if not any(vary):
            return Episode(support, query)
        present = jnp.arange(ways, dtype=jnp.int32) < draw_count(count_keys[0], self.ways, ways)
        fixed = jnp.full(ways, queries, jnp.int32)
        rows = draw_count(count_keys[2], self.queries, ways) if vary[2] else fixed
        return Episode(
            _padded(support, present, draw_count(count_keys[1], self.shots, ways), vary[0]),
            _padded(query, present, rows, vary[0]),
        )

    def _draw(
        self, key: PRNGKeyArray, chosen: Array, shots: int, queries: int
    ) -> tuple[Examples, Examples]:
        """Draws distinct examples of each chosen class."""
        data = self.classes
        equal = data.fewest == data.most
        shape, sizes = (len(chosen), data.most), None if equal else data.sizes[chosen]
        examples = distinct(key, shots + queries, shape, sizes)
        inputs, numbers = data.take(chosen, examples), data.row_numbers(chosen, examples)
        source = jnp.stack(jnp.broadcast_arrays(chosen[:, None], numbers), axis=-1)
        part = lambda rows: labelled(
            jax.tree.map(lambda leaf: leaf[:, rows], inputs), source=source[:, rows]
        )
        return part(slice(None, shots)), part(slice(shots, None))


class LabelledRows(OneByOne):
    """Batches of labelled rows, whose labels are indices into all classes.

    All tasks have the same distribution: each of the `rows` rows is drawn independently, its class
    uniformly from all classes and its example uniformly from the class. The target is the index of
    the class in `classes`. The support set and the query set are the same `Examples`. They are like
    those of `ClassificationTasks`, except for the labels and the order of the rows.

    Args:
        classes: The data by class, as in `ClassificationTasks`.
        rows: The number of rows per task.

    Raises:
        StructureError: If `rows` is below 1.
    """

    classes: Classes = eqx.field(converter=as_classes)
    rows: int = at_least(1, such_as=25, static=True)

    def sample_one(self, key: PRNGKeyArray) -> Episode:
        """Draws one batch."""
        class_key, example_key = jax.random.split(key)
        data = self.classes
        targets = jax.random.randint(class_key, (self.rows,), 0, len(data), jnp.int32)
        number = data.most if data.fewest == data.most else data.sizes[targets]
        example = jax.random.randint(example_key, (self.rows,), 0, number, jnp.int32)[:, None]
        inputs = jax.tree.map(lambda leaf: leaf[:, 0], data.take(targets, example))
        source = jnp.stack([targets, data.row_numbers(targets, example)[:, 0]], axis=-1)
        examples = Examples(inputs, targets, ways=len(data), source=source)
        return Episode(examples, examples)


def distinct(
    key: PRNGKeyArray, count: int, shape: tuple[int, ...], first: jax.Array | None = None
) -> jax.Array:
    """Draws `count` distinct indices into the last axis of `shape`, in random order: `(…, count)`.

    If `first` is given, the indices of a row are below `first[row]`.

    The indices are the positions of the largest of random numbers. If two numbers are equal, the
    first wins, which shifts a probability by less than 1 part in 1000 for 4,000 classes. The
    numbers are float32 because XLA's top_k on CPU is fast only for this type: for 8 × 6,492
    numbers, it takes 0.06 ms, and for integers 7 ms.
    """
    numbers = jax.random.uniform(key, shape, jnp.float32)
    if first is not None:
        numbers = jnp.where(_first(first, shape[-1]), numbers, -1)
    return jax.lax.top_k(numbers, count)[1]


def _first(counts: jax.Array, most: int) -> jax.Array:
    """Returns bool `(rows, most)`, True in the first `counts` positions of each row."""
    return jnp.arange(most, dtype=jnp.int32)[None, :] < counts[:, None]


def labelled(inputs: Any, library: Any = jnp, source: Any = None) -> Examples:
    """Flattens leaves `(ways, rows, ...)` into rows, each labelled by its index on the first axis.

    `library` is `jax.numpy` or `numpy`, the library of the arrays.
    """
    ways, rows = jax.tree.leaves(inputs)[0].shape[:2]
    targets = library.repeat(library.arange(ways, dtype=library.int32), rows)
    inputs, source = jax.tree.map(
        lambda leaf: leaf.reshape(ways * rows, *leaf.shape[2:]), (inputs, source)
    )
    return Examples(inputs, targets, ways=ways, source=source)


def _padded(examples: Examples, present: Array, counts: Array, ways_vary: bool) -> Examples:
    """Keeps the first `counts` rows of each class that is `present`, and zeros the others."""
    counts = jnp.where(present, counts, 0)
    mask = _first(counts, len(examples.targets) // len(present)).reshape(-1)
    blank = lambda tree: jax.tree.map(lambda leaf: blank_rows(leaf, mask), tree)
    classes = jnp.broadcast_to(present[None, :], (len(mask), len(present))) if ways_vary else None
    source = jax.tree.map(lambda leaf: jnp.where(mask[:, None], leaf, -1), examples.source)
    inputs, targets = blank(examples.inputs), blank(examples.targets)
    return Examples(inputs, targets, mask, classes, examples.ways, source)
