"""Image files read into one array, which is kept in the cache folder."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from innerloop.arguments import at_least, checked, path
from innerloop.checks import optional_package
from innerloop.errors import DataError
from innerloop.tasks.files import cached_array, reading
from innerloop.tasks.image_classes import ImageClasses, by_label

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


@checked(folder=path(), size=at_least(1, such_as=84))
def image_folder(
    folder: str | os.PathLike[str], size: int, *, names: list[str] | None = None
) -> ImageClasses:
    """The classes of a folder that holds one folder of image files for each.

    Class i is the i-th folder in alphabetical order; classes may differ in their number of images.
    Images are uint8 `(classes, images, size, size, 3)`, converted to RGB and scaled without regard
    to their proportions (Lanczos, antialiased). They are kept in the cache folder; if that cannot
    be written, they are read on every start.

    Args:
        folder: The folder that holds the folders of the classes.
        size: Pixels per side of the scaled images.
        names: The folders to read; by default all.

    Raises:
        DataError: If a folder is missing or has no images, or a file is not an image.
        StructureError: If `size` is below 1.
    """
    path = Path(folder)
    if names is None:
        names = [entry.name for entry in path.iterdir() if entry.is_dir()] if path.is_dir() else []
    by_class = {name: _images(path / name) for name in sorted(names) if not name.startswith(".")}
    without = [name for name, files in by_class.items() if not files]
    if without or not by_class:
        raise DataError(
            "there are classes without images" if without else "there are no classes",
            got=f"no images in {path / without[0]}" if without else f"no folders in {path}",
            expected=f"{path}/CLASS/*.png for every class",
        )
    return classes_of_files(by_class, size)


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    return sorted(file for file in files if file.suffix.lower() in SUFFIXES)


def classes_of_files(by_class: dict[str, list[Path]], size: int) -> ImageClasses:
    """The images of each class, sorted by the classes' names: uint8 RGB, `size` × `size` pixels.

    Scaled without regard to their proportions (Lanczos, antialiased), as miniImageNet is. The array
    is kept in the cache folder under the files' names, sizes and times.

    Raises:
        DataError: If a file is missing or is no image.
    """
    files = [file for of_class in by_class.values() for file in of_class]
    labels = [name for name, of_class in by_class.items() for _ in of_class]
    name = f"images-{_digest(files)}-{size}px"
    return by_label(cached_array(name, lambda: _read(files, size)), np.array(labels, str))


def _read(files: Sequence[Path], size: int) -> np.ndarray:
    Image = optional_package("PIL.Image", "reading image files", extra="data")

    def pixels(file: Path) -> np.ndarray:
        with reading(file, "an image"), Image.open(file) as image:
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS))

    images = np.empty((len(files), size, size, 3), np.uint8)
    with ThreadPoolExecutor() as pool:  # Pillow decodes and scales without holding Python's lock
        for i, image in enumerate(pool.map(pixels, files)):
            images[i] = image
    return images


def _digest(files: Sequence[Path]) -> str:
    """A digest of everything that the pixels depend on, without reading them."""
    digest = hashlib.md5(usedforsecurity=False)
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(
            "image files are missing",
            got=f"{len(missing)} of {len(files)} files missing, the first of them {missing[0]}",
            expected="every file that the split names",
        )
    for file in files:
        status = file.stat()
        about = (file.parent.name, file.name, status.st_size, status.st_mtime_ns)
        digest.update(repr(about).encode())
    return digest.hexdigest()
