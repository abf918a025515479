"""Tasks that the host draws, from data that is larger than the memory of the device."""

import abc
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PRNGKeyArray

from innerloop.arguments import at_least, checked, function, random_key
from innerloop.checks import describe, describe_briefly, failures_explained, optional_package
from innerloop.errors import DataError, StructureError
from innerloop.problem import Episode, Examples
from innerloop.tasks.classification import labelled
from innerloop.tasks.image_classes import as_unit_interval
from innerloop.trees import key_numbers

NO_SETTING = {"setting": False}


class HostTasks(abc.ABC):
    """The base of task distributions that the host draws or reads."""

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray, n: int) -> Episode:
        """A batch of `n` episodes, for validation and test sets."""

    @abc.abstractmethod
    def feed(self, key: PRNGKeyArray, first_step: int, n: int, batch: int) -> Episode:
        """The tasks of n outer steps: NumPy arrays `(n, batch, ...)`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Stop the threads that work ahead."""

    def _refuse_tracing(self, key: PRNGKeyArray) -> None:
        if isinstance(key, Tracer):
            raise StructureError(
                "streamed tasks are drawn by the host, and not in a compiled function",
                got="tasks.sample(key, n) while tracing",
                expected="WholeTasks(..., tasks, batch) in fit without memory=, or a known key",
                write="tasks.sample(key, n) outside jax.jit",
            )


@checked(
    draw=function("rng", gives="Episode"),
    threads=at_least(1, such_as=4),
    ahead=at_least(1, such_as=16),
)
@dataclass(frozen=True, eq=False)
class StreamedTasks(HostTasks):
    """Tasks that the host draws while the device learns (needs innerloop[data]).

    `WholeTasks` takes them in place of a task distribution. Grain draws the batches ahead, in
    threads, and they go to the device as one block for each call (`per_call` outer steps of `fit`);
    nothing else of the data is on the device. A task depends on the run's key, the number of the
    outer step and its place in the batch, and on nothing else. So the number of outer steps, which
    every checkpoint holds, is the position in the data, and a resumed run gives the same bits as
    one that was never interrupted.

    Args:
        draw: `numpy.random.Generator -> Episode` of NumPy arrays that have the same shapes in all
            tasks, such as `StoredImages`. It has no state but the generator, and is called in
            several threads at once. Inputs of `Examples` of type uint8 are pixels: on the device
            they are real numbers in [0, 1]. Tokens are drawn in another type, such as int32.
        threads: How many threads draw.
        ahead: How many outer steps are drawn ahead.

    Before the first step, `draw` is called a few times to see that a task follows from the
    generator alone. A warning says if all generators give the same task.

    Raises:
        StructureError: A count is below one. When tasks are drawn: `draw` does not return an
            `Episode`, its tasks have different shapes, or it reads anything but its generator.
    """

    draw: Callable[[np.random.Generator], Episode]
    threads: int = 4
    ahead: int = 16
    _readers: dict = field(default_factory=dict, init=False, repr=False, metadata=NO_SETTING)

    @checked("tasks.sample", key=random_key(), n=at_least(1, such_as=8))
    def sample(self, key: PRNGKeyArray, n: int) -> Episode:
        """A batch of `n` episodes, drawn now, for validation and test sets.

        Raises:
            StructureError: It is called in a compiled function, which cannot wait for the host.
        """
        self._refuse_tracing(key)
        return on_device(self._stacked(_numbers(key), 0, n))

    def feed(self, key: PRNGKeyArray, first_step: int, n: int, batch: int) -> Episode:
        """The tasks of n outer steps: NumPy arrays `(n, batch, ...)`.

        Steps that were drawn ahead and not asked for yet wait for the next call, whose first step
        may be any.
        """
        source = (tuple(_numbers(key)), batch)
        reader = self._readers.get(source)
        if reader is None or not reader.can_give(first_step):
            if reader is not None:
                reader.close()
            reader = self._readers[source] = _Reader(self, list(source[0]), first_step, batch)
        batches = reader.take(first_step, n)
        return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)

    def close(self) -> None:
        """Stop the threads that draw ahead."""
        while self._readers:
            self._readers.popitem()[1].close()

    def _stacked(self, numbers: list[int], step: int, batch: int) -> Episode:
        return stacked([self._drawn([*numbers, step, i]) for i in range(batch)], self._first)

    def _drawn(self, seed: list[int]) -> Episode:
        rng = np.random.default_rng(seed)
        try:
            with failures_explained("draw", rng=rng):
                episode = self.draw(rng)
        except StructureError:
            if not _is_of_a_key(self.draw):
                raise
            raise StructureError(
                "draw takes a random key of JAX",
                got="a function that draws with jax.random",
                expected="a function of a numpy.random.Generator, which the host calls",
                write="tasks.IndependentTasks(draw)",
            ) from None
        if not isinstance(episode, Episode):
            raise StructureError(
                "draw must return one task as an Episode",
                got=describe_briefly(episode),
                expected="Episode(support, query) of NumPy arrays",
            )
        return episode

    @cached_property
    def _first(self) -> Episode:
        """A task, once it is known to follow from the generator alone."""
        first, again = self._drawn([0]), self._drawn([0])
        if _bits(again) != _bits(first):
            raise StructureError(
                "draw gives another task for the same generator",
                got=f"{describe_briefly(first)}, with other values in the second call",
                expected="a function of its generator alone; otherwise a run can be neither "
                "repeated nor resumed to the bit",
                write="the generator that draw is given, in place of numpy.random or of a loader",
            )
        if all(_bits(self._drawn([seed])) == _bits(first) for seed in range(1, _OTHERS)):
            warnings.warn(
                "draw gives the same task for every generator, so all tasks of all steps are the "
                "same: draw with the generator that it is given",
                stacklevel=2,
            )
        return first


