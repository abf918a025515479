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
ALL = {
    "unroll": il.estimators.TruncatedUnroll(2, 8),
    "persistent": il.estimators.PersistentES(2, 8, pairs=2, sigma=0.1),
    "noise_reuse": il.estimators.NoiseReuseES(2, 8, pairs=2, sigma=0.1),
    "truncated": il.estimators.TruncatedES(2, 8, pairs=2, sigma=0.1),
}


@functools.cache
def begun(estimator, batch=3, problem=HALVED, drawn=DRAWN, meta=1.0):
    """A compiled outer step, meta, and a carry."""
    parts, meta = (problem, HALVE, drawn), jnp.float32(meta)
    carry = estimator.init(*parts, meta, jax.random.key(0), batch)
    return jax.jit(estimator.value_and_grad(*parts)), meta, carry
