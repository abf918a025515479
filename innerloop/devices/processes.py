"""Several processes, on one machine or many, that train together and do the same."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np

from innerloop.errors import InnerloopError, RunError


def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Make this process one of several, before anything is computed.

    Without arguments, `jax.distributed` finds the cluster; it supports SLURM, Open MPI and the
    usual clouds.

    Args:
        coordinator: `host:port` of process 0.
        processes: The number of processes.
        process: The index of this process.
    """
    jax.distributed.initialize(coordinator, processes, process)


def is_first() -> bool:
    """Whether this process writes what only one process must write."""
    return jax.process_index() == 0


def in_any(happened: bool) -> bool:
    """Whether `happened` is true in one of the processes, so that all can act on it."""
    return bool(np.any(_in_each(happened)))


def same_in_all(value: int) -> bool:
    """Whether `value` is the same in every process."""
    return len(np.unique(_in_each(value))) == 1


@contextmanager
def together() -> Iterator[None]:
    """If one process raises an error of the library in this context, all processes raise one.

    Otherwise the others would wait for it in the next sum. Code in this context must not wait for
    other processes.
    """
    mine = None
    try:
        yield
    except InnerloopError as error:
        mine = error
    if in_any(mine is not None):
        raise mine or RunError(
            "another of the processes cannot go on",
            got=f"process {jax.process_index()} has no error of its own",
            expected="the same in every process",
        )


def _in_each(value: bool | int) -> np.ndarray:
    if jax.process_count() == 1:
        return np.asarray([value])
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.asarray(value)))
