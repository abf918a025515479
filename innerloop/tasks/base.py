"""Task distributions: functions from a key to a batch of episodes, on the device."""

import abc
import zlib
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
from jax.core import Tracer
from jaxtyping import PRNGKeyArray

from innerloop.arguments import CheckedModule, at_least, checked, function, random_key
from innerloop.batches import task_count
from innerloop.checks import explained
from innerloop.diagnostics.checks.source import raised_at, written_at
from innerloop.diagnostics.findings import Finding, Severity
from innerloop.errors import StructureError
from innerloop.problem import Episode
from innerloop.programs import difference_between_traces, inputs_read, operations
from innerloop.programs.compiled import compiled

# Evaluation keys live in a stream of their own: the first batch of a training loop that starts
# from the same integer seed must not be the evaluation set.
_EVALUATION_STREAM = 0x6576616C


@runtime_checkable
class TaskDistribution(Protocol):
    """Anything that draws tasks.

    `sample(key, n)` returns a batch of `n` episodes (one more leading axis, the task axis, on every
    leaf). It is a pure function that runs on the device under `jax.jit`, with `n` static. A number
    that it draws or reads on the host would be the same in every step, so such a distribution is
    refused; use `StreamedTasks` for tasks from the host. Task i depends only on
    `jax.random.split(key, n)[i]`, so a set of tasks is the same in whatever blocks it is evaluated.

    A distribution of your own needs only this method; `sample_each` and `IndependentTasks` make it
    from a function that draws one task. Hold arrays as leaves of an `equinox.Module`, so that they
    are arguments of a compiled function and not constants inside it.
    """

    def sample(self, key: PRNGKeyArray, n: int) -> Episode: ...


@checked("tasks.sample", key=random_key(), n=at_least(1, such_as=8))
def sample_each(
    sample_one: Callable[[PRNGKeyArray], Episode], key: PRNGKeyArray, n: int
) -> Episode:
    """Draw `n` independent tasks: `sample_one` mapped over `jax.random.split(key, n)`.

    Raises:
        StructureError: If `n` is not an integer of at least 1, or `sample_one` draws on the host.
    """
    keys, draw_one = jax.random.split(key, n), _traceable("sample_one", sample_one, "key")
    # An uncompiled call pays for this in each call (20 to 50 ms of 40 to 60): a function that was
    # checked before is not known again, because a method is a new object in each call, and a module
    # that holds arrays has no hash. A compiled function pays once.
    require_pure(sample_one, draw_one, keys[0])
    return jax.vmap(draw_one)(keys)


def sampled(tasks: TaskDistribution, key: PRNGKeyArray, n: int) -> Episode:
    """The result of `tasks.sample(key, n)`; an error in `sample` is explained.

    Raises:
        StructureError: The distribution does not give n tasks, or it draws on the host while it is
            traced.
    """
    arrays, rest = eqx.partition(tasks, eqx.is_array)

    def draw(arrays: Any, key: PRNGKeyArray) -> Episode:
        sample = eqx.combine(arrays, rest).sample
        return _traceable(f"{type(tasks).__name__}.sample", sample, "key", "n")(key, n)

    if isinstance(key, Tracer):  # only a trace turns numbers from the host into constants
        require_pure(tasks, draw, arrays, key)
    held = _PURE.set(isinstance(key, Tracer))
    try:
        episodes = draw(arrays, key)
    finally:
        _PURE.reset(held)
    if task_count(episodes) != n:
        raise StructureError(
            "the task distribution returns a different number of tasks than it was asked for",
            got=f"{task_count(episodes)} tasks from {type(tasks).__name__}",
            expected=f"{n} tasks from sample(key, {n})",
            write="tasks.IndependentTasks(sample_one)",
        )
    return episodes


def _traceable(name: str, function: Callable[..., Episode], *parts: str) -> Callable[..., Episode]:
    """A function that draws tasks; an error that asks for the value of its key is explained."""
    draw = explained(name, function, *parts)

    def traced(*arguments: Any) -> Episode:
        try:
            return draw(*arguments)
        except _VALUE_ASKED_FOR as error:
            place = raised_at(error)
            raise StructureError(
                f"{name} reads the value of its key on the host, where it is not known",
                got=type(error).__name__ + (f", at {place}" if place else ""),
                expected="a function that JAX can trace: it is compiled once for all keys",
                write=_DRAWN,
            ) from error

    return traced


