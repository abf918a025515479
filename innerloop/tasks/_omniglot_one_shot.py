"""The official test of one-shot classification within an alphabet of Omniglot."""

import zipfile
from pathlib import PurePosixPath

import jax.numpy as jnp
import numpy as np

from innerloop.arguments import checked
from innerloop.problem import Episode, Examples
from innerloop.tasks._omniglot import SIZE
from innerloop.tasks.array_cache import cached_array
from innerloop.tasks.images import as_unit_interval
from innerloop.tasks.known_files import Folder, KnownFile
from innerloop.tasks.omniglot_files import UPSTREAM, find, read_drawing

_MD5 = "e8996daecdf12afeeb4a53a179f06b19"
ONE_SHOT = tuple(KnownFile(name, _MD5) for name in ("all_runs.zip", "one_shot_all_runs.zip"))


@checked(size=SIZE)
def omniglot_one_shot(*, size: int = 28, data: Folder = None) -> Episode:
    """The 20 runs of 20-way one-shot classification within an alphabet: a batch of 20 episodes.

    The classes of a run are 20 characters of one of the evaluation alphabets. Support: one drawing
    of each by one drawer; query: one of each by another. Inputs are `(20, 20, size, size, 1)`, real
    numbers from 0 (paper) to 1 (ink), targets int32 `(20, 20)`; row i of both is of class i.

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
    file, source = find(ONE_SHOT, data, f"{UPSTREAM}one-shot-classification/")

    def read() -> np.ndarray:
        with source as path, zipfile.ZipFile(path) as content:
            return _read(content, size)

    images = jnp.asarray(cached_array(f"omniglot-one-shot-{file.md5}-{size}px", read))
    inputs = as_unit_interval(images)[..., None]
    targets = jnp.broadcast_to(jnp.arange(images.shape[2], dtype=jnp.int32), images.shape[:3])
    support, query = (Examples(inputs[:, part], targets[:, part]) for part in (0, 1))
    return Episode(support, query)


def _read(content: zipfile.ZipFile, size: int) -> np.ndarray:
    """uint8 `(runs, support or query, classes, size, size)`.

    `runNN/class_labels.txt` has a line for each test drawing, and the training drawing beside it
    that is of the same character.
    """
    names = {PurePosixPath(name) for name in content.namelist()}
    lists = sorted(name for name in names if name.name == "class_labels.txt")
    runs = []
    for name in lists:
        lines = content.read(str(name)).decode().splitlines()
        pairs = sorted(line.split()[::-1] for line in lines if line.strip())
        runs.append(
            [[read_drawing(content, pair[part], size) for pair in pairs] for part in (0, 1)]
        )
    return np.array(runs)
