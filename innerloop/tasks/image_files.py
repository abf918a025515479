"""Image files read into one array, which is kept in the cache folder."""

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
    """The classes of a folder that holds one folder of image files for each.

    Class i is the i-th folder in alphabetical order; classes may differ in their number of images.
    Images are uint8 `(classes, images, size, size, 3)`, converted to RGB and scaled without regard
    to their proportions (Lanczos, antialiased). They are rotated according to their EXIF
    orientation. 16-bit pixels are reduced to their upper 8 bits, transparency is dropped, and only
    the first image of a file is read. Files without the suffix of an image format are left out with
    a warning. The images are kept in the cache folder; if it cannot be written, they are read on
    every start.

    Args:
        folder: The folder that holds the folders of the classes.
        size: Pixels per side of the scaled images.
        names: The folders to read; by default all.
        unreadable: What happens to files that are no images, are cut off, or have pixels of unknown
            range: `"refuse"` raises an error, and `"skip"` leaves them out with a warning that
            counts them.

    Returns:
        The classes, with the names of their folders.

    Raises:
        DataError: If a folder is missing or has no images, a file is unreadable and not skipped, or
            the images do not fit into memory.
        StructureError: If `size` is not from 1 to 4096.
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
    """The files that are read, and their pixels, uint8 `(files, size, size, 3)`.

    Raises:
        DataError: If a file is missing, or unreadable and not skipped.
    """
    _digest(files)  # refuses what is missing
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
            f"{len(others)} files in {folder} are left out, because their names end in none of "
            f"{' '.join(SUFFIXES)}; the first of them is {others[0]}",
            stacklevel=4,
        )
    return [file for file in files if file.suffix.lower() in SUFFIXES]


def _readable(by_class: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """The files that can be read. Warns of the others."""
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
    """The images of each class, sorted by the classes' names: uint8 RGB, `size` × `size` pixels.

    Scaled without regard to their proportions (Lanczos, antialiased), as miniImageNet is. The array
    is kept in the cache folder under the files' paths, sizes and times.

    Raises:
        DataError: If a file is missing or is no image.
    """
    files = [file for of_class in by_class.values() for file in of_class]
    labels = [name for name, of_class in by_class.items() for _ in of_class]
    name, shape = f"images-{_digest(files)}-{size}px", (len(files), size, size, 3)
    return images_by_label(
        cached_array(name, lambda: _read(files, size), shape), np.array(labels, str)
    )


def _read(files: Sequence[Path], size: int) -> np.ndarray:
    """The pixels of files, uint8 `(files, size, size, 3)`."""
    try:
        images = np.empty((len(files), size, size, 3), np.uint8)
    except MemoryError as error:
        raise DataError(
            "the images do not fit into memory",
            got=f"{len(files)} images of {size} × {size} pixels",
            expected="images that fit into the memory of this machine: a smaller size, or fewer "
            "classes by names=",
        ) from error
    with ThreadPoolExecutor() as pool:  # Pillow decodes and scales without holding Python's lock
        for i, image in enumerate(pool.map(partial(_pixels, size=size), files)):
            images[i] = image
    return images


def _pixels(file: Path, size: int) -> np.ndarray:
    """The pixels of a file, uint8 `(size, size, 3)`. Raises `DataError` if it cannot be read."""
    Image = optional_package("PIL.Image", "reading image files", extra="data")
    expected = "an image with pixels of 1, 8 or 16 bits"
    with reading(file, expected), plain_file(file) as content, Image.open(content) as image:
        scaled = _upright_rgb(image).resize((size, size), Image.Resampling.LANCZOS)
        return np.asarray(scaled)


def _upright_rgb(image: Any) -> Any:
    """The image as a viewer shows it. Raises `ValueError` for pixels of unknown range."""
    Image, ImageOps = (
        optional_package(f"PIL.{name}", "reading image files", extra="data")
        for name in ("Image", "ImageOps")
    )
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):  # Pillow would clip what is above 255.
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    if upright.mode in ("I", "F"):
        raise ValueError("pixels of 32 bits, whose range the file does not say")
    return upright.convert("RGB")


def _digest(files: Sequence[Path]) -> str:
    """A digest of everything that the pixels depend on, without reading them.

    No program can set the change time (ctime) of a file, so a replaced file is noticed even if its
    size and its modification time are the same.
    """
    digest = hashlib.md5(str(_PIXELS).encode(), usedforsecurity=False)
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(
            "image files are missing",
            got=f"{len(missing)} of {len(files)} files missing, the first of them {missing[0]}",
            expected="every file that the split names",
        )
    for file in files:
        status = file.stat()
        about = (os.path.abspath(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(repr(about).encode())
    return digest.hexdigest()