_VALUE_ASKED_FOR = (
    *(jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError),
    *(jax.errors.TracerIntegerConversionError, jax.errors.NonConcreteBooleanIndexError),
)
_DRAWN = (
    "jax.random with the key that it is given, or, for data and generators of the host, "
    "tasks.StreamedTasks(draw), which calls draw(numpy_generator) ahead of the steps"
)


def tasks_of_any_key(tasks: TaskDistribution, n: int) -> list[Finding]:
    """A finding if the tasks of a distribution do not depend on the key; nothing is run."""
    sample = lambda key: sampled(tasks, key, n)
    program = jax.make_jaxpr(sample)(jax.random.key(0)).jaxpr
    # The result of a callback may differ in each call, whatever it is given.
    callback = any("callback" in operation.name for operation in operations(program))
    if callback or inputs_read(program)[-1]:
        return []
    return [
        Finding(
            Severity.WARNING,
            "every outer step has the same tasks",
            f"{type(tasks).__name__}.sample",
            "the tasks do not depend on the key that sample is given",
            f"{_DRAWN}; no change, if there is only one set of tasks",
        )
    ]


_PURE = ContextVar("whether the function that draws was traced twice already", default=False)


def require_pure(source: Any, function: Callable, *args: Any) -> None:
    """Raise `StructureError` if a function that draws tasks differs each time it is traced.

    The function is traced twice and not run, so a callback does not advance a source on the host.

    Args:
        source: The task distribution, or the function that draws one task, for the message.
        function: The function to trace.
        *args: The arguments of the function.
    """
    if _PURE.get():
        return
    held = _PURE.set(True)
    try:
        found = difference_between_traces(function, *args)
    finally:
        _PURE.reset(held)
    if found is None:
        return
    place = found.operation and written_at(found.operation)
    name = getattr(source, "__qualname__", type(source).__name__)
    raise StructureError(
        "the tasks are drawn on the host while the program is traced, so every step would have the "
        "same ones",
        got=f"{name}: a different program each time it is traced"
        + (f", at {place}" if place else ""),
        expected="a function of its key alone; a value that it reads on the host is read once and "
        "is then a constant of the compiled program",
        write=_DRAWN,
    )


class OneByOne(CheckedModule):
    """The base of distributions that draw each task by itself, from a key of its own."""

    @abc.abstractmethod
    def sample_one(self, key: PRNGKeyArray) -> Episode:
        """One task."""

    def sample(self, key: PRNGKeyArray, n: int) -> Episode:
        """A batch of `n` episodes. Raises `StructureError` for `n < 1`."""
        return sample_each(self.sample_one, key, n)


class IndependentTasks(CheckedModule):
    """The task distribution of a function that draws one task.

    Args:
        sample_one: `key -> Episode`, a pure function; if it needs data, an `equinox.Module` with
            `__call__`.
    """

    sample_one: Callable[[PRNGKeyArray], Episode] = function("key", gives="Episode")

    def sample(self, key: PRNGKeyArray, n: int) -> Episode:
        """A batch of `n` episodes. Raises `StructureError` for `n < 1`."""
        return sample_each(self.sample_one, key, n)


def evaluation_key(seed: int, purpose: str) -> PRNGKeyArray:
    """The key of an evaluation set, which training and other purposes do not use.

    Args:
        seed: An integer seed.
        purpose: Any name, such as `"validation"` or `"test"`.
    """
    stream = jax.random.fold_in(jax.random.key(seed), _EVALUATION_STREAM)
    return jax.random.fold_in(stream, zlib.crc32(purpose.encode()))


@checked(n=at_least(1, such_as=600), seed=at_least(0, at_most=2**32 - 1, such_as=0))
def evaluation_episodes(tasks: TaskDistribution, n: int, seed: int, purpose: str = "test") -> Any:
    """A fixed evaluation set: `n` episodes that depend on `tasks`, `seed` and `purpose` alone.

    The first m of them are the evaluation set of size m. Compiled; the draws are apart from those
    of `tasks.sample(jax.random.key(seed), n)` and, for one distribution and seed, from those of
    another `purpose`.

    Raises:
        StructureError: If `n` is not an integer of at least 1 or `seed` is not an integer from 0 to
            2³² - 1, if the tasks are drawn on the host, or if their number is not n.
    """
    return _sample(tasks, evaluation_key(seed, purpose), n)


@compiled
def _sample(tasks: TaskDistribution, key: PRNGKeyArray, n: int) -> Any:
    return sampled(tasks, key, n)
