"""Meta-training, meta-validation and meta-test classes that share nothing."""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np

from innerloop.errors import DataError
from innerloop.tasks.image_classes import TURNS, ImageClasses


class Splits(NamedTuple):
    """Classes for meta-training, for choosing between meta-trained models, and for the report."""

    train: ImageClasses
    validation: ImageClasses
    test: ImageClasses


def check_disjoint(splits: Splits) -> None:
    """Raises `DataError` if two splits share an image, in any quarter turn.

    Runs on the host and reads every image: for tests and for new data, not for every start.
    """
    images = {name: _images(classes) for name, classes in splits._asdict().items()}
    require_disjoint(images, "images")


def require_disjoint(parts: Mapping[str, Iterable], what: str) -> None:
    """Raises `DataError` if two parts share an entry."""
    for (first, one), (second, other) in combinations(parts.items(), 2):
        shared = sorted(set(one) & set(other))
        if shared:
            named = f", the first of them {shared[0]}" if isinstance(shared[0], str) else ""
            raise DataError(
                f"{first} and {second} share {what}",
                got=f"{len(shared)} {what} in both{named}",
                expected=f"{what} that no other split has",
            )


def _images(classes: ImageClasses) -> set[bytes]:
    """The bytes of every image, as the smallest of its four turns."""
    images, counts = np.asarray(classes.images), classes.counts
    if counts is not None:  # without what rows are filled up with, which all splits may share
        images = images[np.arange(images.shape[1])[None, :] < np.asarray(counts)[:, None]][:, None]
    turned = (np.rot90(images, turns, axes=(2, 3)) for turns in range(TURNS))
    flat = (images.reshape(-1, *images.shape[2:]) for images in turned)
    rows = [[image.tobytes() for image in images] for images in flat]
    return {min(turns) for turns in zip(*rows, strict=True)}
