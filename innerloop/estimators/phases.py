"""Two estimators one after the other."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.arguments import at_least, instance
from innerloop.errors import InnerloopError
from innerloop.estimators.base import SUCH_AS, Apart, CheckedPart, Estimate, Estimator, TaskSet
from innerloop.estimators.combination import Combination, joined
from innerloop.problem import state_form


class FirstState(NamedTuple):
    """The state while the first estimator is followed."""

    state: PyTree


class ThenState(NamedTuple):
    """The state while the second estimator is followed."""

    state: PyTree


class Phases(Combination):
    """One estimator in the outer steps below `until`, and another one from then on.

    ```python
    il.estimators.Phases(first_order, exact, until=1000)
    ```

    The state of `then` begins at the step `until`, from that step's meta-parameters; the state of
    `first` is dropped, except for the model state, which `then` continues if it has one of the same
    structure, shapes and dtypes. Each phase is compiled when it begins. Metrics are those of the
    estimator in use. Phases nest, for more than two.

    Args:
        first: The estimator of the outer steps 0 ... `until - 1`.
        then: The estimator of the steps from `until` on.
        until: The first outer step of `then`, at least 1.

    Raises:
        StructureError: A part is no estimator, or `until` is below one.
    """

    first: Estimator = instance(Estimator, **SUCH_AS)
    then: Estimator = instance(Estimator, **SUCH_AS)
    until: int = at_least(1, such_as=1000, static=True, kw_only=True)

    @property
    def boundaries(self) -> tuple[int, ...]:
        before = (end for end in self.first.boundaries if end < self.until)
        after = (end for end in self.then.boundaries if end > self.until)
        return (*before, self.until, *after)

    @property
    def named(self) -> dict[str, Estimator]:
        return {f"until step {self.until}": self.first, "then": self.then}

    def made_of(self, parts: Sequence[Estimator]) -> "Phases":
        return Phases(*parts, until=self.until)

    @property
    def tasks_per_step(self) -> int:
        return max(self.first.tasks_per_step, self.then.tasks_per_step)

    def init(self, meta: PyTree, key: PRNGKeyArray, outer_step: int = 0) -> PyTree:
        if outer_step < self.until:
            return FirstState(self.first.init(meta, key, outer_step))
        return ThenState(self.then.init(meta, self._then_key(key), outer_step))

    def enter(self, state: PyTree, meta: PyTree, key: PRNGKeyArray, outer_step: int) -> PyTree:
        if outer_step == self.until:
            begun, model_state = self.init(meta, key, outer_step), self.model_state(state)
            continues = state_form(model_state) == state_form(self.model_state(begun))
            return self.with_model_state(begun, model_state) if continues else begun
        part, kind = self._of(state)
        own = key if kind is FirstState else self._then_key(key)
        return kind(part.enter(state.state, meta, own, outer_step))

    def model_state(self, state: PyTree) -> PyTree:
        part, _ = self._of(state)
        return part.model_state(state.state)

    def with_model_state(self, state: PyTree, model_state: PyTree) -> PyTree:
        part, kind = self._of(state)
        return kind(part.with_model_state(state.state, model_state))

    def per_task(self, state: PyTree) -> PyTree:
        part, kind = self._of(state)
        return kind(part.per_task(state.state))

    def feed(self, key: PRNGKeyArray, first_step: int, n: int) -> Any:
        return self._at(first_step).feed(key, first_step, n)

    def step(self, meta, state, data, key, outer_step) -> tuple[Estimate, PyTree]:
        part, kind = self._of(state)
        estimate, after = part.step(meta, state.state, data, key, outer_step)
        return estimate, kind(after)

    def apart(self, meta, state, data, key, outer_step, norm) -> Apart:
        part, kind = self._of(state)
        found = part.apart(meta, state.state, data, key, outer_step, norm)
        return found._replace(state=kind(found.state))

    def error_of_values(self, meta, state, data, key, outer_step) -> InnerloopError | None:
        part, _ = self._of(state)
        return part.error_of_values(meta, state.state, data, key, outer_step)

    def tasks_of_step(self, key: PRNGKeyArray, outer_step: int) -> TaskSet | dict[str, Any]:
        return self._at(outer_step).tasks_of_step(key, outer_step)

    def checked_parts(self, key: PRNGKeyArray) -> dict[str, CheckedPart]:
        return self.first.checked_parts(key) | {
            joined("then", name): part for name, part in self.then.checked_parts(key).items()
        }

    def _at(self, outer_step: int) -> Estimator:
        return self.first if outer_step < self.until else self.then

    def _of(self, state: PyTree) -> tuple[Estimator, type]:
        """Which phase a state is of is its type, and so known while tracing."""
        kind = type(state)
        return (self.first if kind is FirstState else self.then), kind

    def _then_key(self, key: PRNGKeyArray) -> PRNGKeyArray:
        return jax.random.fold_in(key, self.until)
