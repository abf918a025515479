"""The driver of the inner loop, the only one in the library."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation.base import Adaptation, InnerRule, InnerStep, Loop
from innerloop.arguments import at_least, require
from innerloop.checks import describe
from innerloop.errors import StructureError
from innerloop.normal_form import require_rows
from innerloop.problem import Problem


def run(
    problem: Problem,
    adaptation: Adaptation,
    meta: PyTree,
    support: PyTree,
    key: PRNGKeyArray,
    inner: InnerRule,
    loop: Loop,
    observe: Callable[[PyTree, Any], PyTree] | None = None,
    *,
    steps: int | None = None,
) -> tuple[PyTree, PyTree, PyTree]:
    """Learn one task.

    Args:
        problem: What is optimised.
        adaptation: How the task is learned.
        meta: The meta-parameters.
        support: The support set of the task.
        key: The adapt key of the task (`task_keys(key).adapt`): `init` receives `fold_in(key, 0)`
            and step t receives `fold_in(key, t + 1)`, in every loop.
        inner: How the inner gradient is differentiated, such as `Exact()`.
        loop: How the steps are kept and differentiated, such as `StoreAll()`.
        observe: `(params, t) -> pytree`, called at t = 0 ... K.
        steps: K, if it differs from `adaptation.steps` (evaluation beyond training).

    Returns:
        `(state, info, observed)`: the last state, the infos of the K steps, stacked (None if
        K = 0), and the K + 1 observations, stacked (None without `observe`).

    Raises:
        StructureError: If the support set is empty or the number of steps is negative.
    """
    require_rows("support", support)
    steps = _step_count(adaptation, steps)
    meta = problem.whole(meta)
    state = adaptation.init(problem, meta, support, jax.random.fold_in(key, 0))
    start = None if observe is None else observe(adaptation.params(state), jnp.int32(0))
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], start)
    if steps == 0:  # an adaptation without steps has no `step` to trace
        return state, None, start
    given = problem, adaptation, meta, support, key, inner, loop, observe
    state, info, rest = run_from(*given, state=state, first=0, steps=steps)
    return state, info, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), start, rest)


def run_from(
    problem: Problem,
    adaptation: Adaptation,
    meta: PyTree,
    support: PyTree,
    key: PRNGKeyArray,
    inner: InnerRule,
    loop: Loop,
    observe: Callable[[PyTree, Any], PyTree] | None = None,
    *,
    state: PyTree,
    first: Any,
    steps: int,
) -> tuple[PyTree, PyTree, PyTree]:
    """A part of `run`: `steps` > 0 inner steps, from the state after `first` steps.

    A run has the same keys and numbers however it is cut into parts.

    Args:
        problem: See `run`, as for the other arguments that are not listed.
        state: The state after `first` steps.
        first: How many steps were taken before; may be traced.
        steps: How many steps to take, at least 1.

    Returns:
        The same as `run`, with the observations after each of these steps only.
    """
    meta = problem.whole(meta)

    def advance(state: PyTree, t: Any):
        t = first + t
        step_key = jax.random.fold_in(key, t + 1)
        after, info = adaptation.step(problem, meta, support, state, step_key, inner.at(t))
        _check_state(adaptation, state, after)
        return after, info

    def look(state: PyTree, t: Any):
        return None if observe is None else observe(adaptation.params(state), first + t)

    state, (info, observed) = loop(InnerStep(advance, look), state, steps)
    return state, info, observed


def _step_count(adaptation: Adaptation, steps: int | None) -> int:
    if steps is None:
        # None on the adaptation itself means: one call of `step` runs to convergence.
        return 1 if adaptation.steps is None else adaptation.steps
    require(at_least(0), "steps", steps, type(adaptation).__name__)
    if adaptation.steps is None or (adaptation.steps == 0 and steps > 0):
        raise StructureError(
            "this adaptation has no steps to count",
            got=f"steps={steps} for {type(adaptation).__name__}",
            expected=f"its own number of steps, {adaptation.steps}",
            write="leave steps out",
        )
    return steps


def _check_state(adaptation: Adaptation, before: PyTree, after: PyTree) -> None:
    """Raise `StructureError` if a step changes the type of the state, which loops cannot carry."""
    type_of = lambda tree: (
        jax.tree.structure(tree),
        [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)],
    )
    if type_of(before) != type_of(after):
        raise StructureError(
            "the state of an adaptation changes its type in a step",
            got=f"{type(adaptation).__name__}: {describe(before)} becomes {describe(after)}",
            expected="the same structure, shapes and dtypes from init to the last step",
        )
