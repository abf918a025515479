"""Classification tasks, drawn from images whose pixels say which class, example and turn they are.

A coded image is 2×2: a marker (255) top left, the character top right, the example bottom right.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from innerloop.errors import DataError, StructureError
from innerloop.tasks import (
    ClassificationTasks,
    LabelledRows,
    Splits,
    check_disjoint,
    upright,
    with_quarter_turns,
)

CHARACTERS, EXAMPLES = 5, 6


def coded(characters=CHARACTERS, examples=EXAMPLES):
    images = np.zeros((characters, examples, 2, 2), np.uint8)
    images[:, :, 0, 0] = 255
    images[:, :, 0, 1] = np.arange(characters)[:, None] + 1
    images[:, :, 1, 1] = np.arange(examples)[None, :] + 1
    return images


def decode(inputs):
    """(character, example, turns) of each row: `(rows, 3)`."""
    found = []
    for image in np.round(np.asarray(inputs)[..., 0] * 255).astype(int):
        turns = next(k for k in range(4) if np.rot90(image, -k)[0, 0] == 255)
        back = np.rot90(image, -turns)
        assert back[1, 0] == 0
        found.append((back[0, 1] - 1, back[1, 1] - 1, turns))
    return np.array(found)


@partial(jax.jit, static_argnums=2)
def batch(tasks, key, n):
    return tasks.sample(key, n)


def sample(tasks, n, seed=0):
    episodes = batch(tasks, jax.random.key(seed), n)
    return [jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), episodes) for i in range(n)]


def classes_by_label(examples):
    """{label: set of (character, turns)}."""
    rows = decode(examples.inputs)
    return {
        label: {(c, t) for c, _, t in rows[examples.targets == label].tolist()}
        for label in np.unique(examples.targets).tolist()
    }


def turned(classes):
    """(character, turns) of each class."""
    turns = [0] * len(classes) if classes.turns is None else classes.turns.tolist()
    return [(int(classes.members(i)[0]) // EXAMPLES, turn) for i, turn in enumerate(turns)]


SHAPES = [  # few, as each is compiled: all classes of a table, all examples, neither
    (upright, CHARACTERS, 1, 2),
    (with_quarter_turns, 4 * CHARACTERS, 2, 1),
    (with_quarter_turns, 3, 2, EXAMPLES - 2),
]


@settings(max_examples=20, deadline=None)
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**31))
def test_a_task_is_what_it_should_be(shape, seed):
    make, ways, shots, queries = shape
    classes = make(coded())
    table = set(turned(classes))
    for task in sample(ClassificationTasks(classes, ways, shots, queries), 6, seed):
        for examples, rows in [(task.support, shots), (task.query, queries)]:
            assert examples.inputs.shape == (ways * rows, 2, 2, 1)
            assert examples.inputs.dtype == np.float32
            assert examples.targets.dtype == np.int32
            assert np.bincount(examples.targets).tolist() == [rows] * ways
        # one class per label, another for each, the same in support and query, all in the table
        labels = classes_by_label(task.support)
        assert labels == classes_by_label(task.query)
        assert all(len(classes) == 1 for classes in labels.values())
        drawn = set.union(*labels.values())
        assert len(drawn) == ways
        assert drawn <= table
        # no example twice, neither within a set nor between support and query
        rows = np.concatenate([decode(task.support.inputs), decode(task.query.inputs)])
        assert len(np.unique(rows, axis=0)) == ways * (shots + queries)


def test_turned_images_are_numpys_rot90_of_the_stored_ones():
    images = np.random.RandomState(0).randint(0, 256, (3, 4, 5, 5, 2)).astype(np.uint8)
    tasks = ClassificationTasks(with_quarter_turns(images), ways=2, shots=2, queries=2)
    stored = {
        np.rot90(images[c, e], k).tobytes(): (c, e, k)
        for c in range(3)
        for e in range(4)
        for k in range(4)
    }
    seen = set()
    for task in sample(tasks, 30):
        for image in np.round(task.query.inputs * 255).astype(np.uint8):
            seen.add(stored[image.tobytes()])
    assert {turns for _, _, turns in seen} == {0, 1, 2, 3}


def test_some_of_the_turns_may_be_classes():
    some = with_quarter_turns(coded()).only([0, CHARACTERS, 3 + 2 * CHARACTERS])
    assert turned(some) == [(0, 0), (0, 1), (3, 2)]
    assert some.names == ("0", "0 turned 90°", "3 turned 180°")
    for task in sample(ClassificationTasks(some, ways=3, shots=1, queries=1), 5):
        assert set.union(*classes_by_label(task.support).values()) == set(turned(some))


def test_a_row_tells_where_it_comes_from():
    for make in (upright, with_quarter_turns):
        classes = make(coded())
        for task in sample(ClassificationTasks(classes, ways=3, shots=2, queries=(1, 3)), 6):
            for part in (task.support, task.query):
                counts = part.mask
                assert (np.asarray(part.source)[~counts] == -1).all()
                drawn = decode(part.inputs[counts])
                of_class, row = np.asarray(part.source)[counts].T
                assert [turned(classes)[i] for i in of_class] == [(c, t) for c, _, t in drawn]
                assert row.tolist() == [c * EXAMPLES + e for c, e, _ in drawn]


def test_upright_and_turned_tables():
    assert turned(upright(coded(2))) == [(0, 0), (1, 0)]
    assert sorted(turned(with_quarter_turns(coded(2)))) == [
        (c, k) for c in range(2) for k in range(4)
    ]
    assert len(with_quarter_turns(coded())) == 4 * CHARACTERS


def assert_uniform(values, kinds):
    """Counts of `kinds` values are equal up to chance (chi-square)."""
    expected = len(values) / kinds
    chi_square = np.sum((np.bincount(values, minlength=kinds) - expected) ** 2) / expected
    # mean kinds - 1, variance 2 (kinds - 1): five standard deviations
    assert chi_square < (kinds - 1) + 5 * np.sqrt(2 * (kinds - 1))


def test_classes_and_examples_are_uniform_and_independent():
    tasks = ClassificationTasks(with_quarter_turns(coded()), ways=2, shots=1, queries=1)
    support = batch(tasks, jax.random.key(0), 4000).support.inputs
    first, second = decode(support[:, 0]), decode(support[:, 1])
    classes = 4 * CHARACTERS
    for rows in (first, second):
        drawn = rows[:, 0] * 4 + rows[:, 2]
        assert_uniform(drawn, classes)
        assert_uniform(drawn * EXAMPLES + rows[:, 1], classes * EXAMPLES)
    assert_uniform(first[:, 1] * EXAMPLES + second[:, 1], EXAMPLES**2)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (np.full((2, 2, 3, 3), 51, np.uint8), 0.2),
        (np.full((2, 2, 3, 3), 255, np.uint8), 1.0),
        (np.ones((2, 2, 3, 3), bool), 1.0),
        (np.full((2, 2, 3, 3), 0.25, np.float32), 0.25),
        (np.full((2, 2, 3, 3), -2.5, np.float32), -2.5),
    ],
)
def test_pixels_become_real_numbers(images, expected):
    task = sample(ClassificationTasks(images, ways=2, shots=1, queries=1), 1)[0]
    assert task.support.inputs.dtype == np.float32
    np.testing.assert_allclose(task.support.inputs, expected, rtol=1e-6)


def test_floating_point_images_keep_their_type():
    images = jnp.zeros((2, 2, 3, 3, 1), jnp.bfloat16)
    task = sample(ClassificationTasks(images, ways=2, shots=1, queries=1), 1)[0]
    assert task.support.inputs.dtype == jnp.bfloat16


def test_images_that_are_not_square_may_stay_upright():
    images = np.zeros((3, 2, 4, 6, 3), np.uint8)
    task = sample(ClassificationTasks(images, ways=2, shots=1, queries=1), 1)[0]
    assert task.support.inputs.shape == (2, 4, 6, 3)


def test_images_are_held_once_in_the_type_they_came_in():
    classes = with_quarter_turns(coded())
    assert classes.rows.dtype == jnp.uint8
    assert classes.rows.shape == (CHARACTERS * EXAMPLES, 2, 2, 1)
    assert ClassificationTasks(classes, 2, 1, 1).classes.rows is classes.rows


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ways": 21}, DataError, "ways=21 of 20 classes"),
        ({"ways": 1}, StructureError, "ways=1"),
        ({"shots": 0}, StructureError, "shots=0"),
        ({"queries": 0}, StructureError, "queries=0"),
        ({"shots": 4, "queries": 3}, DataError, r"shots=4 \+ queries=3 of 6 examples"),
    ],
)
def test_tasks_that_cannot_be_drawn_are_refused(arguments, error, message):
    with pytest.raises(error, match=message) as raised:
        ClassificationTasks(
            with_quarter_turns(coded()), **{"ways": 2, "shots": 1, "queries": 1, **arguments}
        )
    assert raised.value.write


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: upright(np.zeros((2, 2, 2), np.uint8)), StructureError, r"shape \(2, 2, 2\)"),
        (lambda: upright(np.zeros((2, 2, 2, 2), np.int64)), StructureError, "int"),
        (lambda: upright(np.zeros((2, 0, 2, 2), np.uint8)), DataError, r"shape \(2, 0, 2, 2\)"),
        (lambda: with_quarter_turns(np.zeros((2, 2, 2, 3), bool)), StructureError, "2×3"),
        (lambda: upright(coded()).only([99]), StructureError, "99"),
        (lambda: upright(coded()).only([-1]), StructureError, "from 0 to"),
        (lambda: upright(coded()).only([1, 1]), StructureError, "different"),
        (lambda: upright(coded()).only([]), DataError, "no classes"),
    ],
)
def test_images_and_tables_that_do_not_fit_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_splits_that_share_an_image_are_found_whatever_its_turn():
    first, second, third = np.random.RandomState(0).randint(0, 256, (3, 2, 4, 3, 3), np.uint8)
    check_disjoint(Splits(upright(first), upright(second), upright(third)))
    third[1, 2] = np.rot90(first[0, 3])
    with pytest.raises(DataError, match=r"train and test share images.*1 images"):
        check_disjoint(Splits(upright(first), upright(second), upright(third)))


def test_splits_of_images_that_are_not_square_are_checked_as_well():
    first, second, third = np.random.RandomState(0).randint(0, 256, (3, 2, 4, 2, 3), np.uint8)
    check_disjoint(Splits(upright(first), upright(second), upright(third)))
    second[0, 0] = third[1, 1]
    with pytest.raises(DataError, match="validation and test share images"):
        check_disjoint(Splits(upright(first), upright(second), upright(third)))


def test_labelled_images_say_which_of_all_classes_each_is():
    classes = with_quarter_turns(coded())
    table = np.array(turned(classes))
    for task in sample(LabelledRows(classes, rows=40), 3):
        assert task.query.inputs.shape == (40, 2, 2, 1)
        rows = decode(task.query.inputs)
        np.testing.assert_array_equal(rows[:, [0, 2]], table[np.asarray(task.query.targets)])
        assert len(np.unique(rows[:, 1])) > 1
        np.testing.assert_array_equal(task.support.targets, task.query.targets)
    with pytest.raises(StructureError, match=r"rows must be .*Write: LabelledRows"):
        LabelledRows(classes, rows=0)
