"""Disjoint splits of classes or rows for meta-training, meta-validation and meta-test."""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import NamedTuple

import jax
import numpy as np

from innerloop.arguments import at_least, between, checked, each, instance
from innerloop.errors import DataError, StructureError
from innerloop.tasks.classes import Classes
from innerloop.tasks.image_classes import TURNS, ImageClasses


class Splits(NamedTuple):
    """The classes for meta-training, for model selection, and for the final test."""

    train: Classes
    validation: Classes
    test: Classes


_SHARES = (0.6, 0.2, 0.2)
_SPLIT = checked(
    classes=instance(Classes, what="data by class", such_as="tasks.by_label(rows, labels)"),
    shares=each(between(0, 1, such_as=0.5), length=3),
    seed=at_least(0, such_as=0),
)


@_SPLIT
def split_classes(
    classes: Classes, shares: tuple[float, float, float] = _SHARES, *, seed: int = 0
) -> Splits:
    """Splits the classes: validation and test tasks have classes that training never sees.

    Args:
        classes: The classes.
        shares: The fractions of the classes for training, validation and test, with sum 1.
        seed: The random seed of the split. A seed gives the same split in every version of NumPy.

    Raises:
        DataError: If a split would have fewer than two classes.
        StructureError: If the shares do not add up to 1, or if classes share rows, as turned
            images do. Split the images before you turn them.
    """
    parts = _parts(len(classes), shares, seed, classes, least=2, what="classes")
    return Splits(*(classes.only(part) for part in parts))


@_SPLIT
def split_rows(
    classes: Classes, shares: tuple[float, float, float] = _SHARES, *, seed: int = 0
) -> Splits:
    """Splits the rows of each class: each split has all classes, and no row is in two splits.

    Rows that are nearly equal, such as frames of one film, may still be in different splits.

    Args:
        classes: The classes.
        shares: The fractions of the rows of each class for training, validation and test, with
            sum 1.
        seed: The random seed of the split. A seed gives the same split in every version of NumPy.

    Raises:
        DataError: If a class has too few rows for each split to have one.
        StructureError: If the shares do not add up to 1, or if classes share rows.
    """
    members: list[list[np.ndarray]] = [[], [], []]
    for i, name in enumerate(classes.names):
        rows = classes.members(i)
        what = f"rows of class {name!r}"
        for part, chosen in enumerate(_parts(len(rows), shares, seed + i, classes, 1, what)):
            members[part].append(rows[chosen])
    return Splits(*(classes.of_rows(part) for part in members))


def _parts(
    n: int, shares: tuple[float, ...], seed: int, classes: Classes, least: int, what: str
) -> list[list[int]]:
    """Splits the numbers from 0 to n - 1 into three random parts, each of them sorted."""
    if abs(sum(shares) - 1) > 1e-6:
        raise StructureError(
            "the shares of the splits do not add up to 1",
            got=f"shares={shares}",
            expected="three shares with sum 1",
            write=f"shares={_SHARES}",
        )
    if len(np.unique(classes.order)) < len(classes.order):
        raise StructureError(
            "classes that share rows cannot be split without a leak",
            got=f"{len(classes)} classes of {len(np.unique(classes.order))} rows",
            expected="classes without common rows: split first, and turn the images of each split "
            "afterwards",
        )
    if n < least * len(shares):
        raise DataError(
            f"there are too few {what} for three splits",
            got=f"{n} {what}",
            expected=f"at least {least} in each split",
        )
    sizes = np.diff(np.round(np.cumsum((0, *shares)) * n).astype(int))
    while sizes.min() < least:  # too small a split takes from the largest
        sizes[sizes.argmin()] += 1
        sizes[sizes.argmax()] -= 1
    # NumPy has frozen the stream of RandomState, so every version gives the same split.
    parts = np.split(np.random.RandomState(seed).permutation(n), np.cumsum(sizes)[:-1])
    return [sorted(part.tolist()) for part in parts]


def check_disjoint(splits: Splits) -> None:
    """Raises `DataError` if two splits contain equal rows.

    Two images also count as equal if one is a quarter turn of the other. The check runs on the host
    and reads all data: use it in tests and for new data, and not at every start.
    """
    rows = {name: _contents(classes) for name, classes in splits._asdict().items()}
    images = all(isinstance(classes, ImageClasses) for classes in splits)
    require_disjoint(rows, "images" if images else "rows")


def require_disjoint(parts: Mapping[str, Iterable], what: str) -> None:
    """Raises `DataError` if two parts have an entry in common."""
    for (first, one), (second, other) in combinations(parts.items(), 2):
        shared = sorted(set(one) & set(other))
        if shared:
            named = f", the first of which is {shared[0]}" if isinstance(shared[0], str) else ""
            raise DataError(
                f"{first} and {second} share {what}",
                got=f"{len(shared)} {what} in both{named}",
                expected=f"{what} that are in one split only",
            )


def duplicates(classes: Classes) -> list[list[tuple[str, int]]]:
    """Finds equal rows of the data, which a task may have in both its support and its query set.

    The search runs on the host and reads all data.

    Args:
        classes: The classes.

    Returns:
        For each set of equal rows, the names of their classes and the indices of the rows.
    """
    of_row = {int(row): name for i, name in enumerate(classes.names) for row in classes.members(i)}
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(classes.rows)]
    found: dict[bytes, list[tuple[str, int]]] = {}
    for row in sorted(of_row):
        content = b"".join(leaf[row].tobytes() for leaf in leaves)
        found.setdefault(content, []).append((of_row[row], row))
    return [rows for rows in found.values() if len(rows) > 1]


def _contents(classes: Classes) -> set[bytes]:
    """Returns the bytes of each row. For an image, these are the smallest of its four turns."""
    numbers = np.unique(np.asarray(classes.order))
    leaves = [np.asarray(leaf)[numbers] for leaf in jax.tree.leaves(classes.rows)]
    if not isinstance(classes, ImageClasses):
        rows = zip(*([row.tobytes() for row in leaf] for leaf in leaves), strict=True)
        return {b"".join(row) for row in rows}
    turned = (np.rot90(leaves[0], turns, axes=(1, 2)) for turns in range(TURNS))
    images = [[image.tobytes() for image in each] for each in turned]
    return {min(turns) for turns in zip(*images, strict=True)}
