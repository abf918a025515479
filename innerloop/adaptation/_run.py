"""The one driver of the inner loop. Nobody writes another."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation.base import Adaptation
from innerloop.adaptation.slots import InnerRule, InnerStep, Loop
from innerloop.checks import check_count, describe
from innerloop.errors import StructureError
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
        problem: the problem, whose `init` and `inner_loss` the adaptation asks for
        adaptation: how the task is learned
        meta: meta-parameters
        support: what the task is learned from
        key: the adapt key of the task (`task_keys(key).adapt`): `init` is given `fold_in(key, 0)`
            and step t `fold_in(key, t + 1)`, whatever the loop
        inner: what the inner gradient is for whoever differentiates, such as `Exact()`
        loop: how the steps are kept and differentiated, such as `StoreAll()`
        observe: `(params, t) -> pytree`, called at t = 0 ... K
        steps: K, where it differs from `adaptation.steps` (evaluation beyond training)

    Returns:
        `(state, info, observed)`: the last state, the infos of the K steps stacked (None for
        K = 0), and the K + 1 observations stacked (None without `observe`).

    Raises:
        StructureError: the support set is empty, or the number of steps is negative.
    """
    _check_support(support)
    steps = _step_count(adaptation, steps)
    state = adaptation.init(problem, meta, support, jax.random.fold_in(key, 0))
    start = None if observe is None else observe(adaptation.params(state), jnp.int32(0))
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], start)
    if steps == 0:  # a step that is never taken need not exist
        return state, None, start
    state, info, rest = run_from(
        *(problem, adaptation, meta, support, key, inner, loop, observe),
        state=state,
        first=0,
        steps=steps,
    )
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
    """Take `steps` > 0 inner steps from the state after `first` of them: a part of `run`.

    However a run is cut into parts, its keys and numbers are the same.

    Args:
        problem, adaptation, meta, support, key, inner, loop, observe: see `run`
        state: the state after `first` steps
        first: number of the first of the steps; it may be traced
        steps: how many steps to take

    Returns:
        What `run` returns, with the observations after each of these steps alone.
    """

    def advance(state: PyTree, t: Any):
        t = first + t
        step_key = jax.random.fold_in(key, t + 1)
        return adaptation.step(problem, meta, support, state, step_key, inner.at(t))

    def look(state: PyTree, t: Any):
        return None if observe is None else observe(adaptation.params(state), first + t)

    state, (info, observed) = loop(InnerStep(advance, look), state, steps)
    return state, info, observed


def _step_count(adaptation: Adaptation, steps: int | None) -> int:
    if steps is None:
        # None on the adaptation itself means: one call of `step` runs to convergence.
        return 1 if adaptation.steps is None else adaptation.steps
    check_count("steps", steps, 0, write="GradientDescent(optax.sgd(0.01), steps=5)")
    if adaptation.steps is None or (adaptation.steps == 0 and steps > 0):
        raise StructureError(
            "this adaptation has no steps to count",
            got=f"steps={steps} for {type(adaptation).__name__}",
            expected=f"its own number of steps, {adaptation.steps}",
            write="leave steps out",
        )
    return steps


def _check_support(support: PyTree) -> None:
    for leaf in jax.tree.leaves(support):
        if 0 in jnp.shape(leaf):
            raise StructureError(
                "the support set is empty",
                got=describe(support),
                expected="at least one row to learn from",
                write="Episode(support=Examples(inputs, targets), query=...) with rows in it",
            )
