"""The real Omniglot, where INNERLOOP_DATA names a folder that has it."""

import os
import zipfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from innerloop.tasks import (
    check_disjoint,
    omniglot,
    omniglot_official,
    omniglot_one_shot,
    omniglot_small1,
    omniglot_small2,
    upright,
)

module = import_module("innerloop.tasks._omniglot")  # not the function of that name

REAL = os.environ.get("INNERLOOP_DATA")
pytestmark = pytest.mark.skipif(not REAL, reason="INNERLOOP_DATA names no folder with the data")


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("omniglot")


@pytest.fixture
def real(monkeypatch, real_cache):
    """The real data, scaled once for all tests."""
    monkeypatch.setenv("INNERLOOP_CACHE", str(real_cache))
    return Path(REAL or "")


def test_real_standard_split(real):
    splits = omniglot(data=real)
    assert [part.rows.shape for part in splits] == [(n * 20, 28, 28, 1) for n in (1100, 100, 423)]
    assert [len(part) for part in splits] == [4400, 400, 1692]
    check_disjoint(splits)
    assert 0.07 < np.asarray(splits.test.rows).mean() / 255 < 0.09


def test_real_official_split(real):
    splits = omniglot_official(data=real)
    assert [len(part.rows) // 20 for part in splits] == [868, 96, 659]
    check_disjoint(splits)


@pytest.mark.parametrize(
    ("load", "archive", "alphabets"),
    [
        (
            omniglot_small1,
            module.SMALL_1,
            {"Balinese": 24, "Early_Aramaic": 22, "Greek": 24, "Korean": 40, "Latin": 26},
        ),
        (
            omniglot_small2,
            module.SMALL_2,
            {"Greek": 24, "Japanese_(katakana)": 47, "Latin": 26, "Sanskrit": 42, "Tagalog": 17},
        ),
    ],
)
def test_real_small_sets_are_those_characters_of_the_background(real, load, archive, alphabets):
    small = load(data=real, classes=upright)
    assert {name: small.names.count(name) for name in small.names} == alphabets
    background = module.drawings(module.BACKGROUND, 28, real)
    # an official file name counts the background's characters from 1: Greek/character01/0394_01.png
    folder = real / "omniglot" if (real / "omniglot").is_dir() else real
    with zipfile.ZipFile(folder / archive[0].name) as content:
        names = [Path(name) for name in sorted(content.namelist()) if name.endswith("_01.png")]
    rows = [int(name.name[:4]) - 1 for name in names]
    found = np.asarray(small.classes.rows)[..., 0]
    np.testing.assert_array_equal(found, background[rows].reshape(found.shape))


def test_real_one_shot_runs_are_drawings_of_the_evaluation_set(real):
    """Both drawings of a class are of one character; the classes are of one alphabet."""
    runs = omniglot_one_shot(data=real)
    assert runs.support.inputs.shape == runs.query.inputs.shape == (20, 20, 28, 28, 1)
    np.testing.assert_array_equal(runs.query.targets, np.tile(np.arange(20), (20, 1)))
    evaluation = module.drawings(module.EVALUATION, 28, real)
    rows = {image.tobytes(): row for row, drawings in enumerate(evaluation) for image in drawings}

    def characters(part):
        images = np.round(255 * np.asarray(part.inputs[..., 0])).astype(np.uint8)
        return [[rows[image.tobytes()] for image in run] for run in images]

    support = characters(runs.support)
    assert support == characters(runs.query)
    # Characters lie in the order of their alphabets, of which the largest has 48.
    assert all(len(set(run)) == 20 and np.ptp(run) < 48 for run in support)


def test_real_small_splits_are_for_learning_only(real):
    splits = omniglot_official(background="small1", data=real)
    assert [len(part.rows) // 20 for part in splits] == [123, 13, 659]
    check_disjoint(splits)
