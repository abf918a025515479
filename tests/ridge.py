"""Ridge regression as an inner problem, its outer loss in closed form."""

import jax.numpy as jnp
import numpy as np

import innerloop as il


def ridge():
    """theta* = argmin |X theta - y|^2 / 2 + exp(decay) |theta|^2 / 2."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 4)), rng.normal(size=12)
    x2, y2 = rng.normal(size=(6, 4)), rng.normal(size=6)

    def inner(params, meta, batch, key):
        fit = jnp.sum((batch[0] @ params - batch[1]) ** 2) / 2
        return fit + jnp.exp(meta["decay"]) * jnp.sum(params**2) / 2

    outer = lambda params, meta, batch, key: jnp.mean((batch[0] @ params - batch[1]) ** 2)
    problem = il.Problem(lambda meta, support, key: jnp.zeros(4), inner, outer)
    data = il.Episode((jnp.asarray(x), jnp.asarray(y)), (jnp.asarray(x2), jnp.asarray(y2)))

    def closed(meta):
        theta = np.linalg.solve(x.T @ x + np.exp(meta["decay"]) * np.eye(4), x.T @ y)
        return ((x2 @ theta - y2) ** 2).mean()

    return problem, data, {"decay": jnp.array(0.5)}, closed
