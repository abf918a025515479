"""The laws that every pair of adaptation and meta-gradient keeps. Each raises AssertionError."""

import jax
import jax.numpy as jnp
import numpy as np
from variants import (
    TASKS,
    Estimator,
    Variant,
    quadratic_episodes,
    quadratic_meta,
)

import innerloop as il

TOLERANCE = 1e-10


def _key():
    return jax.random.key(7)


_COMPILED: dict = {}


def batched(variant: Variant, estimator: Estimator, chunk=None):
    """The jitted meta_value_and_grad of a pair, compiled once."""

    name = (variant.name, estimator.name, chunk)
    if name not in _COMPILED:
        _COMPILED[name] = jax.jit(
            il.meta_value_and_grad(
                variant.problem, variant.adaptation, estimator.gradient, chunk=chunk
            )
        )
    return _COMPILED[name]


def _task(episodes, i):
    return jax.tree.map(lambda leaf: leaf[i], episodes)


def _assert_close(got, expected, tolerance=TOLERANCE):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        got,
        expected,
    )


def oracle(variant, estimator):
    """Value and gradient equal the complex-step oracle, task by task and in the mean."""
    episodes, meta = quadratic_episodes(), quadratic_meta()
    (loss, _), grads = batched(variant, estimator)(meta, episodes, _key())
    results = [
        variant.reference(meta, _task(episodes, i), key, estimator.held)
        for i, key in enumerate(jax.random.split(_key(), TASKS))
    ]
    _assert_close(float(loss), float(np.mean([value for value, _ in results])))
    expected = {name: np.mean([grads[name] for _, grads in results], axis=0) for name in meta}
    _assert_close(grads, expected)


def one_task_at_a_time(variant, estimator):
    """The batch is the mean of plain jax.grad over tasks, and aux is per task, never averaged."""
    episodes, meta, key = quadratic_episodes(), quadratic_meta(), _key()
    objective = il.meta_objective(variant.problem, variant.adaptation, estimator.gradient)
    single = jax.jit(jax.value_and_grad(objective, has_aux=True))
    results = [
        single(meta, _task(episodes, i), task_key)
        for i, task_key in enumerate(jax.random.split(key, TASKS))
    ]
    (losses, aux), grads = jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)
    (loss, batch_aux), batch_grads = batched(variant, estimator)(meta, episodes, key)
    _assert_close(loss, jnp.mean(losses))
    _assert_close(batch_grads, jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), grads))
    _assert_close((batch_aux.metrics, batch_aux.info), (aux.metrics, aux.info))


def chunks(variant, estimator):
    """Any chunk gives the same loss, aux and gradient, whether or not it divides the tasks."""
    episodes, meta, key = quadratic_episodes(), quadratic_meta(), _key()
    expected = batched(variant, estimator)(meta, episodes, key)
    for chunk in (1, 2, TASKS):
        _assert_close(batched(variant, estimator, chunk)(meta, episodes, key), expected)


def closed_over_tracers(variant, estimator):
    """Values traced by an outer transformation may be closed over by the problem."""
    episodes, meta, key = quadratic_episodes(), quadratic_meta(), _key()
    problem = variant.problem

    def scaled(factor):
        outer = lambda *args: jax.tree.map(lambda x: x, problem.outer_loss(*args))  # noqa: E731
        closed = il.Problem(
            problem.init,
            problem.inner_loss,
            lambda *args: (factor * outer(*args)[0], outer(*args)[1]),
            problem.step_weights,
        )
        f = il.meta_value_and_grad(closed, variant.adaptation, estimator.gradient)
        (loss, _), grads = f(meta, episodes, key)
        return loss, grads

    factors = jnp.array([1.0, 3.0])
    losses, grads = jax.jit(jax.vmap(scaled))(factors)
    (loss, _), expected = batched(variant, estimator)(meta, episodes, key)
    _assert_close(losses, factors * loss)
    _assert_close(jax.tree.map(lambda leaf: leaf[1], grads), jax.tree.map(lambda x: 3 * x, expected))


