"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings of each."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from innerloop.arguments import at_least, checked
from innerloop.checks import optional_package
from innerloop.problem import Episode, Examples
from innerloop.tasks.files import Folder, KnownFile, cached_array, find
from innerloop.tasks.image_classes import ImageClasses, as_unit_interval, with_quarter_turns
from innerloop.tasks.splits import Splits

MakeClasses = Callable[[np.ndarray], ImageClasses]
"""Makes classes of the drawings `(characters, 20, size, size)`, such as `upright`."""

SIZE = at_least(1, at_most=105, such_as=28)
"""Pixels per side; the original drawings have 105."""

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

_MD5 = "e8996daecdf12afeeb4a53a179f06b19"
ONE_SHOT = tuple(KnownFile(name, _MD5) for name in ("all_runs.zip", "one_shot_all_runs.zip"))

_SEED = 1
_TRAIN, _VALIDATION = 1100, 100


@checked(size=SIZE)
def omniglot(
    *, classes: MakeClasses = with_quarter_turns, size: int = 28, data: Folder = None
) -> Splits:
    """The split of the few-shot literature: all characters mixed, regardless of alphabet.

    1,100 characters for meta-training, 100 for validation and 423 for test, as in the code of MAML
    (Finn et al. 2017; `data_generator.py`: 1,200 shuffled characters, the last 100 of them held
    out). That code shuffles in the order in which a disk lists its folders, so its split cannot be
    repeated; this one is a fixed permutation of the sorted characters, the same for every source.

    Images are uint8 `(characters, 20, size, size, 1)`, 255 ink and 0 paper. Scaled images are kept
    in the cache folder; where that cannot be written, they are made on every start.

    Source: Lake, Salakhutdinov and Tenenbaum 2015, "Human-level concept learning through
    probabilistic program induction".

    Args:
        classes: Makes the classes: `with_quarter_turns` (four per character: 4,400, 400 and 1,692)
            or `upright`.
        size: Pixels per side, at most 105 (Lanczos, antialiased). MAML's code asks for Lanczos too,
            but Pillow uses the nearest pixel for a one-bit image, so its drawings are more broken.
        data: The folder of the files, or the folder above `omniglot/`; by default the folder that
            the environment variable INNERLOOP_DATA names. The files are `images_background` and
            `images_evaluation`, either the official `.zip` or the `.npz` made from it. If neither
            is set, the official archives (16 MB) are downloaded from
            github.com/brendenlake/omniglot into the cache folder (INNERLOOP_CACHE, or the user's
            own cache).

    Raises:
        DataError: If the folder or a file is missing, has the wrong md5, or cannot be downloaded.
        StructureError: If `size` is out of range.
    """
    images = np.concatenate([drawings(part, size, data) for part in (BACKGROUND, EVALUATION)])
    order = _permutation(len(images))
    train, validation, test = np.split(order, [_TRAIN, _TRAIN + _VALIDATION])
    return Splits(classes(images[train]), classes(images[validation]), classes(images[test]))


Background = Literal["full", "small1", "small2"]


