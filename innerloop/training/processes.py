"""Several processes, on one machine or many, that train together."""

import jax
import numpy as np


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
    if jax.process_count() == 1:
        return happened
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(happened))))
