"""Recipes against the algorithms written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from innerloop.gradients import FirstOrder, Unroll
from innerloop.lab.experiments.sinusoid import half_after_one_step
from innerloop.models import mean_squared_error, mlp
from innerloop.objective import meta_value_and_grad
from innerloop.recipes import fomaml, maml
from innerloop.tasks import SinusoidTasks

RATE = 0.05
MODEL = mlp([1, 5, 1], activation=jnp.tanh)


def loss(params, examples):
    return jnp.mean(jnp.square(MODEL.apply(params, examples.inputs, None, None) - examples.targets))


def adapted(params, support):
    gradient = jax.grad(loss)(params, support)
    return jax.tree.map(lambda leaf, step: leaf - RATE * step, params, gradient)


def task_mean(f, meta, episodes):
    each = jax.vmap(f, (None, 0, 0))(meta, episodes.support, episodes.query)
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), each)


def result(recipe, meta, episodes):
    at_first = recipe.schedule(jnp.int32(0)) if recipe.schedule else recipe[:2]
    value_and_grad = meta_value_and_grad(*at_first, recipe.gradient)
    (value, _), grads = jax.jit(value_and_grad)(meta, episodes, jax.random.key(2))
    return value, grads


def assert_close(got, expected, rtol=1e-9):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12)


@pytest.fixture
def start(x64):
    return MODEL.init(jax.random.key(0)), SinusoidTasks(6, 7).sample(jax.random.key(1), 3)


def test_maml_is_the_gradient_through_one_step(start):
    meta, episodes = start
    value, grads = result(maml(MODEL, mean_squared_error, RATE, 1), meta, episodes)

    def written(meta, support, query):
        return loss(adapted(meta, support), query)

    assert_close(value, task_mean(written, meta, episodes))
    assert_close(grads, task_mean(jax.grad(written), meta, episodes))


def test_fomaml_is_the_query_gradient_at_the_adapted_parameters(start):
    meta, episodes = start
    value, grads = result(fomaml(MODEL, mean_squared_error, RATE, 1), meta, episodes)

    def written(meta, support, query):
        return jax.grad(loss)(adapted(meta, support), query)

    assert_close(grads, task_mean(written, meta, episodes))
    exact_value, exact = result(maml(MODEL, mean_squared_error, RATE, 1), meta, episodes)
    assert_close(value, exact_value)
    first, second = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in (grads, exact)
    )
    assert np.linalg.norm(first - second) > 1e-2 * np.linalg.norm(second)


def test_two_steps_of_maml_are_the_gradient_through_both(start):
    meta, episodes = start
    _, grads = result(maml(MODEL, mean_squared_error, RATE, 2), meta, episodes)

    def written(meta, support, query):
        return loss(adapted(adapted(meta, support), support), query)

    assert_close(grads, task_mean(jax.grad(written), meta, episodes))


def test_the_parts_are_those_of_the_algorithm():
    recipe = maml(MODEL, mean_squared_error, RATE, 3)
    assert isinstance(recipe.gradient, Unroll)
    assert recipe.adaptation.steps == 3
    assert fomaml(MODEL, mean_squared_error).gradient == FirstOrder()
    assert_close(recipe.init_meta(jax.random.key(3)), MODEL.init(jax.random.key(3)), rtol=0)


def test_maml_weighs_the_losses_after_each_step(start):
    meta, episodes = start
    recipe = maml(MODEL, mean_squared_error, RATE, 2, step_weights=lambda steps: [0.2, 0.3, 0.5])

    def by_hand(meta, support, query):
        once = adapted(meta, support)
        thetas = meta, once, adapted(once, support)
        return sum(w * loss(theta, query) for w, theta in zip((0.2, 0.3, 0.5), thetas, strict=True))

    value, grads = result(recipe, meta, episodes)
    expected = jax.value_and_grad(lambda meta: task_mean(by_hand, meta, episodes))(meta)
    assert_close((value, grads), expected)


@pytest.mark.parametrize(
    ("steps", "weights"),
    [
        (0, [1]),
        (1, [0, 1]),
        (2, [0, 0.5, 0.5]),
        (3, [0, 0.5, 0.25, 0.25]),
    ],
)
def test_half_of_the_loss_is_after_one_step(steps, weights):
    np.testing.assert_allclose(half_after_one_step(steps), weights)
