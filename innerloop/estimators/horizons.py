"""How long inner runs are, in whole windows, and what each of their losses weighs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from innerloop.arguments import at_least, checked, require
from innerloop.errors import StructureError
from innerloop.gradients.base import weights_of_steps
from innerloop.problem import Problem

Horizon = int | tuple[int, ...]
"""Inner steps of a whole run, or the numbers of steps that are drawn from, each as likely."""


@checked(window=at_least(1), values=at_least(1))
def log_uniform(low: int, high: int, window: int, values: int = 16) -> tuple[int, ...]:
    """Horizons that are uniform in their logarithm: `values` of them, in whole windows.

    Short runs, where most is learned about the beginning, are many, and some go on far beyond
    (Metz et al. 2022, arXiv 2211.09760, draw them so for learned optimizers).

    Raises `StructureError` for a `low` below the window or above `high`.
    """
    require(at_least(window), "low", low, "log_uniform")
    require(at_least(low), "high", high, "log_uniform")
    lengths = window * np.round(np.geomspace(low, high, values) / window).astype(int)
    return tuple(lengths.tolist())


class Lengths(NamedTuple):
    """Horizons as arrays, for runs that each have one of them.

    - `lengths`: inner steps, one entry per horizon
    - `weights`: `(horizons, longest + 1)`, of the losses after 0, 1, ... steps; None: of the last
      alone
    - `scale`: windows per run, on average over horizons. A window's losses are multiplied by it, so
      that their mean over the windows of many runs is the mean of the meta-objective.
    """

    lengths: np.ndarray
    weights: np.ndarray | None
    scale: float


def lengths_of(horizon: Horizon, window: int, overlap: int, problem: Problem) -> Lengths:
    """The horizons of a problem, the weights of its losses among them."""
    lengths = np.asarray(as_tuple(horizon), np.int32)
    scale = float(np.mean((lengths - overlap) // (window - overlap)))
    if problem.step_weights is None:
        return Lengths(lengths, None, scale)
    dtype = jnp.result_type(float)
    with jax.ensure_compile_time_eval():  # of numbers alone, so that zeros are known to be zeros
        rows = [np.asarray(weights_of_steps(problem.step_weights, int(n), dtype)) for n in lengths]
    longest = max(len(row) for row in rows)
    padded = np.stack([np.pad(row, (0, longest - len(row))) for row in rows])
    return Lengths(lengths, padded, scale)


def as_tuple(horizon: Horizon) -> tuple[int, ...]:
    """A single horizon is the only one of its kind."""
    return horizon if isinstance(horizon, tuple) else (horizon,)


def check_windows(window: Any, horizon: Any, overlap: Any, name: str) -> None:
    """Raise `StructureError` unless every horizon is a whole number of windows."""
    if overlap >= window:
        raise StructureError(
            "successive windows share some of their steps, not all of them",
            got=f"overlap={overlap} of window={window}",
            expected="0 <= overlap < window",
            write=f"{name}(window={overlap + 1}, ..., overlap={overlap}), or a smaller overlap",
        )
    if not as_tuple(horizon):
        require(at_least(window), "horizon", horizon, name)
    stride = window - overlap
    for length in as_tuple(horizon):
        require(at_least(1), "horizon", length, name)
        if length >= window and (length - overlap) % stride == 0:
            continue
        near = overlap + stride * max(1, round((length - overlap) / stride))
        raise StructureError(
            "a horizon is made of whole windows",
            got=f"horizon={length} with window={window}"
            + (f" and overlap={overlap}" if overlap else ""),
            expected=f"{window} steps, or a multiple of {stride} more",
            write=f"{name}(window={window}, horizon={near}, ...)",
        )
