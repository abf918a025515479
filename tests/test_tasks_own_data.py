"""Tasks from data of any form: by class, by data set, and from an iterator."""

import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import innerloop as il
from innerloop.tasks import ClassificationTasks, DataSetTasks, IteratedTasks, by_label

KEY = jax.random.key(0)
LABELS = np.array(["sit", "run", "walk", "fall"])[
    [0, 1, 2, 3, 1, 1, 0, 2, 2, 2, 3, 0, 3, 3, 0, 1] * 2
]
ROWS = np.arange(len(LABELS))


def of_rows(*shape, dtype=np.float32):
    """Data whose first number is the number of its row."""
    data = np.zeros((len(LABELS), *shape), dtype)
    data.reshape(len(LABELS), -1)[:, 0] = ROWS
    return data


DATA = {
    "vectors": of_rows(3),
    "numbers": of_rows(),
    "signals": of_rows(50, 2),
    "tokens": of_rows(7, dtype=np.int32),
    "bytes": of_rows(4, dtype=np.uint8),
    "volumes": of_rows(3, 4, 5, 1),
    "a dictionary": {"ids": of_rows(2, dtype=np.int32), "about": (of_rows(4), of_rows())},
    "arrays of the device": jnp.asarray(of_rows(2)),
}


def numbers(inputs):
    """The number of the row, as every part of the data tells it."""
    leaves = [
        np.asarray(leaf).reshape(*leaf.shape[:2], -1)[..., 0] for leaf in jax.tree.leaves(inputs)
    ]
    assert all((leaf == leaves[0]).all() for leaf in leaves)
    return leaves[0].astype(int)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize(
    ("shots", "queries"),
    [(2, 3), (2, (1, 4)), ((1, 3), il.tasks.PerClass(2, 4)), (il.tasks.PerClass(1, 2), 3)],
    ids=str,
)
def test_a_row_of_a_task_is_a_row_of_the_data(name, shots, queries):
    """With its class, in its type, once in the task, and with its place in the data."""
    classes = by_label(DATA[name], LABELS)
    assert classes.names == ("fall", "run", "sit", "walk")
    tasks = ClassificationTasks(classes, ways=3, shots=shots, queries=queries)
    episodes = tasks.sample(KEY, 8)
    given = [leaf.dtype for leaf in jax.tree.leaves(DATA[name])]
    seen = []
    for part in (episodes.support, episodes.query):
        assert [leaf.dtype for leaf in jax.tree.leaves(part.inputs)] == given
        counts = np.ones(part.targets.shape, bool) if part.mask is None else np.asarray(part.mask)
        of_class, row = np.moveaxis(np.asarray(part.source), -1, 0)
        assert (numbers(part.inputs)[counts] == row[counts]).all()
        assert (np.array(classes.names)[of_class[counts]] == LABELS[row[counts]]).all()
        assert (row[~counts] == -1).all() and not numbers(part.inputs)[~counts].any()
        for task in range(8):
            pairs = np.stack([part.targets[task], of_class[task]])[:, counts[task]]
            assert len(np.unique(pairs, axis=1).T) == 3
        seen.append(np.where(counts, row, -1))
    for task in np.concatenate(seen, axis=1):
        drawn = task[task >= 0]
        assert len({*drawn.tolist()}) == len(drawn)


def test_numbers_of_queries_are_all_equally_likely():
    tasks = ClassificationTasks(by_label(DATA["vectors"], LABELS), 2, 1, (1, 4))
    counts = np.asarray(tasks.sample(KEY, 400).query.mask).sum(axis=1) // 2
    assert np.abs(np.bincount(counts, minlength=5)[1:] - 100).max() < 40


@pytest.mark.parametrize("split", [il.tasks.split_classes, il.tasks.split_rows])
def test_splits_share_nothing_and_lose_nothing(split):
    labels = np.repeat(np.arange(12), [9, 7, 8, 5, 6, 9, 9, 8, 7, 6, 5, 9])
    classes = by_label(np.arange(len(labels))[:, None], labels)
    splits = split(classes)
    il.tasks.check_disjoint(splits)
    rows = np.concatenate([np.asarray(part.order) for part in splits])
    assert sorted(rows.tolist()) == list(range(len(labels)))
    for part in splits:
        for i, name in enumerate(part.names):
            assert {*labels[part.members(i)].tolist()} == {int(name)}
    again, other = split(classes), split(classes, seed=1)
    assert [part.order.tolist() for part in again] == [part.order.tolist() for part in splits]
    assert [part.order.tolist() for part in other] != [part.order.tolist() for part in splits]
    if split is il.tasks.split_rows:
        assert [part.names for part in splits] == [classes.names] * 3
    else:
        assert [len(part) for part in splits] == [7, 3, 2]


