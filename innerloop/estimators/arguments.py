"""Checks of what an online estimator is given."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import Adaptation, Origin
from innerloop.checks import describe
from innerloop.errors import GradientError, StructureError
from innerloop.estimators.window import InnerRun
from innerloop.problem import Problem
from innerloop.trees import leaf_shapes


def check_parts(estimator: Any, problem: Any, adaptation: Any, tasks: Any) -> None:
    """Raise `StructureError` for a part of another kind, `GradientError` for one without steps."""
    name = type(estimator).__name__
    kinds = (
        isinstance(problem, Problem),
        isinstance(adaptation, Adaptation),
        callable(getattr(tasks, "sample", None)),
    )
    if not all(kinds):
        raise StructureError(
            "inner runs are made of (problem, adaptation, tasks)",
            got=", ".join(type(part).__name__ for part in (problem, adaptation, tasks)),
            expected="a Problem, an Adaptation, and a task distribution with sample(key, n)",
            write=f"{name}(...).value_and_grad(problem, GradientDescent(optax.sgd(0.1), 1), tasks)",
        )
    if adaptation.origin is not Origin.STEPS or adaptation.steps is None:
        raise GradientError(
            f"{name} runs a window of steps at a time, and there are no steps to stop between",
            got=f"{type(adaptation).__name__}: {adaptation.origin.value}",
            expected="an adaptation by steps",
            write="GradientDescent(optimizer, steps=1); how many are taken is the estimator's "
            "horizon. Or meta_value_and_grad, with a meta-gradient for this adaptation",
        )


def check_carry(carry: Any, begun: Callable[[PRNGKeyArray], InnerRun], key: PRNGKeyArray) -> int:
    """The number of runs in a carry. Raises `StructureError` where it is not one of this meta."""
    like = _shapes(jax.eval_shape(begun, key))
    given = _shapes(carry)
    if given == like and isinstance(carry, InnerRun):
        return len(carry.step)
    other = sorted(set(given.items()) ^ set(like.items()))
    raise StructureError(
        "the carry holds inner runs of other meta-parameters, another problem or estimator",
        got=", ".join(f"{n}: {s}" for n, s in other if given.get(n) == s) or describe(carry),
        expected=", ".join(f"{n}: {s}" for n, s in other if like.get(n) == s) or "one run or more",
        write="carry = estimator.init(problem, adaptation, tasks, meta, key, batch) with the same "
        "parts",
    )


def _shapes(runs: PyTree) -> dict[str, str]:
    """Dtype and shape of every leaf without its task axis, by its path."""
    one = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) if leaf.shape else leaf, runs
    )
    return leaf_shapes(one)
