"""`check`: findings before a run, because nested differentiation can fail silently."""

from itertools import chain

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import Adaptation
from innerloop.diagnostics.checks.derivatives import finite_differences
from innerloop.diagnostics.checks.episodes import overlap, task_axis
from innerloop.diagnostics.checks.inner_loop import inner_loss_falls, stationary, steep_at_zero
from innerloop.diagnostics.checks.paths import (
    losses_read_params,
    stepped_ways,
    stopped_ways,
    unreached_leaves,
)
from innerloop.diagnostics.checks.purity import repeatable
from innerloop.diagnostics.checks.state import captured_state
from innerloop.diagnostics.checks.subject import Subject
from innerloop.diagnostics.checks.tracing import missing_derivatives, traceable
from innerloop.diagnostics.checks.values import finite_and_not_zero
from innerloop.diagnostics.findings import NotChecked, Report, Severity
from innerloop.diagnostics.given import check_given, exact_gradient
from innerloop.gradients import MetaGradient
from innerloop.problem import Episode, Problem

TRACED = (
    (captured_state, task_axis),
    (traceable,),
    (missing_derivatives,),
    (losses_read_params,),
    (unreached_leaves, overlap),
    (stopped_ways, stepped_ways),
)
"""Checks that only trace, in stages. Later stages are skipped after errors, which they repeat."""

RUN = (
    (finite_and_not_zero, steep_at_zero, inner_loss_falls),
    (repeatable, stationary),
    (finite_differences,),
)


def check(
    problem: Problem,
    adaptation: Adaptation,
    meta: PyTree,
    episodes: Episode,
    key: PRNGKeyArray,
    gradient: MetaGradient | None = None,
    *,
    run: bool = True,
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
            captured state, shared rows.

    Returns:
        A `Report` of findings. Its `left_out` names the checks that could not be made.

    Raises:
        StructureError: If the parts do not fit.
        GradientError: If the meta-gradient does not exist after this adaptation.
    """
    used = gradient or exact_gradient(adaptation)
    check_given(problem, adaptation, used, meta, episodes, key)
    meta = jax.tree.map(jnp.asarray, meta)
    subject = Subject(problem, adaptation, meta, episodes, key, used)
    found, left_out = {}, []
    for stage in TRACED + RUN * run:
        for look in stage:
            try:
                found[look] = list(look(subject))
            except NotChecked as reason:
                left_out.append(f"{look.__name__.replace('_', ' ')}, since {reason}")
        if any(finding.severity is Severity.ERROR for finding in chain(*found.values())):
            break
    if found.get(finite_differences) == []:  # the stopped value does not change the derivative
        del found[stopped_ways]
    order, once = list(Severity), dict.fromkeys(chain(*found.values()))
    gravest_first = sorted(once, key=lambda finding: order.index(finding.severity))
    return Report(tuple(gravest_first), tuple(left_out))
