"""Influence balancing: what truncated gradients get wrong (Tallec & Ollivier 2017)."""

import jax.numpy as jnp
import numpy as np
import optax

import innerloop as il

UNITS, POSITIVE = 23, 10


def influence(weights) -> tuple[il.Problem, il.GradientDescent, np.ndarray, np.ndarray]:
    r"""$s_{t+1} = A s_t + \phi b$: the parameter lifts the first units, which the loss sees soon,
    and lowers the others, which it sees later and more. Returns problem, adaptation, A and b.
    """
    matrix = np.eye(UNITS) / 2 + np.eye(UNITS, k=1) / 2
    push = np.where(np.arange(UNITS) < POSITIVE, 1.0, -1.0)

    def dynamics(meta):
        def update(updates, state, params=None):
            pushed = jnp.asarray(matrix, params.dtype) @ params + meta * jnp.asarray(
                push, params.dtype
            )
            return pushed - params, state

        return optax.GradientTransformation(lambda params: (), update)

    problem = il.Problem(
        init=lambda meta, support, key: support,
        inner_loss=lambda params, meta, batch, key: jnp.sum(params) * 0,
        outer_loss=lambda params, meta, batch, key: (params[0] - batch) ** 2 / 2,
        step_weights=weights,
    )
    return problem, il.GradientDescent(dynamics, steps=1), matrix, push


def tasks(dtype=None) -> il.IndependentTasks:
    """One task: all units begin at 1, and the first should be 1."""
    return il.IndependentTasks(lambda key: il.Episode(jnp.ones(UNITS, dtype), jnp.ones((), dtype)))
