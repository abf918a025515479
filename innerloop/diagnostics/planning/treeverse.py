"""What `Binomial` costs: its loop turns by a schedule, so its trace does not tell."""

from functools import cache
from typing import Any

import jax
from jaxtyping import PyTree

from innerloop.adaptation import Adaptation, InnerStep
from innerloop.gradients.base import objective_after_run
from innerloop.gradients.inner import Exact
from innerloop.gradients.loops import StoreAll
from innerloop.problem import Episode, Problem
from innerloop.programs.cost import flops


class _Again(StoreAll):
    """A loop of so many times the steps, of which the first outputs are kept."""

    times: int

    def __call__(self, step: InnerStep, state: PyTree, steps: int) -> tuple[PyTree, Any]:
        state, outputs = super().__call__(step, state, self.times * steps)
        return state, jax.tree.map(lambda leaf: leaf[:steps], outputs)


def evaluations(steps: int, slots: int) -> int:
    """How often a step is evaluated while `steps` steps are reversed with `slots` kept states.

    About: where the states of the first sweep are kept is decided while it goes, before it is known
    how many there will be, and this count takes them where they would be placed afterwards. It was
    within 20% of the evaluations that were counted, from 17 to 1000 steps.
    """
    slots = min(slots, steps)
    return steps + _reverse(steps, slots - 1) - _first_descent(steps, slots - 1)


def _ahead(gap: int, free: int) -> int:
    """How far ahead of one kept state the next is placed: halfway, or one step if all fit."""
    return 1 if gap - 2 <= free else gap // 2


@cache
def _reverse(gap: int, free: int) -> int:
    """Evaluations that take the gradient back over `gap` steps to a kept state.

    Without a free slot every step is reached from that state anew.
    """
    if gap <= 2 or free == 0:
        return gap * (gap + 1) // 2
    ahead = _ahead(gap, free)
    return ahead + _reverse(gap - ahead, free - 1) + _reverse(ahead, free)


def _first_descent(gap: int, free: int) -> int:
    """Those on the way to the last kept state, which the first sweep has made already."""
    distance = 0
    while gap > 2 and free > 0:
        ahead = _ahead(gap, free)
        distance, gap, free = distance + ahead, gap - ahead, free - 1
    return distance


def step_flops(
    problem: Problem, adaptation: Adaptation, meta: PyTree, episodes: Episode, keys: Any
) -> float:
    """Operations of one forward step of all tasks: what a loop of twice the steps takes more."""

    def forward(times: int) -> float:
        objective = objective_after_run(problem, adaptation, Exact(), _Again(times))
        return flops(jax.vmap(objective, (None, 0, 0)), meta, episodes, keys)

    return (forward(2) - forward(1)) / (adaptation.steps or 1)
