"""The expected calibration error, against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import innerloop as il
from innerloop.training.calibration import BINS, calibration_sums, expected_calibration_error


def by_definition(probabilities, targets):
    """Guo et al. 2017, equation 3, bin by bin."""
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    error = 0.0
    for i in range(BINS):
        rows = (confidence > i / BINS) & (confidence <= (i + 1) / BINS)
        if rows.any():
            accuracy = (predicted[rows] == targets[rows]).mean()
            error += rows.mean() * abs(accuracy - confidence[rows].mean())
    return error


def batch(rows, classes=4, seed=0):
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (rows, classes))
    return jnp.asarray(logits), jnp.asarray(random.integers(0, classes, rows))


def error(sums):
    return expected_calibration_error(np.asarray(sums))


def test_it_is_the_definition_over_the_predictions_of_all_tasks():
    batches = [batch(300, seed=seed) for seed in (0, 1)]
    sums = [calibration_sums(logits, il.Examples(None, targets)) for logits, targets in batches]
    logits, targets = map(np.concatenate, zip(*batches, strict=True))
    expected = by_definition(np.asarray(jax.nn.softmax(logits)), targets)
    np.testing.assert_allclose(error(np.stack(sums)), expected, rtol=1e-5)
    # which is not the mean over tasks
    assert abs(np.mean([error(one[None]) for one in sums]) - expected) > 1e-3


@pytest.mark.parametrize(("right", "expected"), [(10, 0.25), (15, 0.0), (20, 0.25)])
def test_three_quarters_of_confidence(right, expected):
    logits = jnp.tile(jnp.log(jnp.array([0.75, 0.25])), (20, 1))
    targets = jnp.where(jnp.arange(20) < right, 0, 1)
    sums = calibration_sums(logits, il.Examples(None, targets))
    np.testing.assert_allclose(error(sums[None]), expected, atol=1e-6)


def test_padded_rows_are_not_counted():
    logits, targets = batch(30)
    mask = jnp.arange(30) < 20
    padded = logits.at[20:].set(jnp.nan)
    with_mask = calibration_sums(padded, il.Examples(None, targets, mask))
    without = calibration_sums(logits[:20], il.Examples(None, targets[:20]))
    np.testing.assert_allclose(with_mask, without, rtol=1e-5)


def test_a_class_that_is_never_predicted_and_one_that_is_certain():
    logits = jnp.array([[0.0, -jnp.inf], [100.0, 0.0]])
    sums = calibration_sums(logits, il.Examples(None, jnp.array([0, 1])))
    np.testing.assert_allclose(error(sums[None]), 0.5)


def test_what_diverged_has_no_calibration():
    logits, targets = batch(5)
    sums = calibration_sums(logits.at[2].set(jnp.nan), il.Examples(None, targets))
    assert np.isnan(error(sums[None]))


def test_evaluation_gives_it_after_each_step():
    splits, ways = il.tasks.digits(), 5
    recipe = il.recipes.maml(il.models.mlp([64, ways]), il.models.cross_entropy, rate=0.1, steps=2)
    tasks = il.tasks.ClassificationTasks(splits.test, ways, shots=1, queries=3)
    episodes, key = tasks.sample(jax.random.key(0), 4), jax.random.key(1)
    meta = recipe.init_meta(key)
    evaluation = il.evaluate(recipe.learner, meta, episodes, key, steps=2, calibration=True)
    assert evaluation.ece is not None
    assert evaluation.ece.shape == (3,)

    def probabilities(episode, key):
        params, _ = il.adapt(recipe.problem, recipe.adaptation, meta, episode.support, key)
        return jax.nn.softmax(recipe.predict(params, meta, episode.query, key))

    found = jax.vmap(probabilities)(episodes, jax.random.split(key, 4))
    expected = by_definition(
        np.asarray(found).reshape(-1, ways), np.asarray(episodes.query.targets).ravel()
    )
    np.testing.assert_allclose(evaluation.ece[-1], expected, rtol=1e-5)
    assert il.evaluate(recipe.learner, meta, episodes, key, steps=2).ece is None