_OTHERS = 8
"""Different tasks are mostly seen in the first draws. A few tasks may be equal by chance."""


def stacked(episodes: Sequence[Episode], like: Episode | None = None) -> Episode:
    """A batch of tasks of NumPy arrays. Raises `StructureError` unless they are alike."""
    like = episodes[0] if like is None else like
    for episode in episodes:
        if _shapes(episode) != _shapes(like):
            raise StructureError(
                "the tasks of a stream do not all have the same shapes",
                got=f"{describe(like)} and {describe(episode)}",
                expected="one shape for all tasks, because compiled code is for one shape; smaller "
                "tasks are filled up, and the mask of Examples marks the rows that count",
                write="Examples(inputs, targets, mask)",
            )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *episodes)


def _shapes(episode: Episode) -> list[Any]:
    return [jax.tree.structure(episode), *map(np.shape, jax.tree.leaves(episode))]


def _is_of_a_key(draw: Callable) -> bool:
    try:
        return isinstance(jax.eval_shape(draw, jax.random.key(0)), Episode)
    except Exception:
        return False


def _bits(episode: Episode) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(episode)]


class _Reader:
    """The batches of the outer steps from `first` on, drawn ahead until it is closed."""

    def __init__(self, tasks: StreamedTasks, numbers: list[int], first: int, batch: int):
        grain = optional_package("grain", "streaming", extra="data")
        _ = tasks._first  # an error is raised here, and not in a thread
        draw = lambda step: tasks._stacked(numbers, int(step), batch)
        options = grain.ReadOptions(min(tasks.threads, tasks.ahead), tasks.ahead)
        steps = grain.MapDataset.range(first, _LAST).map(draw).to_iter_dataset(options)
        self._ahead, self._next = iter(steps), first
        self._drawn: dict[int, Episode] = {}

    def can_give(self, first: int) -> bool:
        return min(self._drawn, default=self._next) <= first <= self._next

    def take(self, first: int, n: int) -> list[Episode]:
        """The batches of n steps. Those of steps before them are dropped."""
        self._drawn = {step: batch for step, batch in self._drawn.items() if step >= first}
        while self._next < first + n:
            self._drawn[self._next] = next(self._ahead)
            self._next += 1
        return [self._drawn[step] for step in range(first, first + n)]

    def close(self) -> None:
        self._ahead.close()


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
    return np.asarray(key_numbers(key)).ravel().tolist()


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
            )

    def __call__(self, rng: np.random.Generator) -> Episode:
        """One task."""
        chosen = rng.choice(self.images.shape[0], self.ways, replace=False)
        number = self.shots + self.queries
        rows, source = [], []
        for row in chosen.tolist():
            count = self.images.shape[1] if self.counts is None else self.counts[row]
            drawn = rng.choice(count, number, replace=False).tolist()
            rows.append(np.stack([self.images[row, example] for example in drawn]))
            source.append([(row, example) for example in drawn])
        images, numbers = np.stack(rows), np.array(source, np.int32)
        part = lambda rows: labelled(images[:, rows], np, numbers[:, rows])
        return Episode(part(slice(None, self.shots)), part(slice(self.shots, None)))
