"""Tasks from disk: what is drawn, and runs that go on at the position in the data."""

import threading
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fitting import fit

import innerloop as il
from innerloop.tasks import streamed

pytest.importorskip("grain")

CLASSES, EXAMPLES = 7, 8
KEY = jax.random.key(0)


@pytest.fixture
def stored(tmp_path):
    """Images in a file, each of one grey that says which class and example it is."""
    codes = np.arange(CLASSES)[:, None] * EXAMPLES + np.arange(EXAMPLES)[None, :]
    images = np.broadcast_to(codes.astype(np.uint8)[..., None, None, None], (7, 8, 4, 4, 1))
    np.save(tmp_path / "images.npy", images)
    return np.load(tmp_path / "images.npy", mmap_mode="r")


def codes(examples):
    pixels = np.round(np.asarray(examples.inputs) * 255).astype(int)
    assert (pixels == pixels[..., :1, :1, :]).all()
    return pixels[..., 0, 0, 0]


def test_a_stored_task_is_what_it_should_be(stored):
    tasks = il.tasks.StreamedTasks(il.tasks.StoredImages(stored, ways=3, shots=2, queries=4))
    drawn = tasks.sample(jax.random.key(0), 200)
    assert drawn.support.inputs.shape == (200, 6, 4, 4, 1)
    assert drawn.support.inputs.dtype == np.float32
    support, query = codes(drawn.support), codes(drawn.query)
    for part, rows in [(support, 2), (query, 4)]:
        labels = part.reshape(200, 3, rows) // EXAMPLES
        assert (labels == labels[:, :, :1]).all()
        assert (
            np.sort(labels[:, :, 0], axis=1)[:, 1:] > np.sort(labels[:, :, 0], axis=1)[:, :-1]
        ).all()
    assert np.array_equal(support[:, ::2] // EXAMPLES, query[:, ::4] // EXAMPLES)
    both = np.sort(np.concatenate([support, query], axis=1), axis=1)
    assert (both[:, 1:] > both[:, :-1]).all()  # no image twice
    assert len(np.unique(both)) == CLASSES * EXAMPLES
    first = np.bincount(support[:, 0] // EXAMPLES, minlength=CLASSES)
    assert np.sum((first - 200 / 7) ** 2) / (200 / 7) < 6 + 5 * np.sqrt(12)


def test_images_that_are_not_there_are_not_drawn(stored):
    counts = (8, 5, 4, 8, 8, 4, 8)
    draw = il.tasks.StoredImages(stored, ways=3, shots=1, queries=3, counts=counts)
    drawn = il.tasks.StreamedTasks(draw).sample(jax.random.key(0), 100)
    for code in np.unique(np.concatenate([codes(drawn.support), codes(drawn.query)], axis=1)):
        assert code % EXAMPLES < counts[code // EXAMPLES]


def settings(stored):
    recipe = il.recipes.protonet(il.models.conv_features(2, blocks=1), il.models.cross_entropy, 3)
    tasks = il.tasks.StreamedTasks(
        il.tasks.StoredImages(stored, ways=3, shots=1, queries=1), ahead=3
    )
    run = partial(fit, recipe, tasks, optimizer=optax.adam(1e-2), batch=2)
    return recipe, tasks, partial(run, key=jax.random.key(4))


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in leaves)


def test_a_streamed_run_goes_on_where_the_data_were(stored, tmp_path):
    """To the bit, however its steps are divided over calls and runs; each step has its tasks."""
    _, tasks, run = settings(stored)
    whole = run(steps=7, per_call=4)
    saved = il.training.Checkpoints(tmp_path / "run", every=2)
    run(steps=3, per_call=2, checkpoints=saved)
    on = run(steps=7, per_call=5, checkpoints=saved, resume=True)
    assert same(whole.meta, on.meta)
    moved = lambda step: tasks.feed(jax.random.key(0), step, 1, 2)
    assert not same(moved(3), moved(4))
    assert same(moved(3), moved(3))
    tasks.close()


def test_a_feed_is_a_function_of_its_arguments(stored):
    """Whatever was asked for before: further on, again, back, of two runs in turn."""
    _, tasks, _ = settings(stored)
    keys = jax.random.split(jax.random.key(0))
    fresh = lambda *given: settings(stored)[1].feed(*given)
    for key, first, n in [
        (0, 0, 2),
        (0, 2, 3),
        (1, 1, 2),
        (0, 3, 2),
        (0, 3, 4),
        (0, 0, 1),
        (1, 9, 1),
    ]:
        assert same(tasks.feed(keys[key], first, n, 2), fresh(keys[key], first, n, 2))
    tasks.close()


def test_nothing_is_drawn_ahead_once_a_run_has_ended(stored):
    _, tasks, run = settings(stored)
    before = threading.active_count()
    run(steps=2)
    assert not tasks._readers
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_streamed_run_is_the_run_on_those_tasks(stored):
    """The steps by hand, on the tasks that tasks_of_step says."""
    recipe, tasks, run = settings(stored)
    key, optimizer = jax.random.key(4), optax.sgd(0.1)
    meta = recipe.init_meta(jax.random.split(key, 3)[0])
    state = optimizer.init(meta)
    gradient = jax.jit(
        jax.value_and_grad(
            lambda meta, episodes, keys: jnp.mean(
                jax.vmap(il.meta_objective(*recipe[:3]), (None, 0, 0))(meta, episodes, keys)[0]
            )
        )
    )
    losses = []
    for step in range(3):
        loss, grads = gradient(
            meta, *il.training.tasks_of_step(recipe.estimator(tasks, 2), key, step)
        )
        updates, state = optimizer.update(grads, state)
        meta = optax.apply_updates(meta, updates)
        losses.append(loss)
    seen = []
    report = lambda progress: seen.extend(progress.metrics["loss"])
    outcome = run(optimizer=optimizer, steps=3, per_call=2, report=report)
    np.testing.assert_allclose(seen, losses, rtol=1e-5)
    for leaf, by_hand in zip(jax.tree.leaves(outcome.last), jax.tree.leaves(meta), strict=True):
        np.testing.assert_allclose(leaf, by_hand, rtol=1e-4, atol=1e-6)


def test_steps_that_are_skipped_take_their_tasks_along(stored):
    """A fault ends a call early: what was drawn for it is not drawn again, nor lost."""
    recipe, tasks, _ = settings(stored)

    def loss(params, meta, batch, key):
        """Infinite where the first query image is of the class with the smallest codes."""
        value, aux = recipe.problem.outer_loss(params, meta, batch, key)
        known = batch.inputs[0, 0, 0, 0] * 255 >= EXAMPLES - 0.5
        return value / known.astype(value.dtype), aux

    fragile = recipe._replace(problem=il.Problem(None, None, loss))
    ones = [
        fit(
            *(fragile, tasks),
            optimizer=optax.adam(1e-2),
            steps=20,
            batch=2,
            per_call=per_call,
            key=jax.random.key(4),
            non_finite=il.training.Skip(),
        )
        for per_call in (7, 1)
    ]
    assert ones[0].faults == ones[1].faults > 0
    assert same(ones[0].last, ones[1].last)


def test_an_error_while_drawing_ends_the_run(stored):
    recipe, _, _ = settings(stored)

    def draw(rng):
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        fit(
            *(recipe, il.tasks.StreamedTasks(draw)),
            optimizer=optax.sgd(0.1),
            steps=1,
            batch=1,
            key=jax.random.key(0),
        )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda images: il.tasks.StreamedTasks(print, threads=0),
            il.errors.StructureError,
            "threads=0",
        ),
        (lambda images: il.tasks.StoredImages(images, 1, 1, 1), il.errors.StructureError, "ways=1"),
        (lambda images: il.tasks.StoredImages(images, 8, 1, 1), il.errors.DataError, "ways=8 of 7"),
        (
            lambda images: il.tasks.StoredImages(images, 2, 4, 5),
            il.errors.DataError,
            r"queries=5 of 8",
        ),
        (
            lambda images: il.tasks.evaluation_episodes(
                il.tasks.StreamedTasks(il.tasks.StoredImages(images, 2, 1, 1)), 3, seed=0
            ),
            il.errors.StructureError,
            r"drawn by the host.*outside jax\.jit",
        ),
    ],
)
def test_what_cannot_be_streamed_is_refused(stored, make, error, message):
    with pytest.raises(error, match=message):
        make(stored)


