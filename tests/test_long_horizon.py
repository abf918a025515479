"""Inner runs that span outer steps: what is exact, what is unbiased, and what comes of faults."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from influence import influence, tasks
from quadratic import assert_close, quadratic_episodes, quadratic_meta, quadratic_problem

import innerloop as il

LEARN = il.GradientDescent(lambda meta: optax.sgd(jnp.exp(meta["rate"])), 4)
MEAN = lambda steps: jnp.full(steps + 1, 1 / (steps + 1))
QUADRATIC = il.IndependentTasks(
    lambda key: jax.tree.map(
        lambda leaf: leaf[jax.random.randint(key, (), 0, 5)], quadratic_episodes()
    )
)


def whole_runs(problem, adaptation, carry, meta, steps):
    """The exact meta-gradient of the runs of a carry."""
    adaptation = il.GradientDescent(adaptation.optimizer, steps)
    objective = jax.value_and_grad(il.meta_objective(problem, adaptation), has_aux=True)

    def one(key):
        episode, task_key = il.task_of_run(QUADRATIC, key)
        (loss, _), grads = objective(meta, episode, task_key)
        return loss, grads

    losses, grads = jax.vmap(one)(carry.key)
    return jnp.mean(losses), jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), grads)


@pytest.mark.parametrize(("weights", "chunk"), [(None, None), (MEAN, 2)])
def test_a_window_as_long_as_the_run_is_unroll(x64, weights, chunk):
    problem, meta = quadratic_problem(weights), quadratic_meta(jnp.float64)
    estimator = il.TruncatedUnroll(window=6, horizon=6)
    carry = estimator.init(problem, LEARN, QUADRATIC, meta, jax.random.key(0), batch=3)
    step = jax.jit(estimator.value_and_grad(problem, LEARN, QUADRATIC, chunk=chunk))
    for i in range(2):
        expected = whole_runs(problem, LEARN, carry, meta, 6)
        ((loss, aux), grads), after = step(meta, carry, jax.random.key(i))
        assert_close((loss, grads), expected)
        assert np.all(aux.diagnostics["replaced"]) and np.all(np.asarray(after.step) == 0)
        assert not np.array_equal(*map(jax.random.key_data, (carry.key, after.key)))
        carry = after


INFLUENCE, DYNAMICS, MATRIX, PUSH = influence(lambda steps: jnp.full(steps + 1, 1.0))
HORIZON = 100


def exact_influence(meta):
    """The gradient of the sum of losses, in NumPy by the linear recursion of states and slopes."""
    state, slope, gradient = np.ones(len(PUSH)), np.zeros(len(PUSH)), 0.0
    for _ in range(HORIZON):
        state, slope = MATRIX @ state + meta * PUSH, MATRIX @ slope + PUSH
        gradient += (state[0] - 1) * slope[0]
    return gradient


def estimates(estimator, meta, runs, seed=0):
    """The mean over its windows of one whole run's estimates: one number per run."""
    parts = (INFLUENCE, DYNAMICS, tasks())
    step = estimator.value_and_grad(*parts)

    def one_run(key):
        carry = estimator.init(*parts, meta, key, batch=1)
        count = estimator.horizon // estimator.window

        def one(carry, i):
            (_, grads), carry = step(meta, carry, jax.random.fold_in(key, i))
            return carry, grads

        carry, grads = jax.lax.scan(one, carry, jnp.arange(count, dtype=jnp.int32))
        return jnp.mean(grads), carry.step

    values, step = jax.jit(jax.vmap(one_run))(jax.random.split(jax.random.key(seed), runs))
    assert np.all(np.asarray(step) == 0)  # every run came to its end, and no further
    return np.asarray(values)


def test_truncation_has_the_wrong_sign_and_persistent_es_is_unbiased(x64):
    meta = jnp.float64(0.5)
    exact = exact_influence(0.5)
    np.testing.assert_allclose(estimates(il.TruncatedUnroll(HORIZON, HORIZON), meta, 1), exact)
    truncated = estimates(il.TruncatedUnroll(5, HORIZON), meta, 1)
    assert exact > 0 > truncated
    found = estimates(il.PersistentES(5, HORIZON, pairs=1, sigma=0.1), meta, 4000)
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert error < abs(exact) / 10  # enough runs to tell the sign
    assert abs(np.mean(found) - exact) < 4 * error
