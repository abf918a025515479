"""miniImageNet: a hundred classes of ImageNet, 600 images of each, scaled to 84 × 84 pixels."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from innerloop.errors import DataError
from innerloop.tasks.image_classes import ImageClasses, by_label
from innerloop.tasks.image_files import classes_of_files
from innerloop.tasks.known_files import Folder, needed_folder, read_text
from innerloop.tasks.numpy_pickle import load_arrays
from innerloop.tasks.splits import Splits, checked_names

SIZE = 84
_PARTS = ("train", "val", "test")
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
    pickles = [f"mini-imagenet-cache-{part}.pkl" for part in _PARTS]
    folder = needed_folder(data, "mini-imagenet", _EXPECTED, ("train.csv", pickles[0]))
    if (folder / "train.csv").exists():
        return _splits([_listed(folder, part) for part in _PARTS])
    return _splits([_pickled(folder / name) for name in pickles])


_Part = tuple[list[str], Callable[[], ImageClasses]]
"""The names of the classes of a part, and a function that makes the classes."""


def _splits(parts: list[_Part]) -> Splits:
    checked_names({part: names for part, (names, _) in zip(_PARTS, parts, strict=True)})
    return Splits(*(classes() for _, classes in parts))


def _listed(folder: Path, part: str) -> _Part:
    path = folder / f"{part}.csv"
    by_class: dict[str, list[Path]] = {}
    for row in csv.DictReader(read_text(path).splitlines()):
        if not (row.get("filename") and row.get("label")):
            raise DataError(
                f"{path} is not a list of images",
                got=f"a row {dict(row)}",
                expected="a first line filename,label, and a file name and a class in every other",
                write="the files of the split as they are published",
            )
        by_class.setdefault(row["label"], []).append(folder / "images" / row["filename"])
    return list(by_class), lambda: classes_of_files(by_class, SIZE)


def _pickled(path: Path) -> _Part:
    if not path.exists():
        raise DataError(
            f"{path.name} is missing",
            got=f"no such file in {path.parent}",
            expected=_EXPECTED,
            write=f"put {path.name} into {path.parent}",
        )
    content = load_arrays(path)
    try:
        images, by_class = content["image_data"], content["class_dict"]
        labels = np.full(len(images), None)
        for name, rows in by_class.items():
            labels[np.asarray(rows)] = str(name)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or None in labels:
            raise ValueError(f"image_data {images.dtype}{list(images.shape)}")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(
            f"{path} does not hold classes of images",
            got=repr(error),
            expected="a dict with image_data, uint8 (images, height, width, 3), and class_dict, in "
            "which each image is a row of some class",
            write=f"rm {path} and download it again",
        ) from error
    return list(map(str, by_class)), lambda: by_label(images, labels)
