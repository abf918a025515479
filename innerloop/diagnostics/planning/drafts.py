"""What is asked of `plan`, and what tracing and compiling say about one way to do it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jaxtyping import PyTree

from innerloop.adaptation import Adaptation, InnerRule
from innerloop.diagnostics.compiled import compile_ahead
from innerloop.diagnostics.planning.footprint import temporary_bytes
from innerloop.diagnostics.planning.search import Draft, Room
from innerloop.diagnostics.planning.treeverse import evaluations, step_flops
from innerloop.errors import GradientError, InnerloopError
from innerloop.gradients import Binomial, MetaGradient, Segments, Unroll
from innerloop.objective import meta_value_and_grad, task_count
from innerloop.problem import Episode, Problem
from innerloop.programs.cost import Cost, program_cost
from innerloop.trees import abstract


class Refused(NamedTuple):
    """A candidate without a meta-gradient for these losses."""

    gradient: MetaGradient
    error: Exception


class Request:
    """A problem, an adaptation, and the shapes of a batch.

    - `refused`: the candidates that raised while they were traced
    """

    def __init__(self, problem: Problem, adaptation: Adaptation, meta: PyTree, episodes: Episode):
        self.problem = problem
        self.adaptation = adaptation
        self.meta, self.episodes = abstract((meta, episodes))
        self.key = abstract(jax.random.key(0))
        self.tasks = task_count(episodes)
        self.refused: list[Refused] = []
        self._functions: list[tuple[MetaGradient, int, Callable]] = []
        self._step_flops: float | None = None

    def drafts(self, gradients: Sequence[MetaGradient]) -> list[Draft]:
        """Those that can be traced; of several that come to the same program, the first.

        Where losses went through one candidate, what they raise in another is that one's refusal.
        """
        drafts: dict[tuple[Cost, int], Draft] = {}
        for gradient in gradients:
            try:
                draft = self._draft(gradient)
            except (InnerloopError, TypeError, ValueError, NotImplementedError) as error:
                if not (drafts or isinstance(error, GradientError)):
                    raise
                self.refused.append(Refused(gradient, error))
            else:
                drafts.setdefault((draft.cost, draft.temporary), draft)
        return list(drafts.values())

    def room(self, gradient: MetaGradient, chunk: int) -> Room:
        """What the compiled program of this gradient and chunk takes."""
        compiled = compile_ahead(
            self._function(gradient, chunk), self.meta, self.episodes, self.key
        )
        return Room(compiled.memory, compiled.temporary)

    def _draft(self, gradient: MetaGradient) -> Draft:
        program = self._trace(gradient)
        cost = program_cost(program)
        if isinstance(gradient, Unroll) and isinstance(gradient.loop, Binomial):
            cost = self._binomial_cost(gradient.loop.slots, gradient.inner)
        return Draft(gradient, cost, temporary_bytes(program))

    def _trace(self, gradient: MetaGradient):
        function = self._function(gradient, self.tasks)
        return jax.jit(function).trace(self.meta, self.episodes, self.key).jaxpr

    def _function(self, gradient: MetaGradient, chunk: int) -> Callable:
        """The same function for the same arguments: JAX keeps what it traced of it."""
        for known, size, function in self._functions:
            if known is gradient and size == chunk:
                return function
        function = meta_value_and_grad(self.problem, self.adaptation, gradient, chunk=chunk)
        self._functions.append((gradient, chunk, function))
        return function

    def _binomial_cost(self, slots: int, inner: InnerRule) -> Cost:
        """Every state kept, and the steps that are taken once more because it is not."""
        cost = program_cost(self._trace(Unroll(inner, Segments(1))))
        if self._step_flops is None:
            keys = jax.eval_shape(lambda key: jax.random.split(key, self.tasks), self.key)
            bare = lambda episodes: Episode(episodes.support, episodes.query)
            episodes = jax.eval_shape(bare, self.episodes)
            self._step_flops = step_flops(self.problem, self.adaptation, self.meta, episodes, keys)
        steps = self.adaptation.steps or 0
        more = max(0, evaluations(steps, slots) - 2 * steps)
        share = more / (2 * steps)
        return Cost(cost.flops + more * self._step_flops, int((1 + share) * cost.calls), False)
