"""A small problem to train: each task is a point in the plane, and the start is meta-learned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from fitting import fit

from innerloop.adaptation import GradientDescent
from innerloop.gradients import Unroll
from innerloop.problem import Episode, Problem
from innerloop.recipes import Recipe
from innerloop.tasks import IndependentTasks, evaluation_episodes

KEY = jax.random.key(0)


def point_loss(params, meta, batch, key):
    """A parabola around the task's own point."""
    return jnp.sum(jnp.square(params["x"] - batch)), {
        "distance": jnp.max(jnp.abs(params["x"] - batch))
    }


def point_recipe(loss=point_loss, steps=1):
    problem = Problem(lambda meta, support, key: meta, loss, loss)
    adaptation = GradientDescent(optax.sgd(0.1), steps)
    return Recipe(
        problem, adaptation, Unroll(), lambda key: {"x": 3 + jax.random.normal(key, (2,))}
    )


def sample_point(key):
    point = jax.random.normal(key, (2,))
    return Episode(point, point + 0.1)


POINTS = IndependentTasks(sample_point)
HELD_OUT = evaluation_episodes(POINTS, 5, 0)


def train(recipe=None, tasks=POINTS, **changed):
    """A small run; returns its outcome and what it reported."""
    reports = []
    options = {"optimizer": optax.adam(0.1), "steps": 7, "batch": 3, "key": KEY, "per_call": 3}
    outcome = fit(recipe or point_recipe(), tasks, **(options | changed), report=reports.append)
    return outcome, reports


def losses(reports):
    return np.concatenate([progress.metrics["loss"] for progress in reports])


def assert_same_bits(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
