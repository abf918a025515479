"""Which tasks an outer step learns from, and with which keys: by its number and the run's key."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from innerloop.checks import check_count, check_key
from innerloop.devices.placement import Placement
from innerloop.devices.sharding import round_up
from innerloop.errors import StructureError
from innerloop.objective import task_count
from innerloop.problem import Episode
from innerloop.tasks import StreamedTasks, TaskDistribution
from innerloop.tasks.streamed import on_device
from innerloop.training.feed import Block


def run_keys(key: PRNGKeyArray) -> tuple[PRNGKeyArray, PRNGKeyArray, PRNGKeyArray]:
    """The keys of a run: for the initial meta-parameters, its steps, and its validation."""
    init, steps, validation = jax.random.split(key, 3)
    return init, steps, validation


def batch_and_key(
    tasks: TaskDistribution | Block,
    key: PRNGKeyArray,
    step: int | Int[Array, ""],
    batch: int,
    placement: Placement,
) -> tuple[Any, PRNGKeyArray]:
    """The tasks of an outer step, however steps are divided over calls, and the key to learn them.

    Each device draws its own tasks. Where the devices do not divide their number, the last task,
    whose numbers are as sound as any, fills the batch up with weight zero.
    """
    sample_key, task_key = jax.random.split(jax.random.fold_in(key, step))
    episodes = tasks.of_step(step) if isinstance(tasks, Block) else tasks.sample(sample_key, batch)
    if isinstance(episodes, tuple):  # of a mixture
        episodes = tuple(_filled(kind, placement.devices) for kind in episodes)
    else:
        episodes = _filled(episodes, placement.devices)
    return placement.by_task(episodes), task_key


def tasks_of_step(
    tasks: TaskDistribution | StreamedTasks, key: PRNGKeyArray, step: int, batch: int
) -> tuple[Any, Any]:
    """The tasks that `fit(key=key, batch=batch)` learns from at an outer step, and a key for each.

    Step 0 is the first. With them a task is played again by hand:

    ```python
    episodes, keys = il.training.tasks_of_step(tasks, key, fault.step, batch)
    i = fault.tasks[0]
    episode = jax.tree.map(lambda leaf: leaf[i], episodes)
    il.meta_objective(problem, adaptation)(meta, episode, keys[i])
    ```

    Of a mixture both are tuples, one entry per kind.
    """
    check_key(key)
    check_count("batch", batch, write="tasks_of_step(tasks, key, step, batch=8)")
    _, step_key, _ = run_keys(key)
    sample_key, task_key = jax.random.split(jax.random.fold_in(step_key, step))
    if isinstance(tasks, StreamedTasks):
        episodes = on_device(tasks.of_step(step_key, step, batch))
    else:
        episodes = tasks.sample(sample_key, batch)
    if not isinstance(episodes, tuple):
        return episodes, jax.random.split(task_key, task_count(episodes))
    by_kind = zip(jax.random.split(task_key, len(episodes)), episodes, strict=True)
    return episodes, tuple(jax.random.split(each, task_count(kind)) for each, kind in by_kind)


def _filled(episodes: Episode, devices: int) -> Episode:
    tasks = task_count(episodes)
    rows = round_up(tasks, devices)
    if rows == tasks:
        return episodes
    if not jax.config.jax_threefry_partitionable:  # pyright: ignore[reportAttributeAccessIssue]
        raise StructureError(
            "the keys of a batch that is filled up would be others than those of the batch",
            got=f"{tasks} tasks on {devices} devices, with jax_threefry_partitionable=False",
            expected="JAX's default, with which the first keys of a larger split are the same",
            write="jax.config.update('jax_threefry_partitionable', True), or a multiple of "
            f"{devices} tasks",
        )
    repeated = np.minimum(np.arange(rows), tasks - 1)
    weight = jnp.ones(tasks) if episodes.weight is None else episodes.weight
    support, query, weight = jax.tree.map(
        lambda leaf: leaf[repeated], (episodes.support, episodes.query, weight)
    )
    return Episode(support, query, jnp.where(jnp.arange(rows) < tasks, weight, 0))
