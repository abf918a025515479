"""The digits are scikit-learn's, and no class is another class turned."""

from itertools import combinations

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from innerloop.tasks import ClassificationTasks, check_disjoint, digits

TRAIN, VALIDATION, TEST = (0, 1, 2, 6, 8, 9), (5, 7), (3, 4)


@pytest.fixture(scope="module")
def splits():
    return digits()


@pytest.fixture(scope="module")
def glyphs(splits):
    """{split: {(digit, turns)}}."""
    digits_of = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    return {
        name: {
            (digits_of[name][part.members(i)[0] // 174], int(part.turns[i]))
            for i in range(len(part))
        }
        for name, part in splits._asdict().items()
    }


def test_splits_share_no_digit_and_no_image(splits):
    assert sorted(TRAIN + VALIDATION + TEST) == list(range(10))
    check_disjoint(splits)


def test_every_row_holds_images_of_its_digit(splits):
    images, labels = load_digits(return_X_y=True)
    original = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for part, expected in zip(splits, (TRAIN, VALIDATION, TEST), strict=True):
        stored = np.asarray(part.rows)
        assert stored.dtype == np.uint8
        assert stored.shape == (len(expected) * 174, 8, 8, 1)
        back = np.round(stored / (255 / 16)).reshape(len(expected), 174, 64)
        for row, digit in zip(back, expected, strict=True):
            assert {original[image.tobytes()] for image in row} == {digit}
            assert len(np.unique(row, axis=0)) > 170


def test_brightness_fills_the_range(splits):
    assert np.asarray(splits.train.rows).min() == 0
    assert np.asarray(splits.train.rows).max() == 255


def test_glyphs_that_a_half_turn_maps_onto_themselves_have_two_classes(glyphs):
    for digit in (0, 1, 8):
        assert {turns for d, turns in glyphs["train"] if d == digit} == {0, 1}


def test_a_six_upside_down_and_a_nine_are_never_two_classes(glyphs):
    for turns in range(4):
        assert not {(6, (turns + 2) % 4), (9, turns)} <= glyphs["train"]


def test_numbers_of_classes(glyphs):
    counts = {name: len(classes) for name, classes in glyphs.items()}
    assert counts == {"train": 14, "validation": 8, "test": 8}


def test_no_class_looks_like_another(splits):
    """Mean images correlate less than those of a 0, 1 or 8 and its half turn, which reach 0.90."""
    for part in splits:
        mean = lambda i, part=part: np.asarray(part.rows[part.members(i)], float).mean(axis=0)
        classes = [np.rot90(mean(i)[..., 0], int(part.turns[i])) for i in range(len(part))]
        for first, second in combinations(classes, 2):
            assert np.corrcoef(first.ravel(), second.ravel())[0, 1] < 0.89


def test_five_way_tasks_can_be_drawn_from_every_split(splits):
    sample = jax.jit(lambda tasks, key: tasks.sample(key, 1))
    for part in splits:
        task = sample(ClassificationTasks(part, ways=5, shots=5, queries=15), jax.random.key(0))
        assert task.support.inputs.shape == (1, 25, 8, 8, 1)
        assert 0.0 <= float(task.query.inputs.min()) < float(task.query.inputs.max()) <= 1.0
