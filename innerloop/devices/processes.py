"""Several processes, on one machine or many, that train together: all do the same."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np

from innerloop.errors import InnerloopError, RunError


def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Make this process one of several, before anything is computed.

    Without arguments the cluster is found by `jax.distributed`, which knows SLURM, Open MPI and
    the usual clouds. Otherwise `coordinator` is `host:port` of process 0.
    """
    jax.distributed.initialize(coordinator, processes, process)


def is_first() -> bool:
    """Whether this process writes what one alone must write."""
    return jax.process_index() == 0


def in_any(happened: bool) -> bool:
    """Whether it happened in one of the processes: all must do the same about it."""
    return bool(np.any(_in_each(happened)))


def same_in_all(value: int) -> bool:
    """Whether every process has the same number here."""
    return len(np.unique(_in_each(value))) == 1


@contextmanager
def together() -> Iterator[None]:
    """An error of the library that one process raises in here is raised in all.

    Otherwise the others would wait for it in the next sum. Nothing in here may wait for others.
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
            write="what the other process says",
        )


def _in_each(value: bool | int) -> np.ndarray:
    if jax.process_count() == 1:
        return np.asarray([value])
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.asarray(value)))
