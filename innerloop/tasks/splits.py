"""Meta-training, meta-validation and meta-test classes that share nothing."""

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
    seen = {name: _images(classes) for name, classes in splits._asdict().items()}
    for first, second in combinations(seen, 2):
        shared = seen[first] & seen[second]
        if shared:
            raise DataError(
                f"{first} and {second} share images",
                got=f"{len(shared)} images in both",
                expected="no image in two splits",
                write="split by character, before turning and before drawing examples",
            )


def _images(classes: ImageClasses) -> set[bytes]:
    """The bytes of every image, as the smallest of its four turns."""
    images, counts = np.asarray(classes.images), classes.counts
    if counts is not None:  # without what rows are filled up with, which all splits may share
        images = images[np.arange(images.shape[1])[None, :] < np.asarray(counts)[:, None]][:, None]
    turned = (np.rot90(images, turns, axes=(2, 3)) for turns in range(TURNS))
    rows = [[image.tobytes() for image in _flat(images)] for images in turned]
    return {min(turns) for turns in zip(*rows, strict=True)}


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(-1, *images.shape[2:])
