"""The search of `plan`: which gradient and chunk to compile next, until one fits."""

from collections.abc import Callable
from typing import NamedTuple

from innerloop.diagnostics.planning.price import price
from innerloop.gradients import MetaGradient
from innerloop.programs.cost import Cost

_SMALL = 2**20
"""Bytes below which an estimate may be wrong by any factor, and compiling does not take long."""


class Draft(NamedTuple):
    """A gradient that has been traced for all tasks at once.

    - `cost`: of the whole batch
    - `temporary`: bytes of intermediate values, estimated from the trace
    """

    gradient: MetaGradient
    cost: Cost
    temporary: int


class Room(NamedTuple):
    """What a compiled program takes, in bytes.

    - `peak`: arguments, results and everything between
    - `temporary`: everything between
    """

    peak: int
    temporary: int


class Trial(NamedTuple):
    """A gradient with a chunk that was compiled."""

    draft: Draft
    chunk: int
    room: Room


class Pair(NamedTuple):
    """A gradient with a chunk, and what it is thought to take."""

    price: float
    chunk: int
    draft: Draft


class Search:
    """Compiles pairs from the cheapest on until one fits.

    - `trials`: what was compiled
    - `compile`: `(gradient, chunk) -> Room`
    """

    def __init__(self, compile: Callable[[MetaGradient, int], Room], tasks: int, budget: int):
        self.trials: list[Trial] = []
        self._compile = compile
        self._tasks = tasks
        self._budget = budget

    def first_that_fits(self, drafts: list[Draft], chunks: list[int]) -> Trial | None:
        """The cheapest pair that fits the budget; None where none does."""
        for pair in self._pairs(drafts, chunks):
            if self._is_hopeless(pair):
                continue
            trial = self.measure(pair.draft, pair.chunk)
            if trial.room.peak <= self._budget:
                return trial
        return None

    def smallest(self, drafts: list[Draft], chunk: int) -> Trial:
        """The pair with this chunk that takes the least memory, by its trace or when compiled."""
        for likely in sorted(drafts, key=lambda draft: draft.temporary)[:2]:
            self.measure(likely, chunk)
        of_these = [t for t in self.trials if any(t.draft is draft for draft in drafts)]
        return min(of_these, key=lambda trial: trial.room.peak)

    def verdict(self, draft: Draft, chosen: Trial) -> str:
        """Why this one was not chosen."""
        if any(trial.draft is draft for trial in self.trials):
            return "does not fit"
        best = self.price(chosen.draft, chosen.chunk)
        dearer = self.price(draft, chosen.chunk) >= best
        return "dearer" if dearer else "does not fit, by its trace"

    def measure(self, draft: Draft, chunk: int) -> Trial:
        """Compile a pair, unless that was done before."""
        for trial in self.trials:
            if trial.draft is draft and trial.chunk == chunk:
                return trial
        self.trials.append(Trial(draft, chunk, self._compile(draft.gradient, chunk)))
        return self.trials[-1]

    def _pairs(self, drafts: list[Draft], chunks: list[int]) -> list[Pair]:
        pairs = [
            Pair(self.price(draft, chunk), chunk, draft) for draft in drafts for chunk in chunks
        ]
        return sorted(pairs, key=lambda pair: pair.price)  # of equal ones the first comes first

    def price(self, draft: Draft, chunk: int) -> float:
        """What a pair is thought to take."""
        return price(draft.cost, draft.temporary, self._tasks, chunk)

    def _line(self, pair: Pair) -> float:
        """The peak by a straight line through two chunks of the same gradient; 0 without them."""
        known = sorted((t.chunk, t.room.peak) for t in self.trials if t.draft is pair.draft)
        if len(known) < 2:
            return 0.0
        (low, at_low), (high, at_high) = known[:2]
        return at_low + (at_high - at_low) * (pair.chunk - low) / (high - low)

    def _is_hopeless(self, pair: Pair) -> bool:
        """Whether the pair need not be compiled, as it cannot fit.

        Fewer tasks at a time take at least their share of the memory that more of them took; with
        two chunks compiled, a straight line through them is believed to a tenth. Of
        what was not compiled, the estimate from the trace is believed where it is twice as much
        as there is.
        """
        for trial in self.trials:
            if trial.draft is pair.draft and trial.chunk >= pair.chunk:
                rest = trial.room.peak - trial.room.temporary
                share = trial.room.temporary * pair.chunk / trial.chunk
                if rest + share > self._budget:
                    return True
        if self._line(pair) > 1.1 * self._budget:
            return True
        estimate = pair.draft.temporary * pair.chunk / self._tasks
        return estimate > 2 * self._budget + _SMALL
