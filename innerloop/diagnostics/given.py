"""Checks of the arguments of `check`, `compare` and `plan`."""

from typing import Any

from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import Adaptation
from innerloop.arguments import random_key, require
from innerloop.gradients import Implicit, MetaGradient, Unroll
from innerloop.objective import check_meta, meta_objective, task_count
from innerloop.problem import Episode


def exact_gradient(adaptation: Any) -> MetaGradient:
    """An exact meta-gradient for this adaptation."""
    if not isinstance(adaptation, Adaptation):  # `check_given` raises for it
        return Unroll()
    return Implicit() if Unroll().fidelity(adaptation).kind == "undefined" else Unroll()


def check_given(
    problem: Any,
    adaptation: Any,
    gradient: MetaGradient,
    meta: PyTree,
    episodes: Episode,
    key: PRNGKeyArray,
) -> int:
    """The number of tasks; raises as `meta_value_and_grad` does for parts that do not fit."""
    meta_objective(problem, adaptation, gradient)
    check_meta(meta)
    require(random_key(), "key", key, "check")
    return task_count(episodes)
