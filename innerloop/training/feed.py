"""Where the tasks of an outer step come from: drawn on the device, or a block from the host."""

from contextlib import ExitStack
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from innerloop.devices.placement import Placement
from innerloop.problem import Episode
from innerloop.tasks.streamed import StreamedTasks, on_device


class Block(eqx.Module):
    """The tasks of some outer steps, on the device.

    - `episodes`: every leaf `(steps, batch, ...)`; `first`: the outer step of the first
    """

    episodes: Episode
    first: Int[Array, ""]

    def of_step(self, step: int | Int[Array, ""]) -> Episode:
        """The batch of an outer step of this block."""
        batch = jax.tree.map(lambda leaf: leaf[step - self.first], self.episodes)
        return on_device(batch)


class Feed:
    """The tasks of the next outer steps: `feed(step, n)`, for a function compiled once.

    Those of a task distribution are itself. Of streamed tasks it is a block for `at_most` steps, of
    which the first n are filled: those drawn that the last call did not take come first.
    """

    def __init__(
        self, tasks: Any, key: PRNGKeyArray, batch: int, at_most: int, placement: Placement
    ):
        self._streamed = isinstance(tasks, StreamedTasks)
        self._tasks = tasks if self._streamed else placement.place(tasks)
        self._key, self._batch, self._at_most, self._placement = key, batch, at_most, placement
        self._drawn: dict[int, Episode] = {}
        self._ahead, self._entered = None, ExitStack()

    def __call__(self, step: int, n: int) -> Any:
        if not self._streamed:
            return self._tasks
        if self._ahead is None:
            steps = self._tasks.ahead_of(self._key, step, self._batch)
            self._ahead = enumerate(self._entered.enter_context(steps), step)
        self._drawn = {i: batch for i, batch in self._drawn.items() if i >= step}
        while len(self._drawn) < n:
            i, batch = next(self._ahead)
            self._drawn[i] = batch
        batches = [self._drawn[i] for i in range(step, step + n)]
        batches += batches[-1:] * (self._at_most - n)
        episodes = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
        return self._placement.place(Block(episodes, jnp.int32(step)))

    def close(self) -> None:
        """Draw no more."""
        self._entered.close()
