"""Tasks in the order in which an iterator on the host yields them."""

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from innerloop.arguments import at_least, checked, function, random_key
from innerloop.checks import describe_briefly
from innerloop.errors import DataError, StructureError
from innerloop.problem import Episode
from innerloop.tasks.streamed import NO_SETTING, HostTasks, on_device, stacked


@checked(iterate=function("epoch", gives="iterable of Episode"), ahead=at_least(1, such_as=16))
@dataclass(frozen=True, eq=False)
class IteratedTasks(HostTasks):
    """Tasks from any Python iterator, such as a PyTorch or Grain data loader.

    ```python
    def iterate(epoch):
        for inputs, targets in loader:
            yield il.Episode(
                il.Examples(inputs[:5], targets[:5]), il.Examples(inputs[5:], targets[5:])
            )


    tasks = il.tasks.IteratedTasks(iterate)
    ```

    `WholeTasks` accepts them in place of a task distribution. A thread reads the iterator ahead of
    the device. An outer step takes the next `batch` tasks; when an epoch ends, the next one begins.
    A resumed run reads the tasks of the earlier steps and discards them, so it gives the same bits
    as an uninterrupted run if `iterate` yields the same tasks for the same epoch.

    Use `StreamedTasks` if a task can be drawn from a random generator: its tasks have no order, it
    draws them in several threads, and a resumed run does not read the tasks of earlier steps.

    Args:
        iterate: `epoch -> iterable of Episode`, called with 0, 1, 2, … Each episode is one task. It
            consists of NumPy arrays, or of values that NumPy converts to arrays, with the same
            shapes in all tasks. Inputs of `Examples` of dtype uint8 are pixels: on the device, they
            are real numbers in [0, 1].
        ahead: The number of batches that are read ahead.

    Raises:
        StructureError: If `ahead` is below one. When tasks are read: if the iterator yields
            anything but an `Episode`, or tasks of different shapes.
        DataError: When tasks are read: if an epoch has no task.
    """

    iterate: Callable[[int], Iterable[Episode]]
    ahead: int = 16
    _readers: dict = field(default_factory=dict, init=False, repr=False, metadata=NO_SETTING)

    @checked("tasks.sample", key=random_key(), n=at_least(1, such_as=8))
    def sample(self, key: PRNGKeyArray, n: int) -> Episode:
        """Returns the first `n` tasks, for validation and test sets. The key has no effect.

        Raises:
            StructureError: If it is called in a compiled function, which cannot wait for the host.
        """
        self._refuse_tracing(key)
        return on_device(stacked(list(itertools.islice(self._tasks(), n))))

    def feed(self, key: PRNGKeyArray, first_step: int, n: int, batch: int) -> Episode:
        """Returns the tasks of n outer steps: NumPy arrays `(n, batch, ...)`."""
        reader = self._readers.get(batch)
        if reader is None or first_step < reader.step:
            self.close()
            reader = self._readers[batch] = _Ahead(self._batches(batch), self.ahead)
        while reader.step < first_step:
            reader.take()
        batches = [reader.take() for _ in range(n)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)

    def close(self) -> None:
        """Stops the thread that reads ahead."""
        while self._readers:
            self._readers.popitem()[1].close()

    def _batches(self, batch: int) -> Iterator[Episode]:
        tasks, first = self._tasks(), None
        while True:
            episodes = list(itertools.islice(tasks, batch))
            first = first or episodes[0]
            yield stacked(episodes, first)

    def _tasks(self) -> Iterator[Episode]:
        for epoch in itertools.count():
            number = 0
            for number, episode in enumerate(self.iterate(epoch), 1):  # noqa: B007
                if not isinstance(episode, Episode):
                    raise StructureError(
                        "the iterator must give one task after the other, each as an Episode",
                        got=describe_briefly(episode),
                        expected="Episode(support, query) of arrays",
                    )
                yield jax.tree.map(np.asarray, episode)
            if number == 0:
                raise DataError(
                    "an epoch of the iterator has no task",
                    got=f"nothing from iterate({epoch})",
                    expected="a new iterator for each epoch, with at least one task",
                    write="lambda epoch: iter(tasks), with a list or a loader of tasks",
                )


class _Ahead:
    """The items of an iterator, which a thread reads ahead."""

    def __init__(self, items: Iterator[Any], ahead: int):
        self.step = 0
        self._items, self._stopped = items, threading.Event()
        self._read: queue.Queue = queue.Queue(ahead)
        threading.Thread(target=self._run, name="IteratedTasks", daemon=True).start()

    def _run(self) -> None:
        try:
            for item in self._items:
                self._put((item, None))
                if self._stopped.is_set():
                    return
        except BaseException as error:  # `take` raises it in place of the item
            self._put((None, error))

    def _put(self, pair: tuple) -> None:
        while not self._stopped.is_set():
            try:
                return self._read.put(pair, timeout=0.1)
            except queue.Full:
                continue

    def take(self) -> Any:
        item, error = self._read.get()
        if error is not None:
            raise error
        self.step += 1
        return item

    def close(self) -> None:
        self._stopped.set()
