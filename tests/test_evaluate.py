"""Evaluation after each number of inner steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import config
from points import HELD_OUT, KEY, point_loss, point_recipe, train

from innerloop.adaptation import GradientDescent
from innerloop.errors import StructureError
from innerloop.estimators.metrics import named_metrics
from innerloop.models import mean_squared_error, mlp
from innerloop.objective import adapt
from innerloop.problem import Episode, task_keys
from innerloop.recipes import maml
from innerloop.tasks import SinusoidTasks, evaluation_episodes
from innerloop.training import Validation, evaluate


def by_hand(recipe, meta, episodes, steps):
    """Loss of each task after `steps` steps, one `adapt` at a time."""
    tasks = len(jax.tree.leaves(episodes)[0])
    values = []
    for i, key in enumerate(jax.random.split(KEY, tasks)):
        episode = jax.tree.map(lambda leaf, i=i: leaf[i], episodes)
        adaptation = GradientDescent(optax.sgd(0.1), steps)
        params, _ = adapt(recipe.problem, adaptation, meta, episode.support, key)
        values.append(point_loss(params, meta, episode.query, task_keys(key).outer)[0])
    return np.asarray(values, np.float64)


def test_each_row_is_adapt_with_so_many_steps_and_the_interval_is_numpys():
    recipe, meta = point_recipe(steps=1), {"x": jnp.array([2.0, -1.0])}
    got = evaluate(recipe.learner, meta, HELD_OUT, KEY, steps=4)
    assert got.tasks == 5
    assert got.mean["loss"].shape == got.interval["loss"].shape == (5,)
    for t in range(5):  # beyond the one step of training
        values = by_hand(recipe, meta, HELD_OUT, t)
        np.testing.assert_allclose(got.mean["loss"][t], values.mean(), rtol=1e-5)
        interval = 1.96 * values.std(ddof=1) / np.sqrt(5)
        np.testing.assert_allclose(got.interval["loss"][t], interval, rtol=1e-4)


def test_the_steps_of_the_adaptation_are_taken_unless_others_are_given():
    recipe = point_recipe(steps=3)
    meta = {"x": jnp.zeros(2)}
    got = evaluate(recipe.learner, meta, HELD_OUT, KEY)
    assert got.mean["loss"].shape == (4,)
    none = evaluate(recipe.learner, meta, HELD_OUT, KEY, steps=0)
    np.testing.assert_allclose(none.mean["loss"], got.mean["loss"][:1], rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 2, 5, 9])
def test_chunks_change_nothing(chunk):
    recipe, meta = point_recipe(), {"x": jnp.array([2.0, -1.0])}
    whole = evaluate(recipe.learner, meta, HELD_OUT, KEY, steps=2)
    parts = evaluate(recipe.learner, meta, HELD_OUT, KEY, steps=2, chunk=chunk)
    for name in ("loss", "distance"):
        np.testing.assert_allclose(parts.mean[name], whole.mean[name], rtol=1e-6)
        np.testing.assert_allclose(parts.interval[name], whole.interval[name], rtol=1e-5)


def test_one_task_has_an_interval_of_zero_and_no_warning():
    recipe = point_recipe()
    one = jax.tree.map(lambda leaf: leaf[:1], HELD_OUT)
    got = evaluate(recipe.learner, {"x": jnp.zeros(2)}, one, KEY)
    np.testing.assert_array_equal(got.interval["loss"], 0)


class Errors(NamedTuple):
    top1: float
    top5: float


NAMED = {
    "nothing": (None, []),
    "a dictionary": ({"accuracy": 1.0}, ["accuracy"]),
    "a nested one": ({"error": {"top": 1.0}, "rows": 3}, ["error.top", "rows"]),
    "a tuple": ((1.0, {"a": True}), ["0", "1.a"]),
    "a named tuple": (Errors(1.0, 2.0), ["top1", "top5"]),
    "a number": (jnp.float32(1.0), ["aux"]),
}


@pytest.mark.parametrize(("aux", "names"), NAMED.values(), ids=NAMED)
def test_an_aux_of_any_structure_has_names(aux, names):
    assert list(named_metrics(aux)) == names


REFUSED = {
    "one value per row": ({"each": {"row": jnp.zeros(3)}}, r"each\.row: f32\[3\].*jnp\.mean"),
    "a complex number": ({"z": jnp.array(1j)}, "real scalars"),
    "a key": ({"key": KEY}, "real scalars"),
    "two of one name": ({"a": {"b": 1.0}, "a.b": 2.0}, "same name"),
}


@pytest.mark.parametrize(("aux", "message"), REFUSED.values(), ids=REFUSED)
def test_an_aux_that_is_no_metric_is_refused(aux, message):
    with pytest.raises(StructureError, match=message):
        named_metrics(aux)


def test_the_leaves_of_aux_are_evaluated():
    loss = lambda params, meta, batch, key: (jnp.sum(params["x"]), {"sum": {"of": params["x"][0]}})
    got = evaluate(point_recipe(loss).learner, {"x": jnp.array([3.0, 1.0])}, HELD_OUT, KEY, steps=0)
    np.testing.assert_allclose(got.mean["sum.of"], 3.0)


@pytest.mark.parametrize("name", ["loss", "gradient_norm", "diverged", "step", "losses"])
def test_an_aux_with_the_name_of_a_metric_of_training_is_refused(name):
    """It would take the place of the real one, in the log and where the best is chosen."""
    loss = lambda params, meta, batch, key: (jnp.sum(params["x"]), {name: jnp.float32(0)})
    recipe = point_recipe(loss)
    with pytest.raises(StructureError, match=f"training reserves.*my_{name}"):
        evaluate(recipe.learner, {"x": jnp.zeros(2)}, HELD_OUT, KEY)


def test_a_loss_without_aux_can_be_evaluated():
    loss = lambda params, meta, batch, key: jnp.sum(jnp.square(params["x"] - batch))
    recipe = point_recipe(loss)
    got = evaluate(recipe.learner, {"x": jnp.zeros(2)}, HELD_OUT, KEY)
    assert set(got.mean) == {"loss"}
    outcome, reports = train(recipe, validation=Validation(HELD_OUT, every=3))
    assert outcome.step == 7
    assert set(reports[0].metrics) == {"loss", "gradient_norm"}


def test_evaluation_refuses_weights():
    """A weight of zero would silently count as one."""
    recipe = maml(mlp([1, 4, 1]), mean_squared_error)
    episodes = evaluation_episodes(SinusoidTasks(2, 2), 3, 0)
    weighted = Episode(episodes.support, episodes.query, jnp.ones(3))
    meta = recipe.init_meta(jax.random.key(0))
    with pytest.raises(StructureError, match="weights"):
        evaluate(recipe.learner, meta, weighted, jax.random.key(0))


@pytest.mark.parametrize("chunk", [0, -1])
def test_evaluate_refuses_a_chunk_that_is_no_count(chunk):
    recipe = maml(mlp([1, 4, 1]), mean_squared_error)
    episodes = evaluation_episodes(SinusoidTasks(2, 2), 3, 0)
    with pytest.raises(StructureError, match="chunk must be a whole number"):
        evaluate(recipe.learner, {}, episodes, KEY, chunk=chunk)


def test_a_second_evaluation_of_the_same_learner_compiles_nothing():
    traces = []

    def loss(params, meta, batch, key):
        traces.append(None)
        return point_loss(params, meta, batch, key)

    learner, counts = point_recipe(loss).learner, []
    for value in (0.0, 1.0):
        evaluate(learner, {"x": jnp.full(2, value)}, HELD_OUT, KEY)
        counts.append(len(traces))
    assert counts[0] == counts[1] > 0


def test_evaluate_takes_a_learner_that_predicts_where_calibration_is_asked_for():
    recipe, meta = point_recipe(), {"x": jnp.zeros(2)}
    config.update("jaxtyping_disable", True)  # as users see it
    try:
        with pytest.raises(StructureError, match=r"must be a Learner.*Learner\(problem, adap"):
            evaluate(recipe.problem, meta, HELD_OUT, KEY)
        with pytest.raises(StructureError, match=r"predictions.*Learner\(problem, .*predict\)"):
            evaluate(recipe.learner, meta, HELD_OUT, KEY, calibration=True)
    finally:
        config.update("jaxtyping_disable", False)
