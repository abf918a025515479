"""A problem of one number, which inner steps halve, and on it every estimator.

`ALL` are the online ones. An estimator joins its laws (`test_estimators.py`) by one line.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import innerloop as il
from innerloop.devices.sharding import placement
from innerloop.trees import key_numbers

HALVED = il.Problem(
    init=lambda meta, support, key: meta * support,
    inner_loss=lambda params, meta, batch, key: params**2 / 4,
    outer_loss=lambda params, meta, batch, key: (params**2 * batch, {"params": params}),
    step_weights=lambda steps: jnp.full(steps + 1, 1 / (steps + 1)),
)
HALVE = il.GradientDescent(optax.sgd(1.0), 1)
DRAWN = il.tasks.IndependentTasks(
    lambda key: il.Episode(jax.random.uniform(key), jnp.ones(()), jnp.ones(()))
)
PARTS = (HALVED, HALVE, DRAWN)
ALL = {
    "unroll": il.estimators.TruncatedUnroll(*PARTS, 2, 8, 3),
    "persistent": il.estimators.PersistentES(*PARTS, 2, 8, 3, pairs=2, sigma=0.1),
    "noise_reuse": il.estimators.NoiseReuseES(*PARTS, 2, 8, 3, pairs=2, sigma=0.1),
    "truncated": il.estimators.TruncatedES(*PARTS, 2, 8, 3, pairs=2, sigma=0.1),
}

WHOLE = il.WholeTasks(HALVED, il.GradientDescent(optax.sgd(1.0), 3), il.Unroll(), DRAWN, 3)
ESTIMATORS = ALL | {
    "whole": WHOLE,
    "sum": il.estimators.WeightedSum(whole=(WHOLE, 2.0), windows=(ALL["persistent"], 1.0)),
    "phases": il.estimators.Phases(ALL["unroll"], WHOLE, until=2),
}


def stepped(estimator):
    """A compiled outer step `(meta, state, key) -> (estimate, state)`."""
    data = jax.tree.map(lambda leaf: leaf[0], estimator.feed(jax.random.key(0), 0, 1))
    return jax.jit(lambda meta, state, key: estimator.step(meta, state, data, key, jnp.int32(0)))


def assert_same_step(estimator, devices):
    """A step whose tasks are shared out over devices is the same step."""
    step, meta, state = begun(estimator)
    expected = step(meta, state, jax.random.key(0))
    place = placement(devices)
    spread = place.place_by_task(state, estimator.per_task(state))
    on_them = stepped(estimator.on(place))
    found = on_them(place.place(meta), spread, place.place(jax.random.key(0)))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    jax.tree.map(close, *(jax.tree.map(key_numbers, each) for each in (found, expected)))


@functools.cache
def begun(estimator, meta=1.0):
    """A compiled outer step, meta, and a state."""
    meta = jnp.float32(meta)
    return stepped(estimator), meta, estimator.init(meta, jax.random.key(0))
