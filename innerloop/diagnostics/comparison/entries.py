"""Measuring one meta-gradient: compiled, held against the exact one, and timed."""

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from innerloop.adaptation import Adaptation
from innerloop.diagnostics.comparison.result import ComparisonRow
from innerloop.diagnostics.compiled import Compiled, compile_ahead
from innerloop.errors import GradientError, InnerloopError
from innerloop.gradients import MetaGradient

_MOST_CALLS = 100
"""Timed calls of one program: their median does not get better by more."""


@dataclass(eq=False)
class Entry:
    """A meta-gradient under measurement.

    Args:
        row: What is known of its row.
        adaptation: How one task is learned.
        program: The compiled meta-gradient; None before that, and where it fails.
        distances: By draw, cosine and relative error.
        finite: Whether every estimate was finite.
    """

    row: ComparisonRow
    adaptation: Adaptation
    program: Compiled | None = None
    distances: list[tuple[float, float]] = field(default_factory=list)
    finite: bool = True

    @property
    def stochastic(self) -> bool:
        """Whether it draws random numbers, so that estimates differ."""
        return self.row.gradient.fidelity(self.adaptation).draws

    def set(self, **fields: Any) -> None:
        """Fill in fields of the row."""
        self.row = self.row._replace(**fields)

    def refuse(self, error: Exception) -> None:
        """Note why there is no estimate."""
        self.set(refusal=reason(error))
        self.program = None

    def compile(self, build: Callable[[MetaGradient], Callable], arguments: tuple) -> None:
        """Trace and compile it. An error refuses this meta-gradient, as the problem is sound.

        That covers what other libraries raise: a custom rule without forward mode under mixed mode,
        a program too large for the device.
        """
        try:
            self.program = compile_ahead(build(self.row.gradient), *arguments)
        except Exception as error:
            self.refuse(error)
            return
        self.set(
            fidelity=self.row.gradient.fidelity(self.adaptation),
            memory=self.program.memory,
            compile_seconds=self.program.seconds,
        )

    def estimate(self, arguments: tuple) -> np.ndarray:
        """The meta-gradient as one vector in float64."""
        assert self.program is not None
        with _quiet_callbacks():
            _, grads = self.program.call(*arguments)
            leaves = map(np.asarray, jax.tree.leaves(grads))
            return np.concatenate([leaf.astype(np.float64).ravel() for leaf in leaves])


def measure_errors(
    entries: Sequence[Entry],
    reference: str,
    arguments_at: Callable[[Array], tuple],
    keys: Array,
) -> None:
    """Fill in cosine and relative error, on the first of the keys or, if stochastic, on all.

    Raises `GradientError` where the reference fails when it runs.
    """
    main = next(entry for entry in entries if entry.row.name == reference)
    others = [entry for entry in entries if entry is not main and entry.program is not None]
    zero = False
    draws = len(keys) if any(entry.stochastic for entry in [*others, main]) else 1
    for i, key in enumerate(keys[:draws]):
        arguments = arguments_at(key)
        exact = _reference_estimate(main, arguments)
        zero = zero or not np.any(exact)
        for entry in [main, *others]:
            if entry.program is None or (i and not entry.stochastic):
                continue
            try:
                estimate = exact if entry is main else entry.estimate(arguments)
            except Exception as error:
                entry.refuse(error)
                continue
            entry.finite &= bool(np.all(np.isfinite(estimate)))
            entry.distances.append(_distance(estimate, exact))
    for entry in [main, *others]:
        if entry.program is not None:
            entry.set(**_statistics(entry.distances, entry.stochastic))
            entry.set(note=_note(zero, main.finite, entry.finite, entry.row.cosine))


def measure_seconds(entries: Sequence[Entry], arguments: tuple, seconds: float) -> None:
    """Fill in the median time of a warm call.

    The programs take turns, so that whatever else the machine does falls on all of them alike; the
    one that begins changes.
    """
    entries = [entry for entry in entries if entry.program is not None]
    taken: list[list[float]] = [[] for _ in entries]
    end = time.perf_counter() + seconds * len(entries)
    for turn in range(_MOST_CALLS):
        for i in np.roll(np.arange(len(entries)), -turn):
            program = entries[i].program
            assert program is not None
            begin = time.perf_counter()
            jax.block_until_ready(program.call(*arguments))
            taken[i].append(time.perf_counter() - begin)
        if time.perf_counter() > end:
            break
    for entry, times in zip(entries, taken, strict=True):
        entry.set(seconds=float(np.median(times)))


def reason(error: Exception) -> str:
    """An error in one line: what is wrong, and what to write instead."""
    if isinstance(error, InnerloopError):
        return f"{error.problem}. Write: {error.write}"
    message = str(error)
    # A program that is compiled ahead wraps what its run-time checks raise into a traceback.
    raised = re.search(r"EquinoxRuntimeError: (.+)", message)
    if raised:
        return re.sub(r"\. Got: .* Write: ", ". Write: ", raised.group(1))
    first = next((line.strip() for line in message.splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:300]


def _reference_estimate(main: Entry, arguments: tuple) -> np.ndarray:
    if main.program is not None:
        try:
            return main.estimate(arguments)
        except Exception as error:
            main.refuse(error)
    raise GradientError(
        f"the reference {main.row.name} fails: {main.row.refusal}",
        got=f"exact={main.row.name}",
        expected="a meta-gradient that gives a gradient here",
        write="compare(..., exact=...) with another reference, or a meta at which this one works",
    )


@contextmanager
def _quiet_callbacks() -> Iterator[None]:
    """JAX logs the traceback of a failed run-time check that is reported as a row anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _distance(estimate: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """Cosine and relative error; NaN where they are undefined."""
    sizes = np.linalg.norm(estimate), np.linalg.norm(exact)
    if not (np.isfinite(sizes[0]) and np.isfinite(sizes[1]) and sizes[1] > 0):
        return np.nan, np.nan
    error = float(np.linalg.norm(estimate - exact) / sizes[1])
    if sizes[0] == 0:
        return np.nan, error
    return float(np.clip((estimate / sizes[0]) @ (exact / sizes[1]), -1, 1)), error


def _statistics(pairs: list[tuple[float, float]], stochastic: bool) -> dict[str, float | None]:
    cosines, errors = np.asarray(pairs).T
    spread = lambda values: float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return {
        "cosine": float(np.mean(cosines)),
        "relative_error": float(np.mean(errors)),
        "cosine_error": spread(cosines) if stochastic else None,
        "relative_error_error": spread(errors) if stochastic else None,
    }


def _note(zero: bool, reference_finite: bool, finite: bool, cosine: float | None) -> str | None:
    """Why the cosine is undefined, where it is."""
    if cosine is None or np.isfinite(cosine):
        return None
    if not reference_finite:
        return "The exact meta-gradient is not finite, so nothing can be held against it."
    if not finite:
        return "This meta-gradient is not finite."
    if zero:
        return "The exact meta-gradient is zero, so it has no direction and errors no scale."
    return "This meta-gradient is zero, so it has no direction."
