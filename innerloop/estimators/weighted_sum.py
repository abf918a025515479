"""The weighted sum of estimators: a mixture of kinds of tasks, or of ways to learn them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.checks import describe_briefly
from innerloop.errors import InnerloopError, StructureError
from innerloop.estimators.base import Apart, CheckedPart, Estimate, Estimator, TaskSet
from innerloop.estimators.combination import Combination, joined
from innerloop.estimators.metrics import mean_state
from innerloop.problem import state_form
from innerloop.trees import all_finite


class WeightedSum(Combination):
    r"""Several estimators under one meta: $\sum_i w_i\, g_i$, of weights with sum 1.

    ```python
    il.estimators.WeightedSum((sines, 3.0), (lines, 1.0))
    il.estimators.WeightedSum(sines=(sines, 3.0), lines=(lines, 1.0))
    ```

    The parts may be of any kinds. Each has its own batch, its own state and its own random key, and
    its metrics carry its name: `"sines/loss"`. The names of unnamed parts are their numbers. A part
    whose loss, gradient or model state is not finite is left out of the step, and the weights of
    the others are scaled to the sum 1; the step is not finite if no part is.

    Parts whose model states have the same structure, shapes and dtypes share one model state: the
    mean of theirs after each step, by the same weights.

    Args:
        *parts: Pairs of an estimator and its weight, which is positive and finite.
        **named: The same, by name.

    Raises:
        StructureError: There are no parts, or a part is no such pair.
    """

    parts: tuple[Estimator, ...]
    names: tuple[str, ...] = eqx.field(static=True)
    weights: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, *parts: tuple[Estimator, float], **named: tuple[Estimator, float]):
        numbered = {str(i): part for i, part in enumerate(parts)}
        twice = numbered.keys() & named.keys()
        if twice:
            raise StructureError(
                "two parts of a weighted sum have the same name",
                got=", ".join(sorted(twice)),
                expected="names that are not the numbers of unnamed parts",
                write="WeightedSum(sines=(estimator, 3.0), lines=(another, 1.0))",
            )
        pairs = numbered | named
        if not pairs or not all(map(_is_pair, pairs.values())):
            raise StructureError(
                "a weighted sum is made of estimators with weights",
                got=", ".join(map(_said, pairs.values())) or "nothing",
                expected="pairs (estimator, weight), every weight positive and finite",
                write="WeightedSum((estimator, 3.0), (another, 1.0))",
            )
        self.parts = tuple(estimator for estimator, _ in pairs.values())
        self.names = tuple(pairs)
        self.weights = tuple(weight for _, weight in pairs.values())

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, scaled to the sum 1."""
        return tuple(weight / sum(self.weights) for weight in self.weights)

    @property
    def boundaries(self) -> tuple[int, ...]:
        return tuple(sorted({end for part in self.parts for end in part.boundaries}))

    @property
    def named(self) -> dict[str, Estimator]:
        return dict(zip(self.names, self.parts, strict=True))

    def made_of(self, parts: Sequence[Estimator]) -> "WeightedSum":
        pairs = zip(parts, self.weights, strict=True)
        return WeightedSum(**dict(zip(self.names, pairs, strict=True)))

    @property
    def tasks_per_step(self) -> int:
        return sum(part.tasks_per_step for part in self.parts)

    def init(self, meta: PyTree, key: PRNGKeyArray, outer_step: int = 0) -> PyTree:
        return tuple(part.init(meta, own, outer_step) for part, own in self._keyed(key))

    def enter(self, state: PyTree, meta: PyTree, key: PRNGKeyArray, outer_step: int) -> PyTree:
        parts = self._keyed(key, state)
        return tuple(part.enter(held, meta, own, outer_step) for part, own, held in parts)

    def model_state(self, state: PyTree) -> PyTree:
        found = list(_by_form(self._model_states(state)).values())
        return found[0][0][1] if len(found) == 1 else None

    def with_model_state(self, state: PyTree, model_state: PyTree) -> PyTree:
        given = list(state)
        for i, _ in _by_form(self._model_states(state)).get(state_form(model_state), ()):
            given[i] = self.parts[i].with_model_state(state[i], model_state)
        return tuple(given)

    def per_task(self, state: PyTree) -> PyTree:
        return tuple(part.per_task(held) for part, held in zip(self.parts, state, strict=True))

    def feed(self, key: PRNGKeyArray, first_step: int, n: int) -> Any:
        return tuple(part.feed(own, first_step, n) for part, own in self._keyed(key))

    def step(self, meta, state, data, key, outer_step) -> tuple[Estimate, PyTree]:
        parts = self._keyed(key, state, data)
        results = [part.step(meta, held, fed, own, outer_step) for part, own, held, fed in parts]
        estimates, after = zip(*results, strict=True)
        losses = jnp.stack([each.loss for each in estimates])
        found = zip(estimates, self._model_states(after), strict=True)
        sound = jnp.stack([all_finite((each.loss, each.grads, held)) for each, held in found])
        weights = jnp.where(sound, jnp.asarray(self.shares, losses.dtype), 0)
        weights = weights / jnp.sum(weights)  # NaN if no part is finite
        grads = [
            jax.tree.map(lambda leaf, ok=ok: jnp.where(ok, leaf, 0), each.grads)
            for ok, each in zip(sound, estimates, strict=True)
        ]
        loss = _weighted(weights, *jnp.where(sound, losses, 0))
        metrics = self._joined([{"loss": each.loss} | each.metrics for each in estimates])
        mean = jax.tree.map(lambda *leaves: _weighted(weights, *leaves), *grads)
        aux = dict(zip(self.names, (each.aux for each in estimates), strict=True))
        weights = jnp.where(sound, jnp.asarray(self.shares), 0)
        return Estimate(loss, mean, metrics, aux), self._merged(state, after, weights)

    def apart(self, meta, state, data, key, outer_step, norm) -> Apart:
        parts = self._keyed(key, state, data)
        results = [
            part.apart(meta, held, fed, own, outer_step, norm) for part, own, held, fed in parts
        ]
        grads, after, faults, losses = zip(*results, strict=True)
        weights = jnp.asarray(self.shares)
        mean = jax.tree.map(lambda *leaves: _weighted(weights, *leaves), *grads)
        return Apart(
            mean, after, self._joined(faults), _weighted(weights, *map(jnp.asarray, losses))
        )

    def error_of_values(self, meta, state, data, key, outer_step) -> InnerloopError | None:
        parts = self._keyed(key, state, data)
        found = (
            part.error_of_values(meta, held, fed, own, outer_step) for part, own, held, fed in parts
        )
        return next(filter(None, found), None)

    def tasks_of_step(self, key: PRNGKeyArray, outer_step: int) -> dict[str, TaskSet]:
        found = [part.tasks_of_step(own, outer_step) for part, own in self._keyed(key)]
        return self._joined([{"": each} if isinstance(each, TaskSet) else each for each in found])

    def checked_parts(self, key: PRNGKeyArray) -> dict[str, CheckedPart]:
        return self._joined([part.checked_parts(own) for part, own in self._keyed(key)])

    def _merged(self, before: tuple, after: tuple, weights: Array) -> tuple:
        """The states after a step: parts whose model states have one form share their mean."""
        old, merged = self._model_states(before), list(after)
        for parts in _by_form(self._model_states(after)).values():
            numbers, states = zip(*parts, strict=True)
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
            mean = mean_state(stacked, weights[jnp.asarray(numbers)], old[numbers[0]])
            for i in numbers:
                merged[i] = self.parts[i].with_model_state(after[i], mean)
        return tuple(merged)

    def _model_states(self, state: tuple) -> list[PyTree]:
        return [part.model_state(held) for part, held in zip(self.parts, state, strict=True)]

    def _keyed(self, key: PRNGKeyArray, *more: Any) -> Iterator[tuple]:
        """Each part with its key, and with its entry of each of `more`."""
        return zip(self.parts, jax.random.split(key, len(self.parts)), *more, strict=True)

    def _joined(self, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One dictionary of what was found of each part, with the part's name before each name."""
        named = zip(self.names, found, strict=True)
        return {joined(name, inner): each for name, parts in named for inner, each in parts.items()}


def _by_form(states: Sequence[PyTree]) -> dict[Any, list[tuple[int, PyTree]]]:
    """The model states with the numbers of their parts, by `state_form`."""
    found: dict[Any, list[tuple[int, PyTree]]] = {}
    for i, state in enumerate(states):
        if state is not None:
            found.setdefault(state_form(state), []).append((i, state))
    return found


def _said(part: Any) -> str:
    if not isinstance(part, tuple):
        return describe_briefly(part)
    return f"({', '.join(map(describe_briefly, part))})"


def _is_pair(part: Any) -> bool:
    if not (isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], Estimator)):
        return False
    number = isinstance(part[1], int | float) and not isinstance(part[1], bool)
    return number and 0 < part[1] < math.inf


def _weighted(weights: Array, *leaves: Array) -> Any:
    return sum(w.astype(leaf.dtype) * leaf for w, leaf in zip(weights, leaves, strict=True))
