"""Meta leaves that get no gradient, and the operations that cut the way: found by tracing alone."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.extend import core

from innerloop.diagnostics.checks.source import called_through, written_at, written_by_the_user
from innerloop.diagnostics.checks.subject import Subject
from innerloop.diagnostics.findings import Finding, Severity
from innerloop.errors import DetachedError
from innerloop.gradients import MetaGradient
from innerloop.gradients.reach import leaf_names
from innerloop.objective import meta_value_and_grad
from innerloop.programs import Operation, between

_STEPS = {
    "argmax": "the place of a maximum",
    "argmin": "the place of a minimum",
    "floor": "rounding",
    "ceil": "rounding",
    "round": "rounding",
}
"""Operations that are constant nearly everywhere; comparisons are not among them, because a choice
between two branches by one is differentiable."""


def unreached_leaves(subject: Subject) -> Iterator[Finding]:
    """Leaves of meta with a gradient that is zero by structure."""
    exact = unreached(subject, subject.exact)
    for name in exact:
        yield _unreached_finding(subject, name)
    for name in unreached(subject, subject.gradient):
        if name not in exact:
            kind = type(subject.gradient).__name__
            yield Finding(
                Severity.NOTE,
                f"{kind} gives meta{name} no gradient",
                f"meta{name}",
                "what reads the leaf has no part in this estimator's gradient: "
                + subject.gradient.fidelity(subject.adaptation).sentence,
                "Unroll(), or leave the leaf out of meta",
            )


def cutting_operations(subject: Subject) -> Iterator[Finding]:
    """Operations between meta and the loss whose derivative is zero whatever they read."""
    leaves = range(len(jax.tree.leaves(subject.meta)))
    for operation, what in _cuts(between(subject.program, leaves, [0])):
        stopped = operation.name == "stop_gradient"
        yield Finding(
            Severity.WARNING,
            f"{operation.name} cuts a way from meta to the loss",
            str(written_at(operation)),
            f"{what} has a derivative of zero",
            "the value without it, if its derivative is meant to count"
            if stopped
            else "a soft choice such as jax.nn.softmax, or EvolutionStrategies(pairs, sigma)",
        )


def unreached(subject: Subject, gradient: MetaGradient) -> list[str]:
    """The leaves of meta that the backward pass of an estimator does not reach."""
    f = meta_value_and_grad(subject.problem, subject.adaptation, gradient)
    try:
        (_, aux), _ = jax.eval_shape(f, subject.meta, subject.episodes, subject.key)
    except DetachedError:
        return leaf_names(subject.meta)
    return list(aux.diagnostics["unreached"])


def _unreached_finding(subject: Subject, name: str) -> Finding:
    index = leaf_names(subject.meta).index(name)
    operations = between(subject.program, [index], [0])
    if not operations:
        return Finding(
            Severity.WARNING,
            f"nothing reads meta{name}",
            f"meta{name}",
            "neither init, the losses nor the adaptation makes use of it, so its gradient is zero",
            "leave it out of meta, or read it in a loss",
        )
    cuts = [f"{operation.name} at {written_at(operation)}" for operation, _ in _cuts(operations)]
    where = ", ".join(dict.fromkeys(cuts)) or "operations with a derivative of zero"
    return Finding(
        Severity.ERROR,
        f"meta{name} is read, but its gradient is cut off",
        f"meta{name}: {where}",
        "every way from the leaf to the loss passes an operation with a derivative of zero",
        "a way without it, or EvolutionStrategies(pairs, sigma), which needs no derivative",
    )


def _cuts(operations: list[Operation]) -> Iterator[tuple[Operation, str]]:
    for operation in operations:
        kind = operation.name
        if kind == "stop_gradient" and written_by_the_user(operation, "stop_gradient"):
            yield operation, "stop_gradient"
        elif kind in _STEPS:
            yield operation, _STEPS[kind]
        elif kind == "convert_element_type" and _to_integer(operation.eqn):
            yield operation, "a conversion to whole numbers"
        elif kind in ("sort", "top_k") and called_through(operation, ("argsort", "top_k")):
            yield operation, "the order of numbers"


def _to_integer(eqn: core.JaxprEqn) -> bool:
    before, after = (jnp.dtype(atom.aval.dtype) for atom in (eqn.invars[0], eqn.outvars[0]))  # pyright: ignore
    return jnp.issubdtype(before, jnp.inexact) and jnp.issubdtype(after, jnp.integer)
