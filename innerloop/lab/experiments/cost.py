"""The cost of a run: operations from the traced program, time and memory from the log."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.devices.placement import OneDevice
from innerloop.estimators import Estimator
from innerloop.gradients.base import Aux
from innerloop.programs.cost import program_cost


def outer_step_record(
    estimator: Estimator, init_meta: Callable[[PRNGKeyArray], PyTree]
) -> dict[str, Any]:
    """Operations and unreached leaves of the program of an outer step, which is not run.

    Args:
        estimator: The estimator.
        init_meta: The initial meta-parameters, a function of a key.

    Returns:
        `flops_per_step`, the floating-point operations of the first outer step, with the sampling
        of its tasks and without the outer optimizer; `flops_are_lower_bound`, whether something
        could not be counted; and `unreached`, the names of the meta leaves that no gradient
        reaches.
    """
    estimator = estimator.on(OneDevice())
    key = jax.random.key(0)
    meta = jax.eval_shape(init_meta, key)
    state = jax.eval_shape(estimator.init, meta, key)
    data = jax.tree.map(lambda leaf: leaf[0], estimator.feed(key, 0, 1))
    traced = jax.make_jaxpr(estimator.step, return_shape=True)
    program, (estimate, _) = traced(meta, state, data, key, jnp.int32(0))
    cost = program_cost(program)
    return {
        "flops_per_step": cost.flops,
        "flops_are_lower_bound": cost.lower_bound,
        "unreached": _unreached(estimate.aux),
    }


def _unreached(aux: Any) -> list[str]:
    """The leaves that no part of the estimator reaches."""
    is_aux = lambda node: isinstance(node, Aux)
    parts = [each for each in jax.tree.leaves(aux, is_leaf=is_aux) if is_aux(each)]
    names = [list(each.diagnostics.get("unreached", ())) for each in parts]
    return [name for name in names[0] if all(name in each for each in names)] if names else []


def training_cost(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Time and memory from the log of a run.

    Args:
        records: The lines of the log.

    Returns:
        `seconds_per_step`, the median over calls to the device, without tracing and compilation;
        `compile_seconds`, the sum over the processes of the run; and `peak_memory_bytes`, the
        largest of one process. Empty if the records lack system figures.
    """
    system = [record["system"] for record in records if "system" in record]
    if not system:
        return {}
    compiled = [figures["compile_seconds"] for figures in system]
    # The count starts again in each process that resumes the run.
    ends = [now for now, then in zip(compiled, [*compiled[1:], 0.0], strict=True) if then < now]
    return {
        "seconds_per_step": median(figures["step_seconds"] for figures in system),
        "compile_seconds": sum(ends),
        "peak_memory_bytes": max(figures["peak_memory_bytes"] for figures in system),
    }
