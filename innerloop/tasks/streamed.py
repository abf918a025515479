"""Tasks that the host draws, from data that is larger than the memory of the device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PRNGKeyArray

from innerloop.arguments import at_least, checked
from innerloop.checks import optional_package
from innerloop.errors import DataError, StructureError
from innerloop.problem import Episode, Examples
from innerloop.tasks.images import as_unit_interval


@checked(threads=at_least(1, such_as=4), ahead=at_least(1, such_as=16))
@dataclass(frozen=True, eq=False)
class StreamedTasks:
    """Tasks that the host draws while the device trains (needs innerloop[stream]).

    `fit` takes them in place of a task distribution. Batches are drawn ahead by Grain, in threads,
    and go to the device as one block for each call (`per_call` outer steps), which is all of the
    data that is there. What a task is depends on the run's key, the number of the outer step and
    the task's place in the batch, and on nothing else. So the number of outer steps, which is in
    every checkpoint, is the position in the data, and a run that is resumed goes on to the bits of
    one that was never cut off.

    Args:
        draw: `numpy.random.Generator -> Episode` of NumPy arrays, with the same shapes in all tasks
            and no state except the generator, such as `StoredImages`. Several threads call it at
            once.
        threads: The number of threads that draw.
        ahead: The number of outer steps that are drawn ahead.

    Raises:
        StructureError: If `threads` or `ahead` is below 1.
    """

    draw: Callable[[np.random.Generator], Episode]
    threads: int = 4
    ahead: int = 16

    @checked("tasks.sample", n=at_least(1, such_as=8))
    def sample(self, key: PRNGKeyArray, n: int) -> Episode:
        """A batch of `n` episodes, drawn now: for validation and test sets.

        Raises:
            StructureError: If `n` is below 1, or in a compiled function, which cannot wait for the
                host.
        """
        if isinstance(key, Tracer):
            raise StructureError(
                "streamed tasks are drawn by the host, and not in a compiled function",
                got="tasks.sample(key, n) while tracing",
                expected="fit(recipe, tasks, ...) without memory=, or a key that is known",
                write="tasks.sample(key, n) outside jax.jit; fit(..., chunk=n)",
            )
        return on_device(self.of_step(key, 0, n))

    def of_step(self, key: PRNGKeyArray, step: int, batch: int) -> Episode:
        """The tasks of an outer step, NumPy arrays with the task axis first."""
        return self._stacked(_numbers(key), step, batch)

    @contextmanager
    def ahead_of(self, key: PRNGKeyArray, first: int, batch: int) -> Iterator[Iterator[Episode]]:
        """The tasks of the outer steps from `first` on, drawn ahead inside the context."""
        grain = optional_package("grain", "streaming", extra="stream")
        numbers = _numbers(key)
        draw = lambda step: self._stacked(numbers, int(step), batch)
        options = grain.ReadOptions(min(self.threads, self.ahead), self.ahead)
        steps = grain.MapDataset.range(first, _LAST).map(draw).to_iter_dataset(options)
        ahead = iter(steps)
        try:
            yield ahead
        finally:
            ahead.close()

    def _stacked(self, numbers: list[int], step: int, batch: int) -> Episode:
        rngs = (np.random.default_rng([*numbers, step, i]) for i in range(batch))
        episodes = [self.draw(rng) for rng in rngs]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *episodes)


def on_device(episodes: Episode) -> Episode:
    """Moves to the default device; uint8 inputs of `Examples` become real numbers in [0, 1]."""

    def real(examples: Any) -> Any:
        if not isinstance(examples, Examples):
            return examples
        scaled = lambda leaf: as_unit_interval(leaf) if leaf.dtype == jnp.uint8 else leaf
        return eqx.tree_at(lambda e: e.inputs, examples, jax.tree.map(scaled, examples.inputs))

    episodes = jax.tree.map(jnp.asarray, episodes)
    return Episode(real(episodes.support), real(episodes.query), episodes.weight)


_LAST = 2**31 - 1
"""The largest number of an outer step."""


def _numbers(key: PRNGKeyArray) -> list[int]:
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(key) if typed else key).ravel().tolist()


@checked(ways=at_least(2, such_as=5), shots=at_least(1), queries=at_least(1, such_as=15))
@dataclass(frozen=True, eq=False)
class StoredImages:
    """Draws `ways`-way, `shots`-shot tasks from images on disk; see `ClassificationTasks`.

    uint8 images are real numbers in [0, 1] once they are on the device.

    Args:
        images: `(classes, examples, height, width, channels)`: an array in a file, such as
            `numpy.load(file, mmap_mode="r")`, or anything else with a shape, of which
            `images[class, example]` is one image.
        ways: Classes per task, at least 2.
        shots: Examples per class in the support set.
        queries: Examples per class in the query set.
        counts: The number of examples of each class; None for the whole second axis.

    Raises:
        StructureError: If `ways` is below 2, or `shots` or `queries` is below 1.
        DataError: If there are too few classes, or too few examples of a class.
    """

    images: Any
    ways: int
    shots: int
    queries: int
    counts: tuple[int, ...] | None = None

    def __post_init__(self):
        classes, examples = self.images.shape[:2]
        fewest = min(self.counts or (examples,))
        if self.ways > classes or self.shots + self.queries > fewest:
            raise DataError(
                "there are not enough classes, or not enough examples of each",
                got=f"ways={self.ways} of {classes}, "
                f"shots={self.shots} + queries={self.queries} of {fewest}",
                expected=f"at most {classes} ways, and shots + queries of at most {fewest}",
                write="fewer ways, shots or queries, as StoredImages(images, ways=5, shots=1, "
                "queries=15)",
            )

    def __call__(self, rng: np.random.Generator) -> Episode:
        """One task."""
        chosen = rng.choice(self.images.shape[0], self.ways, replace=False)
        number = self.shots + self.queries
        rows = []
        for row in chosen.tolist():
            count = self.images.shape[1] if self.counts is None else self.counts[row]
            drawn = rng.choice(count, number, replace=False).tolist()
            rows.append(np.stack([self.images[row, example] for example in drawn]))
        images = np.stack(rows)
        return Episode(_labelled(images[:, : self.shots]), _labelled(images[:, self.shots :]))


def _labelled(images: np.ndarray) -> Examples:
    ways, rows = images.shape[:2]
    targets = np.repeat(np.arange(ways, dtype=np.int32), rows)
    return Examples(images.reshape(ways * rows, *images.shape[2:]), targets)
