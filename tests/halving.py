"""Inner runs on a problem of one number, which inner steps halve, by every online estimator."""

import functools

import jax
import jax.numpy as jnp
import optax

import innerloop as il

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


def stepped(estimator):
    """A compiled outer step `(meta, state, key) -> (estimate, state)`."""
    return jax.jit(lambda meta, state, key: estimator.step(meta, state, None, key, jnp.int32(0)))


@functools.cache
def begun(estimator, meta=1.0):
    """A compiled outer step, meta, and a state."""
    meta = jnp.float32(meta)
    return stepped(estimator), meta, estimator.init(meta, jax.random.key(0))
