"""Handwritten digits that come with scikit-learn: image tasks without a download."""

from collections.abc import Mapping

import numpy as np

from innerloop.checks import optional_package
from innerloop.tasks.image_classes import ImageClasses, with_quarter_turns
from innerloop.tasks.splits import Splits

# (digit, quarter turns) that are classes of their own. A class must be another glyph than every
# other class, or a task may ask to tell two identical things apart:
# - a half turn maps 0, 1 and 8 onto themselves. A linear classifier tells them from their half
#   turns by slant alone (86 % of images), so each is two classes, upright and a quarter turn.
# - a 6 upside down is a 9. The two digits make four glyphs between them: 6 and 9, each upright and
#   a quarter turn. Both are in one split.
# - 2 and 5, point-symmetric in seven segments, are not so by hand: a linear classifier tells 2 from
#   its half turn in 95 %, 5 in over 99 %, and 2 from any turn of 5 in all cases (2s have a flat
#   foot, 5s a flat roof). 3, 4 and 7 have no symmetry. All of these keep their four turns.
_HALF = (0, 1)
_ALL = (0, 1, 2, 3)
_TRAIN = {0: _HALF, 1: _HALF, 2: _ALL, 6: _HALF, 8: _HALF, 9: _HALF}
_VALIDATION = {5: _ALL, 7: _ALL}
_TEST = {3: _ALL, 4: _ALL}

_BRIGHTEST = 16


def digits() -> Splits:
    """8×8 images of handwritten digits, split by digit (needs innerloop[data]).

    The quarter turns of a digit are classes of their own, but for turns that look like another
    class. Meta-training: 14 classes of 0, 1, 2, 6, 8, 9; validation: 8 of 5, 7; test: 8 of 3, 4.
    Each class has 174 examples, as many as there are of the rarest digit, 8. The images are uint8
    `(174 · digits, 8, 8, 1)`, 0 paper and 255 ink.

    Source: Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits", UCI repository,
    in `sklearn.datasets.load_digits`.
    """
    sklearn = optional_package("sklearn.datasets", "digits()", extra="data")
    images, labels = sklearn.load_digits(return_X_y=True)
    scaled = np.round(images.reshape(-1, 8, 8) * (255 / _BRIGHTEST)).astype(np.uint8)
    examples = np.bincount(labels).min()

    def classes(turns: Mapping[int, tuple[int, ...]]) -> ImageClasses:
        rows = np.stack([scaled[labels == digit][:examples] for digit in turns])
        chosen = [row + k * len(turns) for row, digit in enumerate(turns) for k in turns[digit]]
        return with_quarter_turns(rows).only(chosen)

    return Splits(classes(_TRAIN), classes(_VALIDATION), classes(_TEST))
