"""The measurement of one meta-gradient: compilation, comparison with the exact one, timing."""

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from innerloop.diagnostics.comparison.result import ComparisonRow
from innerloop.diagnostics.compiled import Compiled, compile_for
from innerloop.errors import GradientError, InnerloopError
from innerloop.fidelity import Fidelity
from innerloop.gradients import MetaGradient
from innerloop.problem import Problem

_MOST_CALLS = 100
"""The largest number of timed calls of one program; more do not improve the median."""


@dataclass(eq=False)
class Entry:
    """A meta-gradient that is measured.

    Args:
        row: The values of its row so far.
        fidelity: The fidelity of the meta-gradient.
        program: The compiled meta-gradient; None before compilation and after a failure.
        distances: Cosine and relative error of each draw.
        finite: Whether every estimate was finite.
    """

    row: ComparisonRow
    fidelity: Fidelity
    program: Compiled | None = None
    distances: list[tuple[float, float]] = field(default_factory=list)
    finite: bool = True

    def set(self, **fields: Any) -> None:
        """Fill in fields of the row."""
        self.row = self.row._replace(**fields)

    def refuse(self, error: Exception) -> None:
        """Record why there is no estimate."""
        self.set(refusal=reason(error))
        self.program = None

    def compile(
        self, build: Callable[[MetaGradient, Problem], Callable], problem: Problem, arguments: tuple
    ) -> None:
        """Trace and compile the meta-gradient. An error refuses it, because the problem itself is
        valid.

        The error may come from another library: a custom rule without forward mode in mixed mode,
        or a program that is too large for the device.
        """
        try:
            of_problem = lambda problem: build(self.row.gradient, problem)
            self.program = compile_for(of_problem, problem, *arguments)
        except Exception as error:
            self.refuse(error)
            return
        self.set(
            fidelity=self.fidelity,
            memory=self.program.memory,
            compile_seconds=self.program.seconds,
        )

    def estimate(self, *arguments: PyTree) -> np.ndarray | None:
        """The meta-gradient as one vector in float64; None if it is refused or fails now."""
        if self.program is None:
            return None
        level = logging.root.manager.disable
        logging.disable(logging.ERROR)  # JAX logs the tracebacks of failed run-time checks
        try:
            _, grads = self.program.call(*arguments)
            leaves = map(np.asarray, jax.tree.leaves(grads))
            return np.concatenate([leaf.astype(np.float64).ravel() for leaf in leaves])
        except Exception as error:
            self.refuse(error)
        finally:
            logging.disable(level)


def measure_errors(entries: Sequence[Entry], reference: str, given: tuple, keys: Array) -> None:
    """Fill in cosine and relative error, with the first of the keys or, if stochastic, with all.

    Args:
        entries: The meta-gradients.
        reference: The name of the one that the others are compared with.
        given: Meta-parameters and episodes.
        keys: The keys of the draws.

    Raises:
        GradientError: If the reference fails when it runs.
    """
    main = next(entry for entry in entries if entry.row.name == reference)
    zero = False
    draws = len(keys) if any(entry.program and entry.fidelity.draws for entry in entries) else 1
    for i, key in enumerate(keys[:draws]):
        exact = main.estimate(*given, key)
        if exact is None:
            raise GradientError(
                f"the reference {main.row.name} fails: {main.row.refusal}",
                got=f"exact={main.row.name}",
                expected="a meta-gradient that gives a gradient here",
            )
        zero = zero or not np.any(exact)
        for entry in entries:
            if i and not entry.fidelity.draws:
                continue
            estimate = exact if entry is main else entry.estimate(*given, key)
            if estimate is not None:
                entry.finite &= bool(np.all(np.isfinite(estimate)))
                entry.distances.append(_distance(estimate, exact))
    for entry in entries:
        if entry.program is not None:
            entry.set(**_statistics(entry.distances, entry.fidelity.draws))
            entry.set(note=_note(zero, main.finite, entry.finite, entry.row.cosine))


def measure_seconds(entries: Sequence[Entry], arguments: tuple, seconds: float) -> None:
    """Fill in the median time of a warm call.

    The programs take turns, with a different one first in each round, so that other load on the
    machine affects all of them equally.
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
    """An error in one line: the problem, and what to write instead."""
    if isinstance(error, InnerloopError):
        return error.problem + error.cure
    message = str(error)
    # A program that is compiled ahead wraps errors of its run-time checks into a traceback.
    raised = re.search(r"EquinoxRuntimeError: (.+)", message)
    if raised:
        return re.sub(r"\. Got: .*?(?=\. Write: |$)", "", raised.group(1))
    first = next((line.strip() for line in message.splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:300]


def _distance(estimate: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """Cosine and relative error; NaN if they are undefined."""
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
    """Why the cosine is undefined; None if it is defined."""
    if cosine is None or np.isfinite(cosine):
        return None
    if not reference_finite:
        return "The exact meta-gradient is not finite, so nothing can be held against it."
    if not finite:
        return "This meta-gradient is not finite."
    if zero:
        return "The exact meta-gradient is zero, so it has no direction and errors no scale."
    return "This meta-gradient is zero, so it has no direction."
