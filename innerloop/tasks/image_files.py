"""Image files read into one array, which is kept in the cache folder."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from innerloop.checks import optional_package
from innerloop.errors import DataError
from innerloop.tasks._by_label import by_label
from innerloop.tasks.array_cache import cached_array
from innerloop.tasks.image_classes import ImageClasses

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


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
    return by_label(cached_array(name, lambda: _read(files, size)), labels)


def _read(files: Sequence[Path], size: int) -> np.ndarray:
    Image = optional_package("PIL.Image", "reading image files", extra="data")

    def pixels(file: Path) -> np.ndarray:
        try:
            with Image.open(file) as image:
                scaled = image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{file} cannot be read as an image",
                got=f"{type(error).__name__}: {error}",
                expected="a complete image file",
                write=f"rm {file} and unpack the data again",
            ) from error
        return np.asarray(scaled)

    images = np.empty((len(files), size, size, 3), np.uint8)
    with ThreadPoolExecutor() as pool:  # Pillow decodes and scales without holding Python's lock
        for i, image in enumerate(pool.map(pixels, files)):
            images[i] = image
    return images


def _digest(files: Sequence[Path]) -> str:
    """A digest of everything that the pixels depend on, without reading them."""
    digest = hashlib.md5(usedforsecurity=False)
    missing = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            missing.append(file)
            continue
        about = (file.parent.name, file.name, status.st_size, status.st_mtime_ns)
        digest.update(repr(about).encode())
    if missing or not files:
        raise DataError(
            "image files are missing",
            got=f"{len(missing)} of {len(files)} files missing"
            + (f", the first of them {missing[0]}" if missing else ""),
            expected="every file that the split names",
            write="unpack the data again, all of it, into that folder",
        )
    return digest.hexdigest()
