"""Findings before the run: nested differentiation fails silently, and this is where it is heard."""

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
"""Checks that run nothing, in stages: after a stage with errors the next would find them again."""

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
    """Find what is wrong with a meta-learning problem, or will be.

    A problem without faults gives no findings. A fault that does not touch the meta-gradient in use
    is a note, as a missing derivative is under `EvolutionStrategies`. The checks cannot know
    whether a cut that they find was meant.

    Args:
        problem: the problem
        adaptation: how one task is learned
        meta: meta-parameters
        episodes: a batch of a few tasks; they are adapted on, and the gradient is taken of them
        key: the random key of the batch
        gradient: the meta-gradient that is going to be used; the exact one unless given. The
            problem itself is judged by the exact one in any case.
        run: False for the checks that only trace: no derivative (custom rules, callbacks,
            `while_loop`), leaves without a gradient, operations that cut the way, captured state,
            shared rows. The others compute losses and gradients a few dozen times.

    Returns:
        A `Report` of findings. Its `left_out` names the checks that could not be made.

    Raises:
        StructureError: for parts that do not fit
        GradientError: for a meta-gradient that does not exist after this adaptation
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
    if found.get(finite_differences) == []:  # what was stopped has no part in the derivative
        del found[stopped_ways]
    order, once = list(Severity), dict.fromkeys(chain(*found.values()))
    gravest_first = sorted(once, key=lambda finding: order.index(finding.severity))
    return Report(tuple(gravest_first), tuple(left_out))