def test_without_grain_the_cure_is_named(stored, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "grain", None)
    tasks = streamed.StreamedTasks(il.tasks.StoredImages(stored, 2, 1, 1))
    with pytest.raises(il.errors.RunError, match=r"innerloop\[data\]"):
        tasks.feed(jax.random.key(0), 0, 1, 1)


def points(values):
    return il.Episode(np.float32(values), np.float32(values))


def of_a_length(rng):
    return points(rng.normal(size=rng.integers(1, 9)))


FAULTY = {
    "the generator of the module": (
        lambda rng: points(np.random.normal(size=2)),  # noqa: NPY002
        r"another task for the same generator.*Write: the generator that draw is given",
    ),
    "a generator of its own": (
        lambda rng, own=np.random.default_rng(0): points(own.normal(size=2)),
        "another task for the same generator",
    ),
    "shapes": (of_a_length, r"do not all have the same shapes.*Examples\(inputs, targets, mask\)"),
    "a dictionary": (lambda rng: {"support": rng.normal()}, "must return one task as an Episode"),
    "a key": (
        lambda key: il.Episode(jax.random.normal(key), jax.random.normal(key)),
        r"takes a random key of JAX.*tasks.IndependentTasks\(draw\)",
    ),
    "a fault of its own": (lambda rng: points(rng.normal(scale="wide")), "draw failed on what"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_draw_that_does_not_follow_from_its_generator_is_refused(name):
    """By `sample` and by the steps of a run."""
    draw, message = FAULTY[name]
    tasks = il.tasks.StreamedTasks(draw)
    for drawn in (lambda: tasks.sample(KEY, 9), lambda: tasks.feed(KEY, 0, 1, 9)):
        with pytest.raises(il.errors.StructureError, match=message):
            drawn()


def test_one_task_for_all_generators_is_warned_of():
    fixed = il.tasks.StreamedTasks(lambda rng: points(np.random.default_rng(0).normal(size=2)))
    with pytest.warns(UserWarning, match="the same task for every generator"):
        fixed.sample(KEY, 2)
    fixed.sample(KEY, 2)  # once
    few = il.tasks.StreamedTasks(lambda rng: points(rng.integers(2, size=1)))
    few.sample(KEY, 2)
