"""The one driver of the inner loop. Nobody writes another."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation.base import Adaptation, InnerGradient
from innerloop.errors import StructureError
from innerloop.problem import Problem, describe

Loop = Callable[[Callable[[PyTree, Any], tuple[PyTree, Any]], PyTree, int], tuple[PyTree, Any]]
"""`loop(body, state, steps)` applies `body: (state, t) -> (state, output)` for t = 0 ... steps - 1.

Returns the last state and the outputs stacked along a new first axis. How a loop stores its states
is what gradients and memory depend on, so the meta-gradient estimator chooses it.
"""


def run(
    problem: Problem,
    adaptation: Adaptation,
    meta: PyTree,
    support: PyTree,
    key: PRNGKeyArray,
    inner_gradient: InnerGradient,
    loop: Loop,
    observe: Callable[[PyTree, Any], PyTree] | None = None,
    *,
    steps: int | None = None,
) -> tuple[PyTree, PyTree, PyTree]:
    """Learn one task.

    - `key`: the adapt key of the task (`task_keys(key).adapt`): `init` is given `fold_in(key, 0)`
      and step t `fold_in(key, t + 1)`, whatever the loop.
    - `observe`: `(params, t) -> pytree` is called at t = 0 ... K.
    - `steps`: K, when it is to differ from `adaptation.steps` (evaluation beyond training).

    Returns `(state, info, observed)`: the last state, the infos of the K steps stacked (None for
    K = 0), and the K + 1 observations stacked (None without `observe`).

    Raises `StructureError` where the support set is empty or the number of steps is negative.
    """
    _check_support(support)
    steps = _step_count(adaptation, steps)
    state = adaptation.init(problem, meta, support, jax.random.fold_in(key, 0))
    if observe is None:
        observe = _observe_nothing
    first = observe(adaptation.params(state), jnp.int32(0))

    def body(state: PyTree, t: Any):
        step_key = jax.random.fold_in(key, t + 1)
        state, info = adaptation.step(problem, meta, support, state, step_key, inner_gradient)
        return state, (info, observe(adaptation.params(state), t + 1))

    if steps == 0:  # a step that is never taken need not exist
        return state, None, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], first)
    state, (info, rest) = loop(body, state, steps)
    observed = jax.tree.map(lambda a, b: jnp.concatenate([jnp.asarray(a)[None], b]), first, rest)
    return state, info, observed


def _observe_nothing(params: PyTree, t: Any) -> None:
    return None


def _step_count(adaptation: Adaptation, steps: int | None) -> int:
    if steps is None:
        # None on the adaptation itself means: one call of `step` runs to convergence.
        return 1 if adaptation.steps is None else adaptation.steps
    check_steps(steps)
    if adaptation.steps is None or (adaptation.steps == 0 and steps > 0):
        raise StructureError(
            "this adaptation has no steps to count",
            got=f"steps={steps} for {type(adaptation).__name__}",
            expected=f"its own number of steps, {adaptation.steps}",
            write="leave steps out",
        )
    return steps


def check_steps(steps: Any) -> None:
    """Raise `StructureError` unless `steps` is an integer of at least 0."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise StructureError(
            "the number of inner steps must be a whole number of at least 0",
            got=f"steps={steps!r}",
            expected="an int >= 0, known while tracing",
            write="GradientDescent(optax.sgd(0.01), steps=5)",
        )


def _check_support(support: PyTree) -> None:
    for leaf in jax.tree.leaves(support):
        if 0 in jnp.shape(leaf):
            raise StructureError(
                "the support set is empty",
                got=describe(support),
                expected="at least one row to learn from",
                write="Episode(support=Examples(inputs, targets), query=...) with rows in it",
            )
