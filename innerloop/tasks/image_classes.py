"""Classes of images, which are stored once on the device."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from innerloop.checks import describe
from innerloop.errors import DataError, StructureError
from innerloop.tasks.classes import Classes, index_of, members_of, on_device

Counts = ArrayLike | Sequence[int] | None
"""The number of examples of each class; None if all of the second axis are examples."""

TURNS = 4


class ImageClasses(Classes):
    """Classes of images, whose tasks contain real numbers in [0, 1].

    `images_by_label`, `upright`, `with_quarter_turns` and `image_folder` make it. The rows are
    `(images, height, width, channels)`, stored in the dtype that they were given in: uint8
    (0 … 255), bool, or floating point. A quarter turn of a character can be another class of the
    same pixels, as in Santoro et al. 2016, "Meta-learning with memory-augmented neural networks".

    Attributes:
        turns: int32 `(classes,)`, the number of counterclockwise quarter turns of each class,
            0 … 3, as in `numpy.rot90`; None if no class is turned.
    """

    turns: Int[Array, " classes"] | None = None

    def _fields_of(self, chosen: Sequence[int]) -> dict[str, Any]:
        turns = None if self.turns is None else self.turns[jnp.asarray(chosen, jnp.int32)]
        return super()._fields_of(chosen) | {"turns": turns}

    def take(self, chosen: Array, examples: Array) -> Array:
        """Returns images `(classes, examples, height, width, channels)`, real numbers in [0, 1]."""
        # Gathering uint8 and converting afterwards moves a quarter of the bytes.
        images = self.rows[self.row_numbers(chosen, examples)]
        turned = images if self.turns is None else turn(images, self.turns[chosen])
        return as_unit_interval(turned)


def upright(images: ArrayLike, counts: Counts = None) -> ImageClasses:
    """Makes one class per character, in the orientation in which it was drawn.

    Args:
        images: `(characters, examples, height, width)` or `(…, channels)`: uint8, bool or floating
            point. An array without a channel axis gets one of size 1.
        counts: int `(characters,)`, the number of examples of each character. The first `counts`
            entries of the second axis are examples, and the others are never used. None if all are
            examples.

    Raises:
        StructureError: If the rank, the dtype or the counts are wrong.
        DataError: If there are no images, or a pixel is not finite. This check reads all data, so
            call the function outside `jax.jit`.
    """
    images = _with_channels(images, ("characters", "examples"))
    characters, examples = images.shape[:2]
    numbers = np.arange(characters * examples).reshape(characters, examples)
    sizes = np.full(characters, examples) if counts is None else np.asarray(counts)
    _check_counts(sizes, (characters, examples))
    members = [row[:size] for row, size in zip(numbers, sizes.tolist(), strict=True)]
    flat = images.reshape(-1, *images.shape[2:])
    return ImageClasses(on_device(flat), **index_of(members, [str(i) for i in range(characters)]))


def with_quarter_turns(images: ArrayLike, counts: Counts = None) -> ImageClasses:
    """Makes four classes per character, one per quarter turn, with the arguments of `upright`.

    Class i is character i as drawn, and class i + j · characters is the same character after j
    quarter turns. Raises the errors of `upright`, and `StructureError` for images that are not
    square.
    """
    drawn = upright(images, counts)
    height, width = drawn.rows.shape[1:3]
    if height != width:
        raise StructureError(
            "only square images can be turned",
            got=f"{height}×{width} pixels",
            expected="height = width",
            write="upright(images)",
        )
    members = [drawn.members(i) for i in range(len(drawn))] * TURNS
    turned = lambda name, count: f"{name} turned {90 * count}°" if count else name
    names = [turned(name, count) for count in range(TURNS) for name in drawn.names]
    turns = jnp.repeat(jnp.arange(TURNS, dtype=jnp.int32), len(drawn))
    return ImageClasses(drawn.rows, **index_of(members, names), turns=turns)


def images_by_label(images: ArrayLike, labels: ArrayLike | Sequence[Any]) -> ImageClasses:
    """Makes one class of images for each distinct label, in the order of the sorted labels.

    Args:
        images: `(images, height, width)` or `(…, channels)`, in any order: uint8, bool or floating
            point. An array without a channel axis gets one of size 1.
        labels: One label per image: whole numbers or text.

    Returns:
        The classes, which may differ in their number of images. Their names are the labels.

    Raises:
        StructureError: If the rank or the dtype is wrong, if there are not as many labels as
            images, or if the labels are floating-point numbers, which are rarely equal.
        DataError: If there are no images, or a pixel is not finite.
    """
    images = _with_channels(images, ("images",))
    members, names = members_of(labels, len(images))
    return ImageClasses(on_device(images), **index_of(members, names))


def turn(images: jax.Array, turns: jax.Array) -> jax.Array:
    """Turns the images of each class counterclockwise.

    Args:
        images: `(classes, rows, side, side, channels)`.
        turns: int `(classes,)`, the number of quarter turns, 0 … 3.

    Returns:
        The turned images, in an array of the shape of `images`.
    """
    by_count = [functools.partial(jnp.rot90, k=count, axes=(1, 2)) for count in range(TURNS)]
    # Under vmap, this is a select over four views, which XLA fuses with the gather before it.
    return jax.vmap(lambda rows, count: jax.lax.switch(count, by_count, rows))(images, turns)


def as_unit_interval(images: jax.Array) -> jax.Array:
    """Divides uint8 by 255, converts bool to 0 or 1, and leaves floating-point images unchanged."""
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    values = images.astype(jnp.result_type(float))
    return values / 255 if images.dtype == jnp.uint8 else values


def _with_channels(images: ArrayLike, axes: tuple[str, ...]) -> np.ndarray | jax.Array:
    """Returns images with a channel axis after the named axes, the height and the width."""
    images = images if isinstance(images, jax.Array) else np.asarray(images)
    shape, dtype, rank = images.shape, images.dtype, len(axes) + 2
    if dtype not in (jnp.uint8, jnp.bool_) and not jnp.issubdtype(dtype, jnp.floating):
        raise StructureError(
            "the images have a dtype whose range is unknown",
            got=f"shape {shape}, type {dtype}",
            expected="uint8 (0 … 255), bool, or floating point",
        )
    if len(shape) not in (rank, rank + 1):
        raise StructureError(
            "the images have the wrong number of axes",
            got=f"shape {shape}, type {dtype}",
            expected=f"({', '.join(axes)}, height, width) or (…, channels); by_label accepts data "
            "of any shape",
        )
    if 0 in shape:
        raise DataError(
            "there are no images",
            got=f"shape {shape}",
            expected=f"at least one of {', '.join(axes)}, and at least one pixel",
        )
    return images if len(shape) > rank else images[..., None]


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