IMAGES = np.random.default_rng(0).integers(0, 256, (9, 4, 3, 3), np.uint8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: by_label(["a", "b"], [0, 1]), "StructureError", "arrays of numbers"),
        (lambda: by_label({}, []), "StructureError", "arrays of numbers"),
        (lambda: by_label({"a": ROWS, "b": [1]}, LABELS), "StructureError", r"rows\['b'\]"),
        (lambda: by_label(np.float32(3), [0]), "StructureError", r"rows \(\)"),
        (
            lambda: by_label(ROWS, LABELS[:-1]),
            "StructureError",
            r"labels of shape \(31,\), 32 rows",
        ),
        (lambda: by_label(ROWS, ROWS / 2), "StructureError", "whole numbers or text.*float64"),
        (lambda: by_label(ROWS[:0], ROWS[:0]), "DataError", "no classes"),
        (lambda: by_label({"x": [np.inf, 1.0]}, [0, 1]), "StructureError", r"rows\['x'\]\[0\]"),
        (lambda: by_label(np.array([1, np.nan]), [0, 1]), "DataError", r"1 of 2.*rows\[1\]"),
        (
            lambda: il.tasks.split_classes(by_label(ROWS, LABELS)),
            "DataError",
            "too few classes.*at least 2",
        ),
        (
            lambda: il.tasks.split_rows(by_label(ROWS[:8], LABELS[:8])),
            "DataError",
            "rows of class 'fall'",
        ),
        (
            lambda: il.tasks.split_classes(by_label(ROWS, ROWS), (0.5, 0.5, 0.5)),
            "StructureError",
            "add up to 1",
        ),
        (
            lambda: il.tasks.split_rows(il.tasks.with_quarter_turns(IMAGES)),
            "StructureError",
            "without a leak",
        ),
        (lambda: DataSetTasks([], 1, 1), "DataError", "no classes|no data set"),
        (
            lambda: DataSetTasks([(ROWS, ROWS)], 1, 1),
            "StructureError",
            "pair of inputs and targets",
        ),
        (
            lambda: DataSetTasks({"a": il.Examples(ROWS, ROWS)}, 32, 1),
            "DataError",
            "support=32 of 32 rows of 'a'",
        ),
        (
            lambda: DataSetTasks([il.Examples(ROWS, ROWS), il.Examples(ROWS[:, None], ROWS)], 1, 1),
            "StructureError",
            "same shapes",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(call, error, message, as_users_see_it):
    with pytest.raises(getattr(il.errors, error), match=message):
        call()


# --- data sets ------------------------------------------------------------------------------------

SIZES = {"small": 4, "middle": 9, "large": 30}
SETS = {
    name: il.Examples(np.arange(n, dtype=np.float32)[:, None] + 100 * i, np.full(n, i))
    for i, (name, n) in enumerate(SIZES.items())
}


@pytest.mark.parametrize("support", [3, (1, 3)], ids=str)
@pytest.mark.parametrize("queries", [1, 5, 50])
def test_a_task_is_rows_of_one_data_set(support, queries):
    tasks = DataSetTasks(SETS, support=support, queries=queries)
    episodes = tasks.sample(KEY, 300)
    sizes = np.array([*SIZES.values()])
    chosen = np.asarray(episodes.support.source)[:, 0, 0]
    assert np.abs(np.bincount(chosen) - 100).max() < 40
    for part in (episodes.support, episodes.query):
        mask, (of_set, row) = np.asarray(part.mask), np.moveaxis(np.asarray(part.source), -1, 0)
        assert (of_set[mask] == np.broadcast_to(chosen[:, None], mask.shape)[mask]).all()
        assert (np.asarray(part.inputs)[..., 0][mask] == (100 * of_set + row)[mask]).all()
        assert (np.asarray(part.targets)[mask] == of_set[mask]).all()
        assert not np.asarray(part.inputs)[~mask].any() and (row[~mask] == -1).all()
    learned = np.asarray(episodes.support.mask).sum(axis=1)
    assert {*learned.tolist()} == ({3} if support == 3 else {1, 2, 3})
    tested = np.asarray(episodes.query.mask).sum(axis=1)
    assert (tested == np.minimum(queries, sizes[chosen] - 3)).all()
    both = np.concatenate([episodes.support.source, episodes.query.source], axis=1)[..., 1]
    for rows in both:
        drawn = rows[rows >= 0]
        assert len({*drawn.tolist()}) == len(drawn)


# --- iterators ------------------------------------------------------------------------------------


def learning(tasks, steps, start=0.0, **options):
    problem = il.Problem(
        init=lambda meta, support, key: meta,
        inner_loss=lambda params, meta, batch, key: jnp.mean((params - batch.inputs[:, 0]) ** 2),
        outer_loss=lambda params, meta, batch, key: jnp.mean((params - batch.inputs[:, 0]) ** 2),
    )
    learner = il.GradientDescent(optax.sgd(0.1), 2)
    estimator = il.WholeTasks(problem, learner, il.Unroll(), tasks, batch=3)
    adam, key = optax.adam(0.01), jax.random.key(5)
    meta = jnp.float32(start)
    return estimator, il.fit(
        estimator, meta, optimizer=adam, steps=steps, key=key, per_call=4, **options
    )


def test_the_same_tasks_from_an_iterator_give_the_same_bits():
    """In fit, from NumPy and from the device."""
    classes = by_label(DATA["vectors"], LABELS)
    device = ClassificationTasks(classes, ways=2, shots=2, queries=3)
    estimator, expected = learning(device, 10)

    def iterate(epoch):
        for step in itertools.count():
            batch = il.training.tasks_of_step(estimator, jax.random.key(5), step).episodes
            for i in range(3):
                yield jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), batch)

    _, found = learning(IteratedTasks(iterate), 10)
    assert float(found.meta) == float(expected.meta) != 0.0


