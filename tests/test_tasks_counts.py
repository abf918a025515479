"""Tasks of different sizes: what is drawn, and that padding changes neither losses nor gradients.

A coded image is 2×2: a marker (255) top left, the class top right, the example bottom right.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import without

import innerloop as il

CLASSES, EXAMPLES = 6, 9


def coded(counts=None):
    """Images that say what they are; those beyond a class's count say that they are of none."""
    images = np.zeros((CLASSES, EXAMPLES, 2, 2), np.uint8)
    images[:, :, 0, 0] = 255
    images[:, :, 0, 1] = np.arange(CLASSES)[:, None] + 1
    images[:, :, 1, 1] = np.arange(EXAMPLES)[None, :] + 1
    for row, count in enumerate(counts or []):
        images[row, count:] = 99
    return images


@jax.jit
def _sample(tasks, keys):
    return jax.vmap(tasks.sample_one)(keys)


def sample(tasks, n, seed=0):
    return jax.tree.map(np.asarray, _sample(tasks, jax.random.split(jax.random.key(seed), n)))


def sizes(examples, ways):
    """Rows of each label that count: (tasks, ways)."""
    members = examples.targets[:, :, None] == np.arange(ways)
    return np.sum(members & examples.mask[:, :, None], axis=1)


def assert_uniform(values, least, most):
    counts = np.bincount(values)[least:]
    assert counts.sum() == values.size, "some are below the range"
    assert len(counts) == most - least + 1
    expected = values.size / len(counts)
    assert np.sum((counts - expected) ** 2) / expected < 25


def test_tasks_of_fixed_size_are_those_of_ever():
    """The draw, written down: classes, then examples, each the largest of random numbers."""
    images = np.random.RandomState(0).randint(0, 256, (CLASSES, EXAMPLES, 3, 3, 1), np.uint8)
    tasks = il.tasks.ClassificationTasks(images, ways=3, shots=2, queries=4)
    key = jax.random.key(5)
    class_key, example_key = jax.random.split(jax.random.split(key, 1)[0])
    classes = np.argsort(-jax.random.uniform(class_key, (CLASSES,), jnp.float32))[:3]
    numbers = jax.random.uniform(example_key, (3, EXAMPLES), jnp.float32)
    chosen = images[classes[:, None], np.argsort(-numbers, axis=1)[:, :6]]
    episode = jax.tree.map(lambda leaf: leaf[0], tasks.sample(key, 1))
    for examples, rows in [(episode.support, chosen[:, :2]), (episode.query, chosen[:, 2:])]:
        pixels = np.round(np.asarray(examples.inputs) * 255)
        np.testing.assert_array_equal(pixels, rows.reshape(-1, 3, 3, 1))
    assert episode.support.mask is episode.support.classes is episode.query.mask is None


def test_ways_and_shots_are_drawn_from_their_ranges():
    tasks = il.tasks.ClassificationTasks(coded(), ways=(2, 5), shots=(1, 3), queries=2)
    task = sample(tasks, 600)
    support, query = sizes(task.support, 5), sizes(task.query, 5)
    ways = np.sum(support > 0, axis=1)
    assert_uniform(ways, 2, 5)
    assert_uniform(support[:, 0], 1, 3)
    for part, rows in [(support, support[:, 0]), (query, np.full(600, 2))]:
        # labels 0 … ways - 1, as many rows of each
        np.testing.assert_array_equal(part, rows[:, None] * (np.arange(5) < ways[:, None]))
    for examples in (task.support, task.query):
        present = np.broadcast_to(np.arange(5) < ways[:, None, None], examples.classes.shape)
        np.testing.assert_array_equal(examples.classes, present)
        assert not examples.inputs[~examples.mask].any()
        assert not examples.targets[~examples.mask].any()


def test_shots_per_class_are_drawn_for_each():
    tasks = il.tasks.ClassificationTasks(coded(), ways=4, shots=il.tasks.PerClass(1, 3), queries=2)
    task = sample(tasks, 400)
    support = sizes(task.support, 4)
    assert_uniform(support.ravel(), 1, 3)
    pairs = (support[:, 0] - 1) * 3 + support[:, 1] - 1
    assert_uniform(pairs, 0, 8)  # one class's number says nothing of another's
    assert (sizes(task.query, 4) == 2).all()
    assert task.support.classes is task.query.classes is None  # every output is a class


def test_examples_that_are_not_there_are_never_drawn():
    counts = [9, 4, 5, 9, 4, 6]
    classes = il.tasks.with_quarter_turns(coded(counts), counts)
    tasks = il.tasks.ClassificationTasks(classes, ways=4, shots=1, queries=3)
    task = sample(tasks, 200)
    inputs = np.concatenate([task.support.inputs, task.query.inputs], axis=1)
    pixels = np.round(inputs[..., 0] * 255).astype(int)
    drawn = np.sort(pixels.reshape(-1, 4), axis=1)
    assert (drawn[:, 0] == 0).all() and (drawn[:, 3] == 255).all()
    # all of the examples of the smallest class, each time one of its turns is drawn
    assert classes.fewest == 4
    batch = il.tasks.LabelledRows(classes, rows=30).sample(jax.random.key(0), 20)
    drawn = np.asarray(jnp.round(batch.query.inputs * 255)).reshape(-1, 4)
    assert (drawn.max(axis=1) == 255).all()


