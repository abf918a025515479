"""Derivatives that do not exist: found by tracing alone."""

from collections.abc import Callable, Iterator

import jax

from innerloop.checks import is_floating
from innerloop.diagnostics.checks.source import written_at
from innerloop.diagnostics.checks.subject import Subject
from innerloop.diagnostics.findings import Finding, Severity
from innerloop.errors import DetachedError, GradientError, InnerloopError
from innerloop.gradients.linear_solve import dot
from innerloop.problem import Loss, initial_params
from innerloop.programs import Operation, between

NO_RULE = (TypeError, ValueError, NotImplementedError)
"""What JAX raises for a derivative that does not exist."""

_CALLBACKS = ("pure_callback", "io_callback")
_CUSTOM = ("custom_vjp_call", "custom_vjp_call_jaxpr")


def missing_derivatives(subject: Subject) -> Iterator[Finding]:
    """Operations in the losses without the derivatives that meta-gradients take."""
    failure = None
    try:
        given = jax.eval_shape(subject.arguments, subject.meta, *subject.task())
    except NO_RULE as error:  # of a derivative that the adaptation itself takes, or of its own
        given, failure = _without_adaptation(subject), error
    found = False
    for name, arguments in given.items():
        loss = subject.loss(name)
        program = jax.make_jaxpr(lambda *args, loss=loss: loss(*args)[0])(*arguments)
        leaves = jax.tree.leaves(arguments[:2])
        read = [i for i, leaf in enumerate(leaves) if is_floating(leaf)]
        for finding in _in_loss(name, between(program, read, [0]), loss, arguments):
            found |= finding.severity is Severity.ERROR
            yield finding
    if failure is not None and not found:
        raise failure
    if not found:
        yield from _in_the_whole(subject)


def _in_loss(name: str, operations: list[Operation], loss: Loss, arguments: tuple):
    for operation in operations:
        kind, place = operation.name, f"{name}, {written_at(operation)}"
        if kind in _CALLBACKS:
            yield Finding(
                Severity.ERROR,
                f"{kind} has no derivative",
                place,
                "JAX cannot look into a function that runs on the host",
                "the function in jax.numpy, or under jax.custom_jvp with its derivative",
            )
        if kind == "while":
            yield Finding(
                Severity.ERROR,
                "while_loop has no reverse-mode derivative",
                place,
                "how often it goes round is not known beforehand, so nothing can be stored",
                "jax.lax.scan, or jax.lax.fori_loop with a fixed number of turns",
            )
    custom = [str(written_at(operation)) for operation in operations if operation.name in _CUSTOM]
    if custom and name == "inner_loss":
        yield from _of_custom_rules(f"{name}, {', '.join(dict.fromkeys(custom))}", loss, arguments)


def _of_custom_rules(place: str, loss: Loss, arguments: tuple) -> Iterator[Finding]:
    gradient = jax.grad(lambda params, *rest: loss(params, *rest)[0])

    def forward_over_reverse(params, *rest):
        return jax.jvp(lambda params: gradient(params, *rest), (params,), (params,))

    def reverse_over_reverse(params, *rest):
        return jax.grad(lambda p: dot(gradient(p, *rest), params))(params)

    if not _traces(reverse_over_reverse, arguments):
        yield Finding(
            Severity.ERROR,
            "inner_loss has no second derivative",
            place,
            "the backward pass of a custom_vjp is itself not differentiable",
            "jax.custom_jvp, or a backward pass in jax.numpy; FirstOrder() needs none",
        )
    elif not _traces(forward_over_reverse, arguments):
        yield Finding(
            Severity.NOTE,
            "inner_loss has no forward-mode derivative",
            place,
            "jax.custom_vjp defines reverse mode alone; ForwardMode(), Implicit() and mixed mode "
            "take forward mode",
            "jax.custom_jvp in its place, or Unroll()",
        )


def _in_the_whole(subject: Subject) -> Iterator[Finding]:
    objective, task = subject.objective(), subject.task()
    try:
        jax.eval_shape(jax.grad(lambda meta: objective(meta, *task)[0]), subject.meta)
    except DetachedError:
        return  # which leaf is cut off, and where, is another check's to say
    except GradientError as error:
        yield Finding(Severity.ERROR, error.problem, "meta", error.got, error.write)
    except InnerloopError:
        raise
    except NO_RULE as error:
        yield Finding(
            Severity.ERROR,
            "the meta-objective cannot be differentiated",
            type(error).__name__,
            str(error).splitlines()[0],
            "EvolutionStrategies(pairs, sigma), which needs no derivatives, or another operation",
        )


def _traces(function: Callable, arguments: tuple) -> bool:
    try:
        jax.eval_shape(function, *arguments)
    except NO_RULE:
        return False
    return True


def _without_adaptation(subject: Subject) -> dict[str, tuple]:
    """What the losses are given where the adaptation itself cannot be traced: what init gives."""
    if subject.problem.init is None:
        return {}

    def arguments(meta, episode, key):
        start = initial_params(subject.problem, needed_by="check")(meta, episode.support, key)
        given = {"outer_loss": (start, meta, episode.query, key)}
        if subject.problem.inner_loss is not None:
            given["inner_loss"] = (start, meta, episode.support, key)
        return given

    return jax.eval_shape(arguments, subject.meta, *subject.task())
