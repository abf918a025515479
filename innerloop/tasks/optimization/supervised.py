"""Training a network on a table or a text, from a random initialisation."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.arguments import checked, interval
from innerloop.models import ExamplesLoss, Model, supervised_loss
from innerloop.problem import Problem
from innerloop.tasks.base import TaskDistribution
from innerloop.tasks.optimization.family import Family


@checked(scale=interval(above=0, point=True))
def supervised_family(
    name: str,
    model: Model,
    loss: ExamplesLoss,
    tasks: TaskDistribution,
    batch: int | None = None,
    scale: tuple[float, float] = (1.0, 1.0),
) -> Family:
    """Training `model` by `loss` on episodes of `Examples`.

    The outer loss is the same loss on the query set: with `TableTasks` it is a validation loss.

    Args:
        name: The name of the family.
        model: The network.
        loss: The loss of the predictions.
        tasks: The distribution of the episodes.
        batch: Rows per inner step; None for the whole support set.
        scale: The range of a factor on the initial parameters, which each task draws log-uniformly.

    Raises:
        StructureError: If the range is empty or not positive.
    """
    low, high = scale

    def init(meta: PyTree, support: PyTree, key: PRNGKeyArray) -> PyTree:
        params_key, scale_key = jax.random.split(key)
        params = model.init(params_key)
        if low == high == 1:
            return params
        power = jax.random.uniform(scale_key, minval=math.log(low), maxval=math.log(high))
        return jax.tree.map(lambda leaf: jnp.exp(power).astype(leaf.dtype) * leaf, params)

    judged = supervised_loss(model, loss)
    return Family(name, Problem(init, judged, judged), tasks, batch)
