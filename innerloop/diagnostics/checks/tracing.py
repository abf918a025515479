"""Derivatives that do not exist, found by tracing alone."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from innerloop.checks import is_floating
from innerloop.diagnostics.checks.source import named_places, raised_at, written_at
from innerloop.diagnostics.checks.subject import NO_RULE, Subject
from innerloop.diagnostics.findings import Finding, Severity
from innerloop.errors import InnerloopError, StructureError
from innerloop.programs import Operation, between
from innerloop.trees import dot

_ON_HOST = (
    "JAX cannot look into a function that runs on the host",
    "the function in jax.numpy, or under jax.custom_jvp with its derivative",
)
_MISSING = {
    "pure_callback": ("pure_callback has no derivative", *_ON_HOST),
    "io_callback": ("io_callback has no derivative", *_ON_HOST),
    "while": (
        "while_loop has no reverse-mode derivative",
        "the number of iterations is not known beforehand, so nothing can be stored",
        "jax.lax.scan, or jax.lax.fori_loop with a fixed number of iterations",
    ),
}
"""Operations without a derivative: the problem, its cause, and the cure."""
_CUSTOM = "custom_vjp_call"


def traceable(subject: Subject) -> Iterator[Finding]:
    """Losses that need the concrete value of a traced array."""
    try:
        _ = subject.program
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        yield Finding(
            Severity.ERROR,
            "the problem cannot be traced",
            str(raised_at(error)),
            f"{type(error).__name__}: {str(error).splitlines()[0]}",
            "jnp.where or jax.lax.cond in place of if, jnp in place of np and math; what decides "
            "shapes comes from Python numbers",
        )
    except (InnerloopError, *NO_RULE):
        return  # perhaps a derivative in the adaptation is missing; the next check finds where


def missing_derivatives(subject: Subject) -> Iterator[Finding]:
    """Operations in the losses that lack derivatives which meta-gradients need.

    They are errors if the meta-gradient in use needs these derivatives, or else notes.
    """
    failure, used = subject.missing, subject.of_used.error
    severity = Severity.ERROR if used is not None else Severity.NOTE
    if failure is None:
        found = list(_without_forward_mode(subject, severity))
        yield from found or ([_of_the_whole(used, severity)] if used is not None else [])
        return
    findings = [f for name in subject.given for f in _in_loss(subject, name, severity)]
    if not findings and isinstance(failure, StructureError):
        raise failure
    yield from findings or [_of_the_whole(used or failure, severity)]


def _in_loss(subject: Subject, name: str, severity: Severity) -> Iterator[Finding]:
    """The missing derivatives of one loss, if it lacks any."""
    arguments, value = subject.given[name], subject.loss(name)
    if _traces(jax.grad(value, argnums=(0, 1)), arguments):
        # Unroll uses reverse mode over reverse mode, and only for the inner loss.
        gradient = jax.grad(value)
        slope = lambda params, along, rest: dot(gradient(params, *rest), along)
        second = lambda params, *rest: jax.grad(slope)(params, params, rest)
        if name == "inner_loss" and not _traces(second, arguments):
            yield Finding(
                severity,
                "inner_loss has no second derivative",
                _custom_rules(subject, name),
                "the backward pass of a custom_vjp is itself not differentiable",
                "jax.custom_jvp, or a backward pass in jax.numpy; FirstOrder() needs none",
            )
        return
    for operation in _on_the_way(subject, name):
        if operation.name in _MISSING:
            problem, cause, cure = _MISSING[operation.name]
            if operation.name == "while" and name == "outer_loss":
                cure += "; or ForwardMode(), EvolutionStrategies(pairs, sigma)"
            yield Finding(severity, problem, f"{name}, {written_at(operation)}", cause, cure)


def _on_the_way(subject: Subject, name: str) -> list[Operation]:
    """Operations from params and meta to a loss, except those inside custom rules."""
    leaves = jax.tree.leaves(subject.given[name][:2])
    read = [i for i, leaf in enumerate(leaves) if is_floating(leaf)]
    covered = ("custom_jvp_call", _CUSTOM)
    return [
        operation
        for operation in between(subject.programs[name].closed, read)
        if not any(caller.primitive.name in covered for caller in operation.callers)
    ]


def _custom_rules(subject: Subject, name: str) -> str:
    rules = [operation for operation in _on_the_way(subject, name) if operation.name == _CUSTOM]
    return f"{name}, {named_places(rules, 'an operation not found')}"


def _without_forward_mode(subject: Subject, severity: Severity) -> Iterator[Finding]:
    if "inner_loss" not in subject.given:
        return
    gradient = jax.grad(subject.loss("inner_loss"))
    forward = lambda params, *rest: jax.jvp(lambda p: gradient(p, *rest), (params,), (params,))
    if not _traces(forward, subject.given["inner_loss"]):
        yield Finding(
            severity,
            "inner_loss has no forward-mode derivative",
            _custom_rules(subject, "inner_loss"),
            "jax.custom_vjp defines reverse mode alone; ForwardMode() and mixed mode take "
            "forward mode",
            "jax.custom_jvp in its place, or Unroll()",
        )


def _of_the_whole(error: Exception, severity: Severity) -> Finding:
    if isinstance(error, InnerloopError):
        return Finding(severity, error.problem, "meta", error.got, error.write or error.expected)
    return Finding(
        severity,
        "the meta-objective cannot be differentiated",
        str(raised_at(error) or type(error).__name__),
        str(error).splitlines()[0],
        "EvolutionStrategies(pairs, sigma), which needs no derivatives, or another operation",
    )


def _traces(function: Callable, arguments: tuple) -> bool:
    """Whether a function can be traced for several tasks at once."""
    try:
        jax.eval_shape(lambda *given: jax.vmap(function, axis_size=2)(*_twice(given)), *arguments)
    except NO_RULE:
        return False
    return True


def _twice(tree: PyTree) -> PyTree:
    """A batch of two elements, both this tree."""
    return jax.vmap(lambda _: tree)(jnp.arange(2))