@checked(size=SIZE)
def omniglot_official(
    *,
    background: Background = "full",
    classes: MakeClasses = with_quarter_turns,
    size: int = 28,
    data: Folder = None,
) -> Splits:
    """The split of the data's authors: test characters come from alphabets never seen before.

    The 964 characters of the 30 background alphabets are for learning: a fixed random tenth of them
    (96) for validation, 868 for meta-training. The 659 characters of the 20 evaluation alphabets
    are the test. Other arguments, images, errors and source as in `omniglot`.

    Args:
        background: The alphabets for learning: all 30, or the five of one of the authors' small
            sets (`omniglot_small1`, `omniglot_small2`). A tenth of their characters is for
            validation.
    """
    # asked for here, not at the top: tests put small archives in place of the official ones
    archive = {"full": BACKGROUND, "small1": SMALL_1, "small2": SMALL_2}[background]
    known, test = drawings(archive, size, data), drawings(EVALUATION, size, data)
    validation, train = np.split(_permutation(len(known)), [len(known) // 10])
    return Splits(classes(known[train]), classes(known[validation]), classes(test))


class Alphabets(NamedTuple):
    """Classes of characters, with the alphabet of each.

    Args:
        classes: The characters; row i of its images is character i.
        names: The alphabet of each character; the characters are ordered by it.
    """

    classes: ImageClasses
    names: tuple[str, ...]


@checked(size=SIZE)
def omniglot_small1(
    *, classes: MakeClasses = with_quarter_turns, size: int = 28, data: Folder = None
) -> Alphabets:
    """136 background characters of Balinese, Early Aramaic, Greek, Korean and Latin.

    One of the authors' two small sets, for learning from as many alphabets as an adult may know.
    File: `images_background_small1.zip`. Arguments, images, errors and source as in `omniglot`.
    """
    return Alphabets(classes(drawings(SMALL_1, size, data)), alphabets(SMALL_1, data))


@checked(size=SIZE)
def omniglot_small2(
    *, classes: MakeClasses = with_quarter_turns, size: int = 28, data: Folder = None
) -> Alphabets:
    """156 background characters of Greek, Japanese (katakana), Latin, Sanskrit and Tagalog.

    The other small set (see `omniglot_small1`), which shares Greek and Latin with the first. File:
    `images_background_small2.zip`. Arguments, images, errors and source as in `omniglot`.
    """
    return Alphabets(classes(drawings(SMALL_2, size, data)), alphabets(SMALL_2, data))


@checked(size=SIZE)
def omniglot_one_shot(*, size: int = 28, data: Folder = None) -> Episode:
    """The 20 runs of 20-way one-shot classification within an alphabet: a batch of 20 episodes.

    The classes of a run are 20 characters of one of the evaluation alphabets. The support set has
    one drawing of each by one person, the query set one of each by another. Inputs are
    `(20, 20, size, size, 1)`, real numbers from 0 (paper) to 1 (ink), targets int32 `(20, 20)`; row
    i of both is of class i.

    The published number is the share of the 400 query drawings that are classified wrongly.

    Source: Lake, Salakhutdinov and Tenenbaum 2015, "Human-level concept learning through
    probabilistic program induction".

    Args:
        size: See `omniglot`.
        data: See `omniglot`. The file is `all_runs.zip`, also known as `one_shot_all_runs.zip`; it
            is downloaded if no folder is named.

    Raises:
        DataError: See `omniglot`.
        StructureError: See `omniglot`.
    """
    folder = f"{UPSTREAM}one-shot-classification/"
    images = jnp.asarray(drawings(ONE_SHOT, size, data, _read_runs, folder, axes=3))
    inputs = as_unit_interval(images)[..., None]
    targets = jnp.broadcast_to(jnp.arange(images.shape[2], dtype=jnp.int32), images.shape[:3])
    support, query = (
        Examples(inputs[:, part], targets[:, part], ways=images.shape[2]) for part in (0, 1)
    )
    return Episode(support, query)


def _permutation(count: int) -> np.ndarray:
    # RandomState, not default_rng: its stream is frozen, so a split is the same in every numpy
    return np.random.RandomState(_SEED).permutation(count)


def drawings(
    archive: Archive,
    size: int,
    data: Folder,
    read: Callable[[Path, int], np.ndarray] | None = None,
    base_url: str = UPSTREAM,
    axes: int = 2,
) -> np.ndarray:
    """All drawings of an archive, uint8 `(characters, 20, size, size)`, ink 255 and paper 0.

    The array of the one-shot runs has three axes in place of the first two.

    Characters are in the order of their alphabets' names, then of their numbers. The drawings
    are kept in the cache folder under the md5 of the file and the size, so reading and scaling
    happen once.
    """
    file, source = find(archive, "omniglot", base_url, data)

    def from_file() -> np.ndarray:
        with source as path:
            return (read or _READERS[path.suffix])(path, size)

    shape = (*[None] * axes, size, size)
    return cached_array(f"omniglot-{file.md5}-{size}px", from_file, shape)


def alphabets(archive: Archive, data: Folder) -> tuple[str, ...]:
    """The alphabet of each character of an official archive, in the order of `drawings`."""
    _, source = find(archive, "omniglot", UPSTREAM, data)
    with source as path, zipfile.ZipFile(path) as content:
        return tuple(folder.parent.name for folder in _characters(content))


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


def _read_runs(path: Path, size: int) -> np.ndarray:
    """uint8 `(runs, support or query, classes, size, size)`.

    Each line of `runNN/class_labels.txt` names a test drawing and the training drawing of the same
    character.
    """
    runs = []
    with zipfile.ZipFile(path) as content:
        for name in sorted(content.namelist()):
            if name.endswith("/class_labels.txt"):
                lines = content.read(name).decode().splitlines()
                pairs = sorted(line.split()[::-1] for line in lines if line.strip())
                drawn = [[read_drawing(content, one, size) for one in pair] for pair in pairs]
                runs.append(list(zip(*drawn, strict=True)))
    return np.array(runs)


_READERS = {".zip": _read_zip, ".npz": _read_npz}