def tasks_of(numbers):
    rows = lambda n: il.Examples(np.full((2, 1), n, np.float32), np.zeros(2, np.float32))
    return [il.Episode(rows(n), rows(n + 0.5)) for n in numbers]


def test_epochs_follow_each_other():
    begun = []

    def iterate(epoch):
        begun.append(epoch)
        return iter(tasks_of(range(10 * epoch, 10 * epoch + 5)))

    tasks = IteratedTasks(iterate, ahead=2)
    first = tasks.feed(KEY, 0, 2, 3)
    assert first.support.inputs[..., 0, 0].tolist() == [[0, 1, 2], [3, 4, 10]]
    assert tasks.feed(KEY, 2, 1, 3).support.inputs[..., 0, 0].tolist() == [[11, 12, 13]]
    tasks.close()
    again = tasks.feed(KEY, 2, 1, 3)  # as after a restart
    assert again.support.inputs[..., 0, 0].tolist() == [[11, 12, 13]]
    assert tasks.sample(KEY, 2).support.inputs[:, 0, 0].tolist() == [0, 1]
    tasks.close()


def test_a_run_goes_on_where_the_iterator_was(tmp_path):
    iterate = lambda epoch: iter(tasks_of(np.random.default_rng(epoch).normal(size=7)))
    checkpoints = lambda name: il.training.Checkpoints(tmp_path / name, every=4)
    _, whole = learning(IteratedTasks(iterate), 16, checkpoints=checkpoints("whole"))
    learning(IteratedTasks(iterate), 8, checkpoints=checkpoints("parts"))
    parts = learning(IteratedTasks(iterate), 16, checkpoints=checkpoints("parts"), resume=True)[1]
    assert float(parts.meta) == float(whole.meta)


def test_a_thread_ends_with_its_reader():
    reading = lambda: [each for each in threading.enumerate() if each.name == "IteratedTasks"]
    before = reading()  # of other tests that have just ended
    tasks = IteratedTasks(lambda epoch: iter(tasks_of(range(3))))
    tasks.feed(KEY, 0, 1, 2)
    (own,) = [each for each in reading() if each not in before]
    tasks.close()
    own.join(10)
    assert not own.is_alive()


@pytest.mark.parametrize(
    ("iterate", "error", "message"),
    [
        (lambda epoch: [], il.errors.DataError, "no task"),
        (lambda epoch: iter([1]), il.errors.StructureError, "one task after the other.*1"),
        (
            lambda epoch: iter([*tasks_of([1]), il.Episode(np.zeros(2), np.zeros(3))]),
            il.errors.StructureError,
            "same shapes",
        ),
        (lambda epoch: 1 / 0, ZeroDivisionError, "zero"),
    ],
)
def test_what_is_wrong_with_an_iterator_is_raised_where_it_is_read(iterate, error, message):
    tasks = IteratedTasks(iterate)
    with pytest.raises(error, match=message):
        tasks.feed(KEY, 0, 1, 2)
    with pytest.raises(error, match=message):
        tasks.sample(KEY, 2)
    tasks.close()