def weights(variant, estimator):
    """A weight of zero removes a task; equal weights change nothing."""
    episodes, meta, key = quadratic_episodes(), quadratic_meta(), _key()
    f = batched(variant, estimator)
    weight = jnp.array([1.0, 0.0, 2.0, 0.0, 1.0])
    weighted = il.Episode(episodes.support, episodes.query, weight)
    (loss, _), grads = f(meta, weighted, key)
    spoiled = jax.tree.map(lambda x: x, weighted)
    spoiled.query["targets"] = spoiled.query["targets"].at[1].set(1e3)
    (loss_spoiled, _), grads_spoiled = f(meta, spoiled, key)
    _assert_close((loss_spoiled, grads_spoiled), (loss, grads))
    tripled = il.Episode(episodes.support, episodes.query, jnp.full(TASKS, 3.0))
    _assert_close(f(meta, tripled, key), f(meta, episodes, key))


def low_precision(variant, estimator):
    """float32 and bfloat16 parameters keep their dtype and come near the float64 gradient."""
    episodes, meta, key = quadratic_episodes(), quadratic_meta(), _key()
    (_, _), exact = batched(variant, estimator)(meta, episodes, key)
    norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(exact)))
    for dtype, tolerance in ((jnp.float32, 1e-4), (jnp.bfloat16, 0.1)):
        if variant.name == "procedure" and dtype == jnp.bfloat16:
            continue  # LAPACK solves in float32 and float64 only
        floats = jax.tree.map(
            lambda leaf: leaf.astype(dtype) if leaf.dtype == jnp.float64 else leaf, episodes
        )
        (loss, _), grads = batched(variant, estimator)(quadratic_meta(dtype), floats, key)
        assert loss.dtype == dtype
        assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(dtype)}
        gap = jax.tree.map(lambda a, b: a.astype(jnp.float64) - b, grads, exact)
        distance = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gap)))
        assert distance < tolerance * norm, f"{dtype}: {distance / norm}"


def isolation(variant, estimator):
    """Meta is not changed, and one task's data has no influence on another task's aux."""
    episodes, meta, key = quadratic_episodes(), quadratic_meta(), _key()
    before = jax.tree.map(np.array, meta)
    (_, aux), _ = batched(variant, estimator)(meta, episodes, key)
    jax.tree.map(np.testing.assert_array_equal, meta, before)
    changed = jax.tree.map(lambda x: x, episodes)
    changed.support["targets"] = changed.support["targets"].at[0].set(5.0)
    (_, aux_changed), _ = batched(variant, estimator)(meta, changed, key)
    rest = lambda aux: jax.tree.map(lambda leaf: leaf[1:], (aux.metrics, aux.info))  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, rest(aux), rest(aux_changed))


def determinism(variant, estimator):
    """The same key gives the same bits; another key does not."""
    episodes, meta = quadratic_episodes(), quadratic_meta()
    f = batched(variant, estimator)
    first, second = f(meta, episodes, _key()), f(meta, episodes, _key())
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert f(meta, episodes, jax.random.key(8))[0][0] != first[0][0]


def same_inner_loop_as_adapt(variant, estimator):
    """`adapt` with the task's key returns the parameters that the objective saw."""
    episodes, meta, key = quadratic_episodes(), quadratic_meta(), _key()
    (_, aux), _ = batched(variant, estimator)(meta, episodes, key)
    learn = jax.jit(lambda *args: il.adapt(variant.problem, variant.adaptation, *args))
    for i, task_key in enumerate(jax.random.split(key, TASKS)):
        params, info = learn(meta, _task(episodes, i).support, task_key)
        _assert_close(params, aux.metrics["params"][i])
        _assert_close(info, _task(aux.info, i))


LAWS = [
    oracle,
    one_task_at_a_time,
    chunks,
    closed_over_tracers,
    weights,
    low_precision,
    isolation,
    determinism,
    same_inner_loop_as_adapt,
]
