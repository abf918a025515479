"""miniImageNet: a hundred classes of ImageNet, 600 images of each, scaled to 84 × 84 pixels."""

import csv
import importlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from innerloop.tasks.files import Folder, needed_folder, read_lines, reading
from innerloop.tasks.image_classes import by_label
from innerloop.tasks.image_files import classes_of_files
from innerloop.tasks.splits import Splits, require_disjoint

SIZE = 84
_PARTS = ("train", "val", "test")
_PICKLE = "mini-imagenet-cache-{}.pkl"
_EXPECTED = "train.csv, val.csv, test.csv and images/, or mini-imagenet-cache-{train,val,test}.pkl"


def mini_imagenet(*, data: Folder = None) -> Splits:
    """The split of Ravi and Larochelle: 64 classes for meta-training, 16 validation and 20 test.

    Images are uint8 `(classes, 600, 84, 84, 3)`. Those of `images/` are scaled as in the code of
    MAML (Lanczos, without regard to proportions), once, and kept in the cache folder.

    A pickle may run any program when it is loaded. The loader used here builds only arrays and
    plain containers, and refuses a file that asks for anything else.

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
    return Splits(*(by_label(images, labels) for images, labels in pickled.values()))


def _listed(folder: Path, part: str) -> dict[str, list[Path]]:
    """The image files of each class."""
    path = folder / f"{part}.csv"
    lines = read_lines(path)
    by_class: dict[str, list[Path]] = {}
    with reading(path, "a first line filename,label, and a file name and a class in every other"):
        for row in csv.DictReader(lines):
            if not (row["filename"] and row["label"]):
                raise ValueError(f"a row {row}")
            by_class.setdefault(row["label"], []).append(folder / "images" / row["filename"])
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
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
        images, by_class = content["image_data"], content["class_dict"]
        labels = np.full(len(images), None)
        for name, rows in by_class.items():
            labels[np.asarray(rows)] = str(name)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or None in labels:
            raise ValueError(f"image_data {images.dtype}{list(images.shape)}")
    return images, labels


# What NumPy writes into a pickle of its arrays, in Python 2 and 3. Nothing here does anything but
# build an array, a number or bytes.
_HARMLESS = {
    "numpy": ("ndarray", "dtype"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.numeric": ("_frombuffer",),
    "_codecs": ("encode",),
}


class _ArraysOnly(pickle.Unpickler):
    """A pickle may call any function with any arguments; this reader allows only these."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # NumPy's name before version 2
        if name not in _HARMLESS.get(module, ()):
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return getattr(importlib.import_module(module), name)
