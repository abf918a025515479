"""A budget of memory for training: what the trainer holds itself, and a plan for the rest."""

from typing import Any

import equinox as eqx
import jax
import optax

from innerloop.diagnostics._plan import Plan, plan
from innerloop.diagnostics.planning.amounts import format_bytes, parse_bytes
from innerloop.errors import StructureError
from innerloop.gradients import Implicit
from innerloop.problem import Problem
from innerloop.recipes import Recipe
from innerloop.tasks import StreamedTasks, TaskDistribution
from innerloop.training.arguments import of_whole_tasks
from innerloop.training.step import init_state
from innerloop.trees import tree_bytes


def plan_training(
    recipe: Recipe,
    tasks: TaskDistribution | StreamedTasks,
    optimizer: optax.GradientTransformation,
    batch: int,
    memory: Any,
) -> Plan:
    """The plan for one outer step, with what is left of `memory` beside the trainer's own state.

    The trainer holds meta-parameters, their average and the optimizer's state twice, as what goes
    into a call and what comes out, and the arrays of the task distribution.

    A recipe's gradient is replaced only by one that gives the same: an exact one. A biased or a
    stochastic one is kept, and `Implicit` too, and only the chunk is planned.
    """
    if not isinstance(recipe.problem, Problem):
        raise StructureError(
            "memory cannot be planned for a mixture of problems",
            got="fit(..., memory=...) with a mixture",
            expected="a chunk, chosen by hand",
            write="fit(..., chunk=1)",
        )
    gradient = of_whole_tasks(recipe, "fit(memory=...)")
    if recipe.phases:
        raise StructureError(
            "memory is planned for one meta-gradient",
            got=f"fit(..., memory=...) with {len(recipe.phases)} phases before the last",
            expected="a chunk, chosen by hand",
            write="fit(..., chunk=1)",
        )
    problem, adaptation = recipe.at(0)
    budget = parse_bytes(memory)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda key: init_state(recipe.init_meta(key), optimizer), key)
    episodes = jax.eval_shape(lambda key: tasks.sample(key, batch), key)
    held = 2 * tree_bytes(state) + tree_bytes(eqx.filter(tasks, eqx.is_array))
    rest = budget - held + tree_bytes(state.meta)  # which the plan counts itself
    if rest <= 0:
        raise StructureError(
            "the budget does not hold what the trainer keeps",
            got=f"memory={format_bytes(budget)}",
            expected=f"more than {format_bytes(held)}: meta-parameters, their average and the "
            "optimizer's state, before and after a step, and the tasks' own arrays",
            write="fit(..., memory='2GiB')",
        )
    exact = gradient.fidelity(adaptation).kind == "exact"  # pyright: ignore
    kept = None if exact and not isinstance(gradient, Implicit) else [gradient]
    return plan(problem, adaptation, state.meta, episodes, rest, gradients=kept)  # pyright: ignore
