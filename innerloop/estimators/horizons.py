"""The lengths of inner runs, in whole windows, and the weights of their losses."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from innerloop.arguments import at_least, checked, require
from innerloop.errors import StructureError
from innerloop.gradients.base import weights_of_steps
from innerloop.problem import Problem

Horizon = int | tuple[int, ...]
"""Inner steps of a whole run, or numbers of steps that runs draw from with equal probability."""


@checked(window=at_least(1), values=at_least(1))
def log_uniform(low: int, high: int, window: int, values: int = 16) -> tuple[int, ...]:
    """Horizons that are uniform in their logarithm, in whole windows.

    Short runs, where most is learned about the beginning, are many, and some are far longer (Metz
    et al. 2022, arXiv 2211.09760, draw them so for learned optimizers).

    Args:
        low: The shortest horizon, at least one window.
        high: The longest horizon.
        window: Inner steps of a window.
        values: How many horizons there are.

    Raises:
        StructureError: `low` is below the window or above `high`, or a count is below one.
    """
    require(at_least(window), "low", low, "log_uniform")
    require(at_least(low), "high", high, "log_uniform")
    lengths = window * np.round(np.geomspace(low, high, values) / window).astype(int)
    return tuple(lengths.tolist())


class Lengths(NamedTuple):
    """Horizons as arrays.

    Attributes:
        lengths: `(horizons,)`, inner steps.
        weights: `(horizons, longest + 1)`, the weights of the losses after 0, 1, ... steps; None if
            only the last loss counts.
        scale: Windows per run, on average over horizons. A window's losses are multiplied by it, so
            that their mean over the windows of many runs is the mean of the meta-objective.
    """

    lengths: np.ndarray
    weights: np.ndarray | None
    scale: float


def lengths_of(horizon: Horizon, window: int, overlap: int, problem: Problem) -> Lengths:
    """The horizons with the weights of a problem's losses."""
    lengths = np.asarray(as_tuple(horizon), np.int32)
    scale = float(np.mean((lengths - overlap) // (window - overlap)))
    if problem.step_weights is None:
        return Lengths(lengths, None, scale)
    dtype = jnp.result_type(float)
    with jax.ensure_compile_time_eval():  # so that zeros are known while tracing
        rows = [np.asarray(weights_of_steps(problem.step_weights, int(n), dtype)) for n in lengths]
    longest = max(len(row) for row in rows)
    padded = np.stack([np.pad(row, (0, longest - len(row))) for row in rows])
    return Lengths(lengths, padded, scale)


def as_tuple(horizon: Horizon) -> tuple[int, ...]:
    """The horizons as a tuple."""
    return (horizon,) if isinstance(horizon, int | np.integer) else tuple(horizon)


def check_windows(window: Any, horizon: Any, overlap: Any, name: str) -> None:
    """Raise `StructureError` unless every horizon is a whole number of windows."""
    if overlap >= window:
        raise StructureError(
            "successive windows share some of their steps, not all of them",
            got=f"overlap={overlap} of window={window}",
            expected="0 <= overlap < window",
            write=f"{name}(..., window={overlap + 1}, overlap={overlap})",
        )
    stride = window - overlap
    for length in as_tuple(horizon):
        if length >= window and (length - overlap) % stride == 0:
            continue
        near = overlap + stride * max(1, round((length - overlap) / stride))
        raise StructureError(
            "a horizon is made of whole windows",
            got=f"horizon={length} with window={window}"
            + (f" and overlap={overlap}" if overlap else ""),
            expected=f"{window} steps, or a multiple of {stride} more",
            write=f"{name}(..., window={window}, horizon={near})",
        )
