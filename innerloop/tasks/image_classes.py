"""Images that the device holds once, and the classes made from them."""

import functools
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from innerloop.checks import describe
from innerloop.errors import DataError, StructureError

Counts = ArrayLike | Sequence[int] | None
"""The number of examples of each row of images; None for the whole second axis."""

TURNS = 4


class ImageClasses(eqx.Module):
    """Classes of images. A quarter turn of a character can be another class of the same pixels.

    `upright`, `with_quarter_turns` and `by_label` make the table of classes. Turned classes as new
    classes: Santoro et al. 2016, "Meta-learning with memory-augmented neural networks".

    Args:
        images: `(characters, examples, height, width, channels)`, kept in its dtype: uint8
            (0 … 255), bool, or floating point. An array without a channel axis gets one of size 1.
        classes: int32 `(classes, 2)`: the row in `images`, and the number of counterclockwise
            quarter turns (0 … 3, as `numpy.rot90` counts).
        counts: int `(characters,)`, the number of examples of each row, if rows differ. The first
            `counts` examples of a row are its own, and the others are never drawn. None: all.

    Raises:
        StructureError: If the rank, dtype, table or counts are wrong, or images that are not square
            are turned.
        DataError: If an array is empty or a pixel is not finite. The constructor reads all data, so
            call it outside `jax.jit`.
    """

    images: jax.Array
    classes: jax.Array
    counts: jax.Array | None
    turned: bool = eqx.field(static=True)
    fewest: int = eqx.field(static=True)

    def __init__(
        self,
        images: ArrayLike,
        classes: ArrayLike | Sequence[tuple[int, int]],
        counts: Counts = None,
    ):
        table = np.asarray(classes)
        self.images = jnp.asarray(_with_channels(images))
        _check_table(table, self.images.shape)
        _check_finite(self.images)
        self.classes = jnp.asarray(table, dtype=jnp.int32)
        # static, so that images that are never turned compile without any turning
        self.turned = bool(np.any(table[:, 1]))
        examples = self.images.shape[1]
        numbers = np.full(len(self.images), examples) if counts is None else np.asarray(counts)
        _check_counts(numbers, self.images.shape)
        self.fewest = int(numbers[table[:, 0]].min())
        # None where all rows are full, so that nothing is asked of them while drawing
        full = bool(np.all(numbers == examples))
        self.counts = None if full else jnp.asarray(numbers, dtype=jnp.int32)

    def __len__(self) -> int:
        """Number of classes."""
        return self.classes.shape[0]

    def with_examples(self, least: int) -> "ImageClasses":
        """The classes with at least `least` examples. Raises `DataError` if there are none."""
        counts = self._counts()
        enough = counts >= least
        if not enough.any():
            raise DataError(
                "no class has so many examples",
                got=f"with_examples({least}) of {len(self)} classes",
                expected=f"at most {np.max(counts)}",
            )
        return ImageClasses(self.images, np.asarray(self.classes)[enough], self.counts)

    def with_at_least(self, least: int) -> int:
        """The number of classes with at least `least` examples."""
        return int(np.sum(self._counts() >= least))

    def _counts(self) -> np.ndarray:
        """The number of examples of each class."""
        counts = np.full(len(self.images), self.fewest) if self.counts is None else self.counts
        return np.asarray(counts)[np.asarray(self.classes)[:, 0]]


def upright(images: ArrayLike, counts: Counts = None) -> ImageClasses:
    """One class per character, as drawn. For arguments and errors see `ImageClasses`."""
    return ImageClasses(images, _table(images, [0]), counts)


def with_quarter_turns(images: ArrayLike, counts: Counts = None) -> ImageClasses:
    """Four classes per character, one per quarter turn. For arguments see `ImageClasses`."""
    return ImageClasses(images, _table(images, range(TURNS)), counts)


def by_label(images: ArrayLike, labels: ArrayLike | Sequence[str]) -> ImageClasses:
    """One class for each different label, in the order of the sorted labels.

    Classes may differ in their number of images. One array holds them, with as many rows for each
    class as the largest class has.

    Args:
        images: `(images, height, width)` or `(…, channels)`, in any order, of the types that
            `ImageClasses` accepts.
        labels: One label per image, whole numbers or text.

    Raises:
        StructureError: If there are not as many labels as images, or the labels are floating-point
            numbers, which are rarely equal.
        DataError: See `ImageClasses`.
    """
    pixels, names = np.asarray(images), np.asarray(labels)
    if names.dtype == object and all(isinstance(name, str) for name in names.flat):
        names = names.astype(str)
    if pixels.ndim not in (3, 4) or names.shape != pixels.shape[:1]:
        raise StructureError(
            "these are not images with a label for each",
            got=f"images {describe(pixels)}, labels of shape {names.shape}",
            expected="images (images, height, width) or (…, channels), and labels (images,)",
        )
    if names.dtype.kind not in "biuUS":
        raise StructureError(
            "labels must be whole numbers or text",
            got=f"labels of type {names.dtype}",
            expected="integers or strings, equal for images of one class",
        )
    _, label, counts = np.unique(names, return_inverse=True, return_counts=True)
    rows = np.zeros((len(counts), counts.max(initial=0), *pixels.shape[1:]), pixels.dtype)
    for row, count in enumerate(counts):
        rows[row, :count] = pixels[label == row]
    return upright(rows, counts)


