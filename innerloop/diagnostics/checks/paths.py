"""Meta leaves without a gradient and the operations that block it, found by tracing alone."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.extend import core

from innerloop.adaptation import Origin
from innerloop.diagnostics.checks.source import asked_for, named_places, written_at
from innerloop.diagnostics.checks.subject import Subject
from innerloop.diagnostics.findings import Finding, NotChecked, Severity
from innerloop.gradients import gradient_name
from innerloop.programs import Operation, between
from innerloop.trees import leaf_names

_ROUNDING = ("rounding", {"floor", "ceil", "round", "rint", "trunc", "operator_floordiv"})
_STEPS = {
    "stop_gradient": ("stop_gradient", {"stop_gradient"}),
    "argmax": ("the place of a maximum", {"argmax", "nanargmax"}),
    "argmin": ("the place of a minimum", {"argmin", "nanargmin"}),
    "floor": _ROUNDING,
    "ceil": _ROUNDING,
    "round": _ROUNDING,
    "sign": ("the sign of a number", {"sign"}),
    "sort": ("the order of numbers", {"argsort", "lexsort"}),
    "top_k": ("the order of numbers", {"top_k"}),
    "convert_element_type": (
        "a conversion to whole numbers",
        {"astype", "asarray", "array", "convert_element_type", "ScalarMeta"},
    ),
}
"""Operations that are constant almost everywhere, and the functions by which users call them.

JAX's own functions use these operations where no derivative is lost. Comparisons are not included,
because a choice between two branches by a comparison is differentiable."""


def losses_read_params(subject: Subject) -> Iterator[Finding]:
    """Inner or outer losses that do not read the parameters."""
    for name, arguments in subject.given.items():
        params = range(len(jax.tree.leaves(arguments[0])))
        if not between(subject.programs[name].closed, params):
            yield _unread_params(subject, name)


def _unread_params(subject: Subject, name: str) -> Finding:
    if name == "inner_loss":
        problem, cause = "inner_loss does not depend on params", "there is nothing to learn by"
        cure = "a loss of what the model makes of params on the support set"
    elif subject.adaptation.origin is Origin.PROCEDURE:
        problem = "outer_loss does not depend on what the procedure made"
        cause = "the support set has no part in the meta-objective"
        cure = "a loss that reads params, the result of the procedure"
    else:
        problem = "outer_loss does not depend on the adapted params"
        cause = (
            "the inner loop has no effect on the meta-objective: what it learns is not evaluated"
        )
        cure = "a loss of params on the query set; meta holds what they started from"
    return Finding(Severity.ERROR, problem, f"{name}, params", cause, cure)


def unreached_leaves(subject: Subject) -> Iterator[Finding]:
    """Leaves of meta whose gradient is structurally zero."""
    of_exact = subject.unreached
    for name in dict.fromkeys(of_exact + subject.of_used.unreached):
        operations = between(subject.program, [leaf_names(subject.meta).index(name)])
        if not operations or (name in of_exact and subject.missing is None):
            yield _unreached_finding(subject, name, operations)
        else:
            kind = gradient_name(subject.gradient)
            yield Finding(
                Severity.NOTE,
                f"{kind} gives meta{name} no gradient",
                f"meta{name}",
                "what reads the leaf has no part in this meta-gradient: "
                + subject.gradient.fidelity(subject.adaptation).sentence,
                "Unroll(), or leave the leaf out of meta",
            )


def stopped_ways(subject: Subject) -> Iterator[Finding]:
    """The user's own stop_gradient between meta and the loss.

    Raises:
        NotChecked: If a model state is held constant, since its own ways are stopped on purpose.
    """
    if subject.holds_state:
        raise NotChecked("the model state is held constant")
    return _cut_ways(subject, True, "the value without it, if its derivative counts")


def stepped_ways(subject: Subject) -> Iterator[Finding]:
    """Operations between meta and the loss that are constant almost everywhere."""
    soft = "a soft choice such as jax.nn.softmax, or EvolutionStrategies(pairs, sigma)"
    return _cut_ways(subject, False, soft)


def _cut_ways(subject: Subject, stopped: bool, cure: str) -> Iterator[Finding]:
    leaves = range(len(jax.tree.leaves(subject.meta)))
    for operation, what in _cuts(between(subject.program, leaves)):
        if (operation.name == "stop_gradient") == stopped:
            yield Finding(
                subject.severity(1, Severity.WARNING),
                f"{operation.name} cuts a path from meta to the loss",
                str(written_at(operation)),
                f"{what} has a derivative of zero",
                cure,
            )


def _unreached_finding(subject: Subject, name: str, operations: list[Operation]) -> Finding:
    if not operations:
        return Finding(
            Severity.WARNING,
            f"nothing reads meta{name}",
            f"meta{name}",
            "neither init, the losses nor the adaptation makes use of it, so its gradient is zero",
            "leave it out of meta, or read it in a loss",
        )
    cuts = (operation for operation, _ in _cuts(operations))
    where = named_places(cuts, "operations with a derivative of zero")
    return Finding(
        subject.severity(1),
        f"meta{name} is read, but its gradient is cut off",
        f"meta{name}: {where}",
        "every path from the leaf to the loss has an operation whose derivative is zero",
        "a path without it, or EvolutionStrategies(pairs, sigma), which needs no derivative",
    )


def _cuts(operations: list[Operation]) -> Iterator[tuple[Operation, str]]:
    for operation in operations:
        what, functions = _STEPS.get(operation.name, (None, set()))
        if what is None or functions.isdisjoint(asked_for(operation)):
            continue
        if operation.name != "convert_element_type" or _to_integer(operation.eqn):
            yield operation, what


def _to_integer(eqn: core.JaxprEqn) -> bool:
    before, after = (jnp.dtype(atom.aval.dtype) for atom in (eqn.invars[0], eqn.outvars[0]))  # pyright: ignore
    return jnp.issubdtype(before, jnp.inexact) and jnp.issubdtype(after, jnp.integer)
