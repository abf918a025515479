"""Classes of images from arrays of images and labels."""

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

from innerloop.checks import describe
from innerloop.errors import StructureError
from innerloop.tasks.image_classes import ImageClasses, upright

_WRITE = "by_label(images, labels)"


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
            "images and labels do not fit",
            got=f"images {describe(pixels)}, labels of shape {names.shape}",
            expected="images (images, height, width) or (…, channels), and one label for each",
            write=_WRITE,
        )
    if names.dtype.kind not in "biuUS":
        raise StructureError(
            "labels must be whole numbers or text",
            got=f"labels of type {names.dtype}",
            expected="integers or strings, equal for images of one class",
            write="by_label(images, labels.astype(int)), if each is a whole number",
        )
    _, label, counts = np.unique(names, return_inverse=True, return_counts=True)
    rows = np.zeros((len(counts), counts.max(initial=0), *pixels.shape[1:]), pixels.dtype)
    for row, count in enumerate(counts):
        rows[row, :count] = pixels[label == row]
    return upright(rows, counts)
