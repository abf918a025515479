"""Tasks drawn on the host, from data that is larger than the device's memory."""

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

from innerloop.checks import check_count, optional_package
from innerloop.errors import DataError, StructureError
from innerloop.problem import Episode, Examples
from innerloop.tasks.images import as_unit_interval
from innerloop.trees import is_key

_WRITE = "StreamedTasks(draw, threads=4, ahead=16)"


@dataclass(frozen=True, eq=False)
class StreamedTasks:
    """Tasks that the host draws while the device learns (needs innerloop[stream]).

    `fit` takes them in place of a task distribution. Batches are drawn ahead by Grain, in threads,
    and go to the device as one block for each call (`per_call` outer steps), which is all of the
    data that is there. What a task is depends on the run's key, the number of the outer step and
    the task's place in the batch, and on nothing else. So the number of outer steps, which is in
    every checkpoint, is the position in the data, and a run that is resumed goes on to the bits of
    one that was never cut off.

    - `draw`: `numpy.random.Generator -> Episode` of NumPy arrays, of one shape in all tasks, with
      no state but the generator; `StoredImages` is one. Called in several threads at once.
    - `threads`: how many threads draw
    - `ahead`: how many outer steps are drawn ahead

    Raises `StructureError` for counts below one.
    """

    draw: Callable[[np.random.Generator], Episode]
    threads: int = 4
    ahead: int = 16

    def __post_init__(self):
        check_count("threads", self.threads, write=_WRITE)
        check_count("ahead", self.ahead, write=_WRITE)

    def sample(self, key: PRNGKeyArray, n: int) -> Episode:
        """A batch of `n` episodes, drawn now: for validation and test sets.

        Raises `StructureError` in a compiled function, which cannot wait for the host.
        """
        check_count("n", n, write="tasks.sample(key, n=8)")
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
        """The tasks of the outer steps from `first` on, drawn ahead as long as this is entered."""
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
    """On the default device; the uint8 inputs of `Examples` as real numbers in [0, 1]."""

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
    return np.asarray(jax.random.key_data(key) if is_key(key) else key).ravel().tolist()


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Draws `ways`-way, `shots`-shot tasks from images on disk; see `ClassificationTasks`.

    - `images`: `(classes, examples, height, width, channels)`: an array in a file, such as
      `numpy.load(file, mmap_mode="r")`, or anything else with a shape, of which
      `images[class, example]` is one image
    - `counts`: how many examples each class has; None: all of the second axis

    uint8 images are real numbers in [0, 1] once they are on the device.

    Raises `StructureError` for `ways` below 2 and `shots` or `queries` below 1, and `DataError`
    where there are too few classes, or too few examples of one.
    """

    images: Any
    ways: int
    shots: int
    queries: int
    counts: tuple[int, ...] | None = None

    def __post_init__(self):
        write = "StoredImages(images, ways=5, shots=1, queries=15)"
        check_count("ways", self.ways, 2, write=write)
        check_count("shots", self.shots, write=write)
        check_count("queries", self.queries, write=write)
        classes, examples = self.images.shape[:2]
        fewest = min(self.counts or (examples,))
        if self.ways > classes or self.shots + self.queries > fewest:
            raise DataError(
                "there are not enough classes, or not enough examples of each",
                got=f"ways={self.ways} of {classes}, "
                f"shots={self.shots} + queries={self.queries} of {fewest}",
                expected=f"at most {classes} ways, and shots + queries of at most {fewest}",
                write=write,
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
