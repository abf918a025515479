"""The files of the Omniglot project, and how drawings are read from them."""

import io
import zipfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from innerloop.checks import optional_package
from innerloop.tasks.known_files import (
    Folder,
    KnownFile,
    cached_array,
    data_folder,
    downloaded,
    local_file,
)

UPSTREAM = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"

Archive = tuple[KnownFile, ...]
"""Files with the same drawings in the same order; the official one, which is downloaded, first."""

BACKGROUND: Archive = (
    KnownFile("images_background.zip", "68d2efa1b9178cc56df9314c21c6e718"),
    KnownFile("images_background.npz", "042c0a3e1688c4f4dc9d7213db63ee80"),
)
EVALUATION: Archive = (
    KnownFile("images_evaluation.zip", "6b91aef0f799c5bb55b94e3f2daec811"),
    KnownFile("images_evaluation.npz", "a6277b6770b9241c6906fa797456e652"),
)
SMALL_1: Archive = (KnownFile("images_background_small1.zip", "e704a628b5459e08445c13499850abc4"),)
SMALL_2: Archive = (KnownFile("images_background_small2.zip", "b75a71a51d3b13f821f212756fe481fd"),)


def drawings(archive: Archive, size: int, data: Folder) -> np.ndarray:
    """All drawings of an archive, uint8 `(characters, 20, size, size)`, ink 255 and paper 0.

    Characters are in the order of their alphabets' names, then of their numbers. Kept in the cache
    folder under the md5 of the file and the size, so reading and scaling happen once.
    """
    file, source = find(archive, data)

    def read() -> np.ndarray:
        with source as path:
            return _READERS[path.suffix](path, size)

    return cached_array(f"omniglot-{file.md5}-{size}px", read)


def alphabets(archive: Archive, data: Folder) -> tuple[str, ...]:
    """The alphabet of each character of an official archive, in the order of `drawings`."""
    _, source = find(archive, data)
    with source as path, zipfile.ZipFile(path) as content:
        return tuple(folder.parent.name for folder in _characters(content))


def find(
    archive: Archive, data: Folder, base_url: str = UPSTREAM
) -> tuple[KnownFile, AbstractContextManager[Path]]:
    """The file to read, and a context for its path. Entering the context starts a download."""
    folder = data_folder(data, "omniglot")
    if folder is None:
        return archive[0], downloaded(archive[0], base_url)
    file, path = local_file(archive, folder)
    return file, nullcontext(path)


def _read_zip(path: Path, size: int) -> np.ndarray:
    with zipfile.ZipFile(path) as content:
        characters = _characters(content).values()
        return np.array(
            [[read_drawing(content, name, size) for name in names] for names in characters]
        )


def read_drawing(content: zipfile.ZipFile, name: str, size: int) -> np.ndarray:
    """An image of an archive, uint8 `(size, size)`, ink 255 and paper 0."""
    with _pillow().open(io.BytesIO(content.read(name))) as paper:
        return _scaled(np.asarray(paper, dtype=bool), size)


def _characters(content: zipfile.ZipFile) -> dict[PurePosixPath, list[str]]:
    """Image names by folder: `images_background/Greek/character01/0394_01.png`, all sorted."""
    characters: dict[PurePosixPath, list[str]] = {}
    for name in sorted(content.namelist()):
        path = PurePosixPath(name)
        if path.suffix == ".png" and not path.name.startswith("."):  # no files of file managers
            characters.setdefault(path.parent, []).append(name)
    return characters


def _read_npz(path: Path, size: int) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        papers = arrays["images"]  # bool (characters, 20, 105, 105), True is paper
    return np.array([[_scaled(paper, size) for paper in character] for character in papers])


def _scaled(paper: np.ndarray, size: int) -> np.ndarray:
    """Bool `(105, 105)`, True is paper, to uint8 `(size, size)`, 255 is ink."""
    Image = _pillow()
    # in eight bits: Pillow scales one-bit images without antialiasing, whatever filter is asked for
    ink = Image.fromarray(np.where(paper, np.uint8(0), np.uint8(255)))
    return np.asarray(ink.resize((size, size), Image.Resampling.LANCZOS))


def _pillow() -> Any:
    return optional_package("PIL.Image", "reading drawings", extra="data")


_READERS = {".zip": _read_zip, ".npz": _read_npz}
