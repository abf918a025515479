"""miniImageNet: a hundred classes of ImageNet, 600 images of each, scaled to 84 × 84 pixels."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from innerloop.storage.files import plain_file
from innerloop.tasks._plain_pickle import Array, load_plain
from innerloop.tasks.files import Folder, inside, needed_folder, read_lines, reading
from innerloop.tasks.image_classes import images_by_label
from innerloop.tasks.image_files import classes_of_files
from innerloop.tasks.splits import Splits, require_disjoint

SIZE = 84
_PARTS = ("train", "val", "test")
_PICKLE = "mini-imagenet-cache-{}.pkl"
_EXPECTED = "train.csv, val.csv, test.csv and images/, or mini-imagenet-cache-{train,val,test}.pkl"


def mini_imagenet(*, data: Folder = None) -> Splits:
    """The split of Ravi and Larochelle: 64 classes for meta-training, 16 validation and 20 test.

    Images are uint8 `(classes, 600, 84, 84, 3)`. Those of `images/` are scaled as in the code of
    MAML (Lanczos, without regard to proportions), once, and kept in the cache folder. Unlike that
    code, `image_folder` and this function rotate images according to their EXIF orientation.

    A pickle may run any program when it is loaded. The loader used here runs no code from the file.
    It builds arrays of numbers, plain containers, numbers and text, and refuses everything else.

    Source: Vinyals et al. 2016, "Matching networks for one shot learning"; Ravi and Larochelle
    2017, "Optimization as a model for few-shot learning", whose classes these are.

    Args:
        data: The folder of the files, or the folder above `mini-imagenet/`; by default the folder
            that the environment variable INNERLOOP_DATA names. The files are not downloaded,
            because ImageNet's terms do not allow it. Both forms in use are accepted: `train.csv`,
            `val.csv`, `test.csv` with columns `filename,label`, and `images/`; or
            `mini-imagenet-cache-train.pkl`, `…-val.pkl`, `…-test.pkl`, each a dict with
            `image_data` and `class_dict`.

    Raises:
        DataError: If the folder or a file is missing, cannot be read, or a class is in two splits.
    """
    one_of = ("train.csv", _PICKLE.format("train"))
    folder = needed_folder(data, "mini-imagenet", _EXPECTED, one_of)
    if (folder / "train.csv").exists():
        listed = {part: _listed(folder, part) for part in _PARTS}
        require_disjoint(listed, "classes")
        return Splits(*(classes_of_files(files, SIZE) for files in listed.values()))
    pickled = {part: _pickled(folder / _PICKLE.format(part)) for part in _PARTS}
    require_disjoint({part: labels for part, (_, labels) in pickled.items()}, "classes")
    return Splits(*(images_by_label(images, labels) for images, labels in pickled.values()))


def _listed(folder: Path, part: str) -> dict[str, list[Path]]:
    """The image files of each class."""
    path = folder / f"{part}.csv"
    lines = read_lines(path)
    by_class: dict[str, list[Path]] = {}
    with reading(path, "a first line filename,label, and a file name and a class in every other"):
        for row in csv.DictReader(lines):
            if not (row["filename"] and row["label"]):
                raise ValueError(f"a row {row}")
            by_class.setdefault(row["label"], []).append(inside(folder / "images", row["filename"]))
        if not by_class:
            raise ValueError("no rows")
    return by_class


def _pickled(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images, and the class of each, from a pickle of Python 2 or 3."""
    expected = (
        "a pickle of a dict with image_data, uint8 (images, height, width, 3), and class_dict, in "
        "which each image is a row of some class; from a source that you trust, because a pickle "
        "of anything but arrays, containers, numbers and text may run any program"
    )
    with reading(path, expected):
        with plain_file(path) as file:
            content = load_plain(file)
        images, by_class = content["image_data"].value(), content["class_dict"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"image_data {images.dtype}{list(images.shape)}")
        return images, _labels(by_class, len(images))


def _labels(by_class: dict[Any, Any], number: int) -> np.ndarray:
    """The class of each image. Raises `ValueError` unless every image is a row of one class."""
    names, rows = [], []
    for name, each in by_class.items():
        of_class = each.value().tolist() if isinstance(each, Array) else each
        if type(name) is not str or type(of_class) is not list:
            raise ValueError("a class without a name or without a list of rows")
        rows += of_class
        names += [name] * len(of_class)
    whole = all(type(row) is int for row in rows)
    if not (number and whole and sorted(rows) == list(range(number))):
        raise ValueError("an image that is of no class, or of two")
    return np.array(names)[np.argsort(rows)]
