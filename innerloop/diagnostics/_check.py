"""`check`: findings before a run, because nested differentiation can fail silently."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import Adaptation
from innerloop.arguments import checked, flag, function, random_key
from innerloop.batches import task_count
from innerloop.diagnostics.candidates import exact_gradient
from innerloop.diagnostics.checks import derivatives, inner_loop, paths, purity, tracing, values
from innerloop.diagnostics.checks.batches import broadcast_rows, losses_read_data
from innerloop.diagnostics.checks.episodes import (
    no_labels,
    same_tasks,
    targets_among_inputs,
    task_axis,
    weights_not_negative,
)
from innerloop.diagnostics.checks.masks import masked_rows
from innerloop.diagnostics.checks.randomness import keys_of_draws
from innerloop.diagnostics.checks.repeats import overlap, repeats
from innerloop.diagnostics.checks.statistics import running_statistics
from innerloop.diagnostics.checks.subject import Subject
from innerloop.diagnostics.findings import NotChecked, Report, Severity
from innerloop.gradients import MetaGradient
from innerloop.objective import GRADIENT, check_meta, meta_objective, parts
from innerloop.problem import Episode, Problem

TRACED = (
    (purity.captured_state, task_axis, weights_not_negative),
    (tracing.traceable,),
    (purity.same_program, tracing.missing_derivatives),
    (paths.losses_read_params, losses_read_data),
    (paths.unreached_leaves, broadcast_rows, keys_of_draws, running_statistics),
    (overlap, repeats, same_tasks, targets_among_inputs, no_labels),
    (paths.stopped_ways, paths.stepped_ways),
)
"""Checks that only trace, in stages. Later stages are skipped after errors, which they repeat."""

RUN = (
    (values.finite_and_not_zero, inner_loop.steep_at_zero, inner_loop.inner_loss_falls),
    (masked_rows,),
    (purity.repeatable, inner_loop.stationary),
    (derivatives.finite_differences,),
)


@checked(**parts(key=random_key(), gradient=GRADIENT, run=flag(), report=function("line")))
def check(
    problem: Problem,
    adaptation: Adaptation,
    meta: PyTree,
    episodes: Episode,
    key: PRNGKeyArray,
    gradient: MetaGradient | None = None,
    *,
    run: bool = True,
    report: Callable[[str], Any] = lambda line: None,
) -> Report:
    """Find errors in a meta-learning problem before they cause wrong results.

    A problem without errors gives no findings. An error that does not affect the meta-gradient in
    use is a note, such as a missing derivative with `EvolutionStrategies`. The checks cannot know
    whether a blocked gradient that they find is intended.

    Args:
        problem: What is optimised.
        adaptation: How a task is learned.
        meta: The meta-parameters.
        episodes: A batch of a few tasks, on which the losses and their gradients are computed.
        key: The random key of the batch.
        gradient: The meta-gradient that will be used; by default the exact one. The problem itself
            is always checked with the exact one.
        run: Whether to run the checks that compute losses and gradients, a few dozen times. If
            False, only the checks that trace are made: missing derivatives (custom rules,
            callbacks, `while_loop`), leaves without a gradient, operations that block the gradient,
            captured state, numbers from the host, faults in the data, and faults in how the losses
            read the data.
        report: Called with a line of text before each check, such as `print`.

    Returns:
        A `Report` of findings. Its `left_out` names the checks that could not be made.

    Raises:
        StructureError: If the parts do not fit.
        GradientError: If the meta-gradient does not exist after this adaptation.
    """
    used = gradient or exact_gradient(adaptation)
    meta_objective(problem, adaptation, used)  # raises where the parts do not fit
    check_meta(meta)
    task_count(episodes)
    meta = jax.tree.map(jnp.asarray, meta)
    subject = Subject(problem, adaptation, meta, episodes, key, used)
    found, left_out = {}, []
    for stage in TRACED + RUN * run:
        for look in stage:
            name = look.__name__.replace("_", " ")
            report(name)
            try:
                found[look] = list(look(subject))
            except NotChecked as reason:
                left_out.append(f"{name}, since {reason}")
        if any(finding.severity is Severity.ERROR for finding in chain(*found.values())):
            break
    if found.get(derivatives.finite_differences) == []:  # no stopped value changes the derivative
        found.pop(paths.stopped_ways, None)
    order, once = list(Severity), dict.fromkeys(chain(*found.values()))
    gravest_first = sorted(once, key=lambda finding: order.index(finding.severity))
    return Report(tuple(gravest_first), tuple(left_out))