def turn(images: jax.Array, turns: jax.Array) -> jax.Array:
    """Turn each class's images counterclockwise.

    Args:
        images: `(classes, rows, side, side, channels)`.
        turns: int `(classes,)`, in 0 … 3.

    Returns:
        An array like `images`.
    """
    by_count = [functools.partial(jnp.rot90, k=count, axes=(1, 2)) for count in range(TURNS)]
    # under vmap this is a select over four views, which XLA fuses with the gather before it
    return jax.vmap(lambda rows, count: jax.lax.switch(count, by_count, rows))(images, turns)


def _table(images: ArrayLike, turns: Sequence[int]) -> np.ndarray:
    rows = np.arange(np.shape(images)[0] if np.ndim(images) else 0)
    return np.stack([np.tile(rows, len(turns)), np.repeat(np.asarray(turns), len(rows))], axis=1)


def _with_channels(images: ArrayLike) -> ArrayLike:
    shape = np.shape(images)
    dtype = images.dtype if isinstance(images, jax.Array) else np.asarray(images).dtype
    if dtype not in (jnp.uint8, jnp.bool_) and not jnp.issubdtype(dtype, jnp.floating):
        raise StructureError(
            "images have a type whose range is unknown",
            got=f"shape {shape}, type {dtype}",
            expected="uint8 (0 … 255), bool, or floating point",
        )
    if len(shape) not in (4, 5):
        raise StructureError(
            "images have the wrong number of axes",
            got=f"shape {shape}, type {dtype}",
            expected="(characters, examples, height, width) or (…, channels)",
        )
    if 0 in shape:
        raise DataError(
            "there are no images",
            got=f"shape {shape}",
            expected="at least one character, example and pixel",
        )
    return images if len(shape) == 5 else jnp.expand_dims(images, -1)


def _check_table(table: np.ndarray, shape: tuple[int, ...]) -> None:
    characters, height, width = shape[0], shape[2], shape[3]
    expected = f"integers (classes, 2), rows below {characters}, turns below {TURNS}, none twice"
    write = "upright(images)"
    well_formed = table.ndim == 2 and table.shape[1] == 2 and np.issubdtype(table.dtype, np.integer)
    if not well_formed or len(table) == 0:
        got = describe(table)
        raise StructureError("not a table of classes", got=got, expected=expected, write=write)
    outside = ((table < 0) | (table >= np.array([characters, TURNS]))).any(axis=1)
    if outside.any():
        got = f"class {table[outside][0].tolist()}"
        raise StructureError("no such row or turn", got=got, expected=expected, write=write)
    distinct, count = np.unique(table, axis=0, return_counts=True)
    if (count > 1).any():
        got = f"class {distinct[count > 1][0].tolist()} {count.max()} times"
        raise StructureError("a class is listed twice", got=got, expected=expected, write=write)
    if np.any(table[:, 1]) and height != width:
        raise StructureError(
            "only square images can be turned",
            got=f"{height}×{width} pixels",
            expected="height = width",
            write="upright(images)",
        )


def _check_finite(images: jax.Array) -> None:
    """Only floating-point images can hold numbers that are not finite."""
    if not jnp.issubdtype(images.dtype, jnp.floating) or isinstance(images, Tracer):
        return
    finite = np.asarray(jnp.all(jnp.isfinite(images), axis=(2, 3, 4)))
    if not finite.all():
        row, example = np.argwhere(~finite)[0].tolist()
        raise DataError(
            "images hold numbers that are not finite",
            got=f"{np.count_nonzero(~finite)} of {finite.size} images, the first of them "
            f"images[{row}, {example}]",
            expected="finite pixels in every image",
        )


def _check_counts(counts: np.ndarray, shape: tuple[int, ...]) -> None:
    whole = np.issubdtype(counts.dtype, np.integer)
    if counts.shape == shape[:1] and whole and counts.min() >= 1 and counts.max() <= shape[1]:
        return
    raise StructureError(
        "not the number of examples of each row",
        got=f"counts={describe(counts)}"
        + (f" from {counts.min()} to {counts.max()}" if whole and counts.size else ""),
        expected=f"{shape[0]} integers from 1 to {shape[1]}",
        write="upright(images, counts=[len(examples) for examples in by_class])",
    )
