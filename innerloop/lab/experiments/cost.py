"""What a run cost: operations from the traced program, time and memory from the log."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import jax

from innerloop.estimators import OnlineGradient
from innerloop.lab.experiments.base import Parts
from innerloop.objective import meta_value_and_grad
from innerloop.problem import ProblemMixture
from innerloop.programs.cost import program_cost
from innerloop.tasks import TaskMixture
from innerloop.training import Fit


def meta_gradient_record(parts: Parts, outcome: Fit, batch: int) -> dict[str, Any]:
    """What the program of the meta-gradient that was trained with says; nothing is run.

    That is the last of the recipe's phases, on the problem of the first outer step.

    - `flops_per_step`: floating-point operations of the meta-gradient of a batch, without sampling
      and the outer optimizer; `flops_are_lower_bound`: whether something could not be counted
    - `unreached`: names of the meta leaves that no gradient reaches
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    meta = jax.eval_shape(parts.recipe.init_meta, key)
    counted, unreached = [], []
    for kind in _kinds(parts, batch):
        value_and_grad, data = _outer_step(outcome, meta, key, *kind)
        program, ((_, aux), _) = jax.make_jaxpr(value_and_grad, return_shape=True)(meta, data, key)
        counted.append(program_cost(program))
        unreached.append(list(aux.diagnostics["unreached"]))
    return {
        "flops_per_step": sum(each.flops for each in counted),
        "flops_are_lower_bound": any(each.lower_bound for each in counted),
        "unreached": [name for name in unreached[0] if all(name in each for each in unreached)],
    }


def _kinds(parts: Parts, batch: int) -> list[tuple[Any, ...]]:
    """Problem, adaptation, meta-gradient, tasks and their number, of each kind that a batch has."""
    (problem, adaptation), gradient, tasks = parts.recipe.at(0), parts.recipe.gradient, parts.train
    if not isinstance(problem, ProblemMixture) or not isinstance(tasks, TaskMixture):
        return [(problem, adaptation, gradient, tasks, batch)]
    return problem.kinds(adaptation, gradient, tasks.tasks, tuple(tasks.shares(batch)))


def _outer_step(outcome: Fit, meta, key, problem, adaptation, gradient, tasks, batch: int):
    """The meta-gradient's function for one kind, and the shapes of what it is given."""
    if isinstance(gradient, OnlineGradient):
        where = (problem, adaptation, tasks)
        window = gradient.value_and_grad(*where, chunk=outcome.chunk)
        begun = lambda meta, key: gradient.init(*where, meta, key, batch)
        return lambda *given: window(*given)[0], jax.eval_shape(begun, meta, key)
    if outcome.plan is not None:
        gradient = outcome.plan.gradient
    value_and_grad = meta_value_and_grad(problem, adaptation, gradient, chunk=outcome.chunk)
    return value_and_grad, jax.eval_shape(lambda key: tasks.sample(key, batch), key)


def training_cost(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Time and memory by the log of a run; nothing where its records lack system figures.

    - `seconds_per_step`: median over calls to the device, without tracing and compilation
    - `compile_seconds`: of all processes that the run was made by
    - `peak_memory_bytes`: the most that one of them held
    """
    system = [record["system"] for record in records if "system" in record]
    if not system:
        return {}
    compiled = [figures["compile_seconds"] for figures in system]
    # Counted since the process began: where the run went on in another, it starts again.
    ends = [now for now, then in zip(compiled, [*compiled[1:], 0.0], strict=True) if then < now]
    return {
        "seconds_per_step": median(figures["step_seconds"] for figures in system),
        "compile_seconds": sum(ends),
        "peak_memory_bytes": max(figures["peak_memory_bytes"] for figures in system),
    }
