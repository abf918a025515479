"""Tasks that hold pytrees with a batching rule of their own, such as JAX's sparse matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import sparse

import innerloop as il
from innerloop.devices.sharding import placement

pytestmark = pytest.mark.usefixtures("x64")

KEY, TASKS = jax.random.key(0), 3
LEARN = il.GradientDescent(optax.sgd(0.1), 2)


def loss(params, meta, batch, key):
    """Least squares; the aux is a sparse matrix too, which `evaluate` does not take."""
    value = jnp.mean((batch.inputs @ params - batch.targets) ** 2)
    return value, {"inputs": batch.inputs}


def without_matrix(*args):
    return loss(*args)[0]


PROBLEM = il.Problem(lambda meta, support, key: meta, without_matrix, loss)


def dense(key):
    support, query = jax.random.normal(key, (2, 4, 2))
    return support, query


def sample(key):
    as_sparse = lambda matrix: sparse.BCOO.fromdense(matrix, nse=8)
    examples = [il.Examples(as_sparse(each), jnp.sum(each, axis=1)) for each in dense(key)]
    return il.Episode(*examples)


DRAWN = il.tasks.IndependentTasks(sample)


def drawn(tasks=TASKS):
    """The tasks, and their matrices."""
    keys = jax.random.split(KEY, tasks)
    return jax.vmap(sample)(keys), jax.vmap(dense)(keys)


def by_hand(meta, support, query):
    """On one task, in dense matrices; its targets are the sums of the rows."""
    fit = lambda params, rows: jnp.mean((rows @ (params - 1)) ** 2)
    for _ in range(2):
        meta = meta - 0.1 * jax.grad(fit)(meta, support)
    return fit(meta, query)


META = np.array([0.5, -0.3])


def gradient(tasks):
    return np.mean(jax.vmap(jax.grad(by_hand), (None, 0, 0))(META, *drawn(tasks)[1]), axis=0)


@pytest.mark.parametrize(
    ("tasks", "chunk", "devices"),
    [
        pytest.param(3, None, None, marks=pytest.mark.full),
        (3, 1, None),
        (3, 2, None),
        (1, None, None),
        pytest.param(3, None, 1, marks=pytest.mark.full),
        pytest.param(3, 2, 1, marks=pytest.mark.full),
    ],
)
def test_a_task_may_hold_a_sparse_matrix(tasks, chunk, devices):
    episodes, (_, query) = drawn(tasks)
    f = il.meta_value_and_grad(PROBLEM, LEARN, chunk=chunk, spread=placement(devices).spread)
    (_, aux), found = jax.jit(f)(META, episodes, KEY)
    np.testing.assert_allclose(found, gradient(tasks), rtol=1e-12)
    matrices = aux.metrics["inputs"]
    assert matrices.shape == (tasks, 4, 2)
    np.testing.assert_array_equal(matrices.todense(), query)


@pytest.mark.full
def test_sparse_tasks_are_checked_evaluated_and_trained():
    problem = il.Problem(PROBLEM.init, without_matrix, lambda *args: (loss(*args)[0], {}))
    episodes, matrices = drawn()
    assert not il.check(problem, LEARN, META, episodes, KEY).findings
    losses = jax.vmap(by_hand, (None, 0, 0))(META, *matrices)
    learner = il.Learner(problem, LEARN)
    for options in ({}, {"chunk": 1}, {"devices": 1}):
        found = il.evaluate(learner, META, episodes, KEY, **options).mean["loss"]
        np.testing.assert_allclose(found[-1], np.mean(losses), rtol=1e-12)
    estimators = [
        il.WholeTasks(problem, LEARN, il.Unroll(), DRAWN, 3),
        il.estimators.PersistentES(problem, LEARN, DRAWN, 1, 2, 3, pairs=1, sigma=0.1),
    ]
    options = {"optimizer": optax.sgd(0.1), "steps": 2, "key": KEY, "per_call": 1}
    for estimator in estimators:
        fits = [il.fit(estimator, lambda key: META, devices=n, **options) for n in (None, 1)]
        np.testing.assert_allclose(fits[0].last, fits[1].last, rtol=1e-12)
        assert not np.array_equal(fits[0].last, META)
