"""Images of your own: a folder with one folder for each class."""

import os
from pathlib import Path

from innerloop.arguments import at_least, checked
from innerloop.errors import DataError
from innerloop.tasks.image_classes import ImageClasses
from innerloop.tasks.image_files import SUFFIXES, classes_of_files


@checked(size=at_least(1, such_as=84))
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
            write=f"unpack the images of each class into a folder of its own in {path}",
        )
    return classes_of_files(by_class, size)


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    return sorted(file for file in files if file.suffix.lower() in SUFFIXES)
