"""The search of `plan`, which compiles candidates one after another until one fits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax

from innerloop.adaptation import Adaptation
from innerloop.diagnostics.compiled import compile_ahead
from innerloop.errors import InnerloopError
from innerloop.gradients import MetaGradient
from innerloop.objective import meta_value_and_grad
from innerloop.problem import Problem

AT_A_TIME = 2**22
"""Bytes of temporary memory up to which more tasks at a time are faster on a CPU.

Above it, every call on a CPU sets up new memory page by page. An accelerator keeps its memory.
"""
FEWEST = 8
"""How many tasks must stay below `AT_A_TIME` for more than one at a time to be faster on a CPU.

Larger tasks consist of large matrix products, and XLA's products of batches are slower there.
"""


class Attempt(NamedTuple):
    """A meta-gradient with a chunk that was compiled.

    Attributes:
        gradient: The meta-gradient.
        chunk: How many tasks are run at a time.
        peak: Bytes of arguments, results and all temporary values.
        temporary: Bytes of all temporary values.
    """

    gradient: MetaGradient
    chunk: int
    peak: int
    temporary: int


@dataclass(eq=False)
class Search:
    """Compiles meta-gradients of one problem and records their memory.

    Args:
        problem: The problem.
        adaptation: How one task is learned.
        arguments: Meta-parameters, episodes and a key, as shapes.
        budget: The budget in bytes.
        attempts: The compiled candidates.
        refused: The candidates that raised while they were traced, each with its error.
    """

    problem: Problem
    adaptation: Adaptation
    arguments: tuple
    budget: int
    attempts: list[Attempt] = field(default_factory=list)
    refused: list[tuple[MetaGradient, Exception]] = field(default_factory=list)

    def first_that_fits(
        self, gradients: Sequence[MetaGradient], chunks: Sequence[int]
    ) -> Attempt | None:
        """The first gradient that fits the budget, with a chunk.

        Args:
            gradients: The candidates, in order of preference.
            chunks: How many tasks may be run at a time, largest first.

        Returns:
            The gradient with the largest chunk that fits the budget, or else with the smallest one.
            On a CPU, the temporary memory of the chunk is at most about `AT_A_TIME`, and the chunk
            is the smallest if that is less than `FEWEST` tasks. None if no gradient fits.
        """
        at_a_time = AT_A_TIME if jax.default_backend() == "cpu" else math.inf
        for gradient in gradients:
            smallest = self.attempt(gradient, chunks[-1])
            if smallest is None or smallest.peak > self.budget:
                continue
            per_task = smallest.temporary / smallest.chunk
            for chunk in chunks[:-1]:
                if per_task * max(chunk, FEWEST) > at_a_time:
                    continue
                if not self._cannot_fit(gradient, chunk):
                    attempt = self.attempt(gradient, chunk)
                    if attempt is not None and attempt.peak <= self.budget:
                        return attempt
            return smallest
        return None

    def least(self, gradients: Sequence[MetaGradient], chunk: int) -> Attempt | None:
        """The gradient that needs the least memory with this chunk; None if all are refused."""
        tried = [self.attempt(gradient, chunk) for gradient in gradients]
        known = [attempt for attempt in tried if attempt is not None]
        return min(known, key=lambda attempt: attempt.peak, default=None)

    def of(self, gradient: MetaGradient) -> list[Attempt]:
        """The compiled programs of a gradient."""
        return [attempt for attempt in self.attempts if attempt.gradient is gradient]

    def attempt(self, gradient: MetaGradient, chunk: int) -> Attempt | None:
        """A gradient with a chunk, compiled once; None if the gradient is refused.

        An error in the losses refuses only this gradient, since they may work with another.
        """
        if any(refused is gradient for refused, _ in self.refused):
            return None
        for known in self.of(gradient):
            if known.chunk == chunk:
                return known
        function = meta_value_and_grad(self.problem, self.adaptation, gradient, chunk=chunk)
        try:
            compiled = compile_ahead(function, *self.arguments)
        except (InnerloopError, TypeError, ValueError, NotImplementedError) as error:
            self.refused.append((gradient, error))
            return None
        self.attempts.append(Attempt(gradient, chunk, compiled.memory, compiled.temporary))
        return self.attempts[-1]

    def _cannot_fit(self, gradient: MetaGradient, chunk: int) -> bool:
        """Fewer tasks at a time take at least their share of the memory that more tasks took."""
        for known in self.of(gradient):
            share = known.temporary * chunk / known.chunk
            if known.chunk >= chunk and known.peak - known.temporary + share > self.budget:
                return True
        return False