def test_splits_may_share_what_rows_are_filled_up_with():
    images = np.random.RandomState(0).randint(1, 256, (3, 2, 3, 4, 4), np.uint8)
    images[:, :, 2] = 0
    il.tasks.check_disjoint(il.tasks.Splits(*(il.tasks.upright(part, [2, 2]) for part in images)))
    images[0, 0, 0] = images[2, 1, 1]
    with pytest.raises(il.errors.DataError, match="train and test share images"):
        il.tasks.check_disjoint(
            il.tasks.Splits(*(il.tasks.upright(part, [2, 2]) for part in images))
        )


# --- padding changes nothing ----------------------------------------------------------------------


def unpadded(examples):
    """The rows that count, and no word of what was left out."""
    rows = np.flatnonzero(examples.mask)
    return il.Examples(jnp.asarray(examples.inputs[rows]), jnp.asarray(examples.targets[rows]))


def networks(ways):
    features = il.models.conv_features(4, blocks=2)
    return {
        "maml": il.recipes.maml(
            il.models.conv4(ways, 4, blocks=2), il.models.cross_entropy, rate=0.4, steps=1
        ),
        "protonet": il.recipes.protonet(features, il.models.cross_entropy, ways),
        "r2d2": il.recipes.r2d2(features, il.models.cross_entropy, ways),
        "logistic_head": il.recipes.logistic_head(features, il.models.cross_entropy, ways),
        "svm_head": il.recipes.svm_head(features, il.models.cross_entropy, ways),
    }


def with_outputs(meta, ways):
    """The same meta-parameters with so many outputs."""
    if "head" not in meta:
        return meta
    return {**meta, "head": jax.tree.map(lambda leaf: leaf[..., :ways], meta["head"])}


@pytest.mark.parametrize("name", without({"logistic_head", "svm_head", "maml"}, networks(2)))
def test_a_padded_task_is_the_smaller_task(name, x64):
    """Same loss, same accuracy, same meta-gradient, with batch statistics, for 3 of 5 classes."""
    images = np.random.RandomState(0).rand(CLASSES, EXAMPLES, 8, 8)
    tasks = il.tasks.ClassificationTasks(
        images, ways=(2, 5), shots=il.tasks.PerClass(1, 4), queries=3
    )
    drawn = sample(tasks, 40)
    ways = drawn.support.classes[:, 0].sum(axis=1)
    padded = jax.tree.map(lambda leaf: leaf[np.flatnonzero(ways == 3)[0]], drawn)
    small = il.Episode(unpadded(padded.support), unpadded(padded.query))
    assert len(small.query.targets) == 9 < len(padded.query.targets) == 15

    full, part = networks(5)[name], networks(3)[name]
    meta = full.init_meta(jax.random.key(1))
    results = []
    for recipe, start, episode in [(full, meta, padded), (part, with_outputs(meta, 3), small)]:
        f = jax.jit(il.meta_value_and_grad(recipe.problem, recipe.adaptation, recipe.gradient))
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], episode)
        results.append(f(start, batch, jax.random.key(2)))
    ((loss, aux), grads), ((small_loss, small_aux), small_grads) = results
    np.testing.assert_allclose(loss, small_loss, rtol=1e-6)
    np.testing.assert_allclose(aux.metrics["accuracy"], small_aux.metrics["accuracy"])
    compared = zip(
        jax.tree.leaves(with_outputs(grads, 3)), jax.tree.leaves(small_grads), strict=True
    )
    for leaf, small_leaf in compared:
        assert np.isfinite(leaf).all()
        np.testing.assert_allclose(leaf, small_leaf, rtol=1e-5, atol=1e-8)
    for leaf in jax.tree.leaves(grads.get("head", ())) if isinstance(grads, dict) else ():
        assert not leaf[..., 3:].any()  # outputs that are no classes learn nothing


def test_classes_of_another_shape_are_refused():
    examples = il.Examples(jnp.zeros((2, 1)), jnp.zeros(2, int), None, jnp.ones((2, 4), bool))
    with pytest.raises(il.errors.StructureError, match=r"bool\[2,4\].*per row and output"):
        il.models.cross_entropy(jnp.zeros((2, 3)), examples)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"ways": (3, 2)},
            il.errors.StructureError,
            r"ways=\(3, 2\).*2 <= least <= most.*Write: Cl.*ways=5",
        ),
        ({"ways": (1, 2)}, il.errors.StructureError, r"ways=\(1, 2\)"),
        ({"ways": (2, 7)}, il.errors.DataError, "ways=7 of 6 classes"),
        ({"shots": (0, 2)}, il.errors.StructureError, r"shots=\(0, 2\)"),
        (
            {"shots": il.tasks.PerClass(3, 1)},
            il.errors.StructureError,
            r"shots=PerClass\(least=3, most=1\)",
        ),
        (
            {"shots": il.tasks.PerClass(1, 9)},
            il.errors.DataError,
            r"shots=9 \+ queries=1 of 9 examples",
        ),
    ],
)
def test_ranges_that_cannot_be_drawn_from_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        il.tasks.ClassificationTasks(coded(), **{"ways": 2, "shots": 1, "queries": 1, **arguments})
