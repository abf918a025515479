"""Image files that are read into one array, which is stored in the cache folder."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from innerloop.arguments import at_least, checked, one_of, path
from innerloop.checks import optional_package
from innerloop.errors import DataError
from innerloop.storage.files import plain_file
from innerloop.tasks.files import cached_array, inside, reading
from innerloop.tasks.image_classes import ImageClasses, images_by_label

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")

_PIXELS = 2
"""The version of the conversion from files to pixels. Increase it if the conversion changes."""


Unreadable = Literal["refuse", "skip"]


@checked(
    folder=path(),
    size=at_least(1, at_most=4096, such_as=84),
    unreadable=one_of("refuse", "skip"),
)
def image_folder(
    folder: str | os.PathLike[str],
    size: int,
    *,
    names: list[str] | None = None,
    unreadable: Unreadable = "refuse",
) -> ImageClasses:
    """Reads the classes of a folder that contains one folder of image files for each class.

    Class i is the i-th folder in alphabetical order. Classes may differ in their number of images.
    The images are uint8 `(images, size, size, 3)`. They are converted to RGB, rotated according to
    their EXIF orientation, and scaled without keeping their proportions (Lanczos, antialiased).
    16-bit pixels are reduced to their upper 8 bits, transparency is dropped, and only the first
    image of a file is read. Files without the suffix of an image format are left out with a
    warning. The images are stored in the cache folder; if it cannot be written, they are read again
    at every start.

    Args:
        folder: The folder that contains the folders of the classes.
        size: The number of pixels per side of the scaled images.
        names: The names of the folders to read; None for all.
        unreadable: The treatment of files that are not images, are truncated, or have pixels of
            unknown range: `"refuse"` raises an error, and `"skip"` leaves them out with a warning
            that counts them.

    Returns:
        The classes. Their names are the names of their folders.

    Raises:
        DataError: If a folder is missing or has no images, if a file is unreadable and not skipped,
            or if the images do not fit into memory.
        StructureError: If `size` is not an integer from 1 to 4096.
    """
    path = Path(folder)
    if names is None:
        names = [entry.name for entry in path.iterdir() if entry.is_dir()] if path.is_dir() else []
    folders = {name: inside(path, name) for name in sorted(names)}
    by_class = {name: _images(each) for name, each in folders.items() if not name.startswith(".")}
    if unreadable == "skip":
        by_class = _readable(by_class)
    without = [name for name, files in by_class.items() if not files]
    if without or not by_class:
        raise DataError(
            "there are classes without images" if without else "there are no classes",
            got=f"no images in {path / without[0]}" if without else f"no folders in {path}",
            expected=f"{path}/CLASS/*.png for every class",
        )
    return classes_of_files(by_class, size)


def read_images(
    files: Sequence[Path], size: int, unreadable: Unreadable = "refuse"
) -> tuple[list[Path], np.ndarray]:
    """Returns the files that were read, and their pixels, uint8 `(files, size, size, 3)`.

    Raises:
        DataError: If a file is missing, or if it is unreadable and not skipped.
    """
    _digest(files)  # raises an error if a file is missing
    if unreadable == "skip":
        files = _readable({"": [*files]})[""]
    return [*files], _read(files, size)


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    others = [file.name for file in files if file.suffix.lower() not in SUFFIXES]
    if others:
        warnings.warn(
            f"{len(others)} files in {folder} are left out, because their names end with none of "
            f"{' '.join(SUFFIXES)}; the first of them is {others[0]}",
            stacklevel=4,
        )
    return [file for file in files if file.suffix.lower() in SUFFIXES]


def _readable(by_class: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Returns the files that can be read, and warns about the others."""
    files = [file for of_class in by_class.values() for file in of_class]
    name = f"readable-{_digest(files)}"
    found = cached_array(name, lambda: _check(files), (len(files),)).astype(bool)
    kept = {file for file, whole in zip(files, found.tolist(), strict=True) if whole}
    left_out = [file for file in files if file not in kept]
    if left_out:
        warnings.warn(
            f"{len(left_out)} of {len(files)} files cannot be read and are left out; the first of "
            f"them is {left_out[0]}",
            stacklevel=4,
        )
    return {name: [file for file in each if file in kept] for name, each in by_class.items()}


def _check(files: Sequence[Path]) -> np.ndarray:
    def whole(file: Path) -> bool:
        try:
            _pixels(file, 1)
        except DataError:
            return False
        return True

    with ThreadPoolExecutor() as pool:
        return np.array([*pool.map(whole, files)], np.uint8)


def classes_of_files(by_class: dict[str, list[Path]], size: int) -> ImageClasses:
    """Reads the images of each class: uint8 RGB, `size` × `size` pixels.

    The classes are sorted by name. The images are scaled without keeping their proportions
    (Lanczos, antialiased), as in miniImageNet. The array is stored in the cache folder, under a
    digest of the paths, sizes and times of the files.

    Raises:
        DataError: If a file is missing or is not an image.
    """
    files = [file for of_class in by_class.values() for file in of_class]
    labels = [name for name, of_class in by_class.items() for _ in of_class]
    name, shape = f"images-{_digest(files)}-{size}px", (len(files), size, size, 3)
    return images_by_label(
        cached_array(name, lambda: _read(files, size), shape), np.array(labels, str)
    )


def _read(files: Sequence[Path], size: int) -> np.ndarray:
    """Returns the pixels of files, uint8 `(files, size, size, 3)`."""
    try:
        images = np.empty((len(files), size, size, 3), np.uint8)
    except MemoryError as error:
        raise DataError(
            "the images do not fit into memory",
            got=f"{len(files)} images of {size} × {size} pixels",
            expected="images that fit into the memory of this machine: a smaller size, or fewer "
            "classes with names=",
        ) from error
    with ThreadPoolExecutor() as pool:  # Pillow releases the GIL to decode and to scale
        for i, image in enumerate(pool.map(partial(_pixels, size=size), files)):
            images[i] = image
    return images


def _pixels(file: Path, size: int) -> np.ndarray:
    """Returns the pixels of a file, `(size, size, 3)`. Raises `DataError` if it is unreadable."""
    Image = optional_package("PIL.Image", "reading image files", extra="data")
    expected = "an image with pixels of 1, 8 or 16 bits"
    with reading(file, expected), plain_file(file) as content, Image.open(content) as image:
        scaled = _upright_rgb(image).resize((size, size), Image.Resampling.LANCZOS)
        return np.asarray(scaled)


def _upright_rgb(image: Any) -> Any:
    """Returns an upright RGB image. Raises `ValueError` if the range of its pixels is unknown."""
    Image, ImageOps = (
        optional_package(f"PIL.{name}", "reading image files", extra="data")
        for name in ("Image", "ImageOps")
    )
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):  # Pillow would clip values above 255.
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    if upright.mode in ("I", "F"):
        raise ValueError("the pixels have 32 bits, and the file does not state their range")
    return upright.convert("RGB")


def _digest(files: Sequence[Path]) -> str:
    """Returns a digest of everything that the pixels depend on, without reading the pixels.

    Programs cannot set the change time (ctime) of a file, so a replaced file is detected even if
    its size and its modification time are the same.
    """
    digest = hashlib.md5(str(_PIXELS).encode(), usedforsecurity=False)
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(
            "image files are missing",
            got=f"{len(missing)} of {len(files)} files missing, the first of which is {missing[0]}",
            expected="every file that the split names",
        )
    for file in files:
        status = file.stat()
        about = (os.path.abspath(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(repr(about).encode())
    return digest.hexdigest()
