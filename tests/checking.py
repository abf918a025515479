"""A small problem without a fault, and `check` of it with other parts in place of its own."""

import jax
import jax.numpy as jnp
import optax

import innerloop as il
from innerloop.diagnostics import check

KEY = jax.random.key(0)
META = {"w": jnp.array([0.5, -1.0, 0.2]), "scale": jnp.float32(0.1)}


def episodes(tasks=3, rows=5, seed=jax.random.key(1)):
    def half(key):
        x = jax.random.normal(key, (tasks, rows, 3))
        return il.Examples(x, jnp.sin(3 * x[..., 0]))

    return il.Episode(*map(half, jax.random.split(seed)))


def fit(params, batch):
    return jnp.mean((batch.inputs @ params - batch.targets) ** 2)


def inner(params, meta, batch, key):
    return fit(params, batch) + jnp.exp(meta["scale"]) * jnp.sum(params**2)


def outer(params, meta, batch, key):
    return fit(params, batch)


def start(meta, support, key):
    return meta["w"]


LEARN = il.GradientDescent(optax.sgd(0.1), 2)


def checked(init=start, inner=inner, outer=outer, learn=LEARN, meta=META, data=None, **options):
    problem = il.Problem(init, inner, outer)
    with jax.numpy_dtype_promotion("standard"):
        return check(problem, learn, meta, data or episodes(), KEY, **options)
