"""The random keys of a run, and the tasks that follow from them."""

from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from innerloop.arguments import checked, random_key
from innerloop.estimators import Estimator, TaskSet


def run_keys(key: PRNGKeyArray) -> tuple[PRNGKeyArray, PRNGKeyArray, PRNGKeyArray]:
    """The keys of a run: for the initial meta-parameters, its steps, and its validation."""
    init, steps, validation = jax.random.split(key, 3)
    return init, steps, validation


@checked(key=random_key())
def tasks_of_step(estimator: Estimator, key: PRNGKeyArray, step: int) -> TaskSet | dict[str, Any]:
    """The tasks that `fit(estimator, ..., key=key)` learns from at an outer step, with their keys.

    With them a task is run again by hand:

    ```python
    episodes, keys = il.training.tasks_of_step(estimator, key, fault.step)
    i = fault.tasks[0]
    episode = jax.tree.map(lambda leaf: leaf[i], episodes)
    il.meta_objective(problem, adaptation)(meta, episode, keys[i])
    ```

    Args:
        estimator: The estimator that was given to `fit`.
        key: The key that was given to `fit`.
        step: The number of the outer step, the first being 0.

    Returns:
        A `TaskSet`, or a dictionary of them by the names of the estimator's parts.

    Raises:
        StructureError: The estimator's tasks are not drawn anew in each step.
    """
    return estimator.tasks_of_step(run_keys(key)[1], step)
