"""What a run cost: operations from the traced program, time and memory from the log."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import jax

from innerloop.diagnostics.planning.cost import program_cost
from innerloop.experiments.base import Parts
from innerloop.long_horizon import OnlineGradient
from innerloop.objective import meta_value_and_grad
from innerloop.training import Fit


def meta_gradient_record(parts: Parts, outcome: Fit, batch: int) -> dict[str, Any]:
    """What the program of the meta-gradient that was trained with says; nothing is run.

    - `flops_per_step`: floating-point operations of the meta-gradient of a batch, without sampling
      and the outer optimizer; `flops_are_lower_bound`: whether something could not be counted
    - `unreached`: names of the meta leaves that no gradient reaches
    """
    problem: Any
    adaptation: Any
    problem, adaptation, gradient, init_meta, *_ = parts.recipe
    key = jax.eval_shape(lambda: jax.random.key(0))
    meta = jax.eval_shape(init_meta, key)
    if isinstance(gradient, OnlineGradient):
        where = (problem, adaptation, parts.train)
        window = gradient.value_and_grad(*where, chunk=outcome.chunk)
        value_and_grad = lambda meta, runs, key: window(meta, runs, key)[0]
        data = jax.eval_shape(lambda meta, key: gradient.init(*where, meta, key, batch), meta, key)
    else:
        value_and_grad = meta_value_and_grad(
            problem, adaptation, outcome.plan or gradient, chunk=outcome.chunk
        )
        data = jax.eval_shape(lambda key: parts.train.sample(key, batch), key)
    program, ((_, aux), _) = jax.make_jaxpr(value_and_grad, return_shape=True)(meta, data, key)
    counted = program_cost(program)
    return {
        "flops_per_step": counted.flops,
        "flops_are_lower_bound": counted.lower_bound,
        "unreached": list(aux.diagnostics["unreached"]),
    }


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
