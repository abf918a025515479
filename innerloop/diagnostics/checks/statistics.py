"""Checks for running statistics among the parameters, by tracing only.

A loss returns new statistics only as the model state of its problem. Statistics in params or in
meta keep their initial value, or the gradient trains them as if they were weights.
"""

from collections.abc import Iterator
from typing import Any

import jax

from innerloop.diagnostics.checks.loss_program import SHAPING, LossProgram
from innerloop.diagnostics.checks.source import written_at
from innerloop.diagnostics.checks.subject import Subject
from innerloop.diagnostics.findings import Finding, Severity
from innerloop.problem import task_keys
from innerloop.programs import FlatStep, Operation, Value
from innerloop.trees import leaf_names

_CURE = (
    "statistics of the batch at hand, as models.conv4 takes them; Problem(..., state=statistics), "
    "whose inner loss returns them; or Problem(..., frozen=statistics)"
)


def running_statistics(subject: Subject) -> Iterator[Finding]:
    """Leaves whose update a loss computes and does not return, and variances that are trained."""
    for name, program in subject.programs.items():
        learned = program.inputs("params", "meta")
        for leaf in sorted(learned):
            update = _dropped_update(program, leaf)
            if update is not None and not _kept(subject, program.leaves[leaf]):
                yield Finding(
                    Severity.WARNING,
                    f"{name} updates {program.leaves[leaf]}, and the update is lost",
                    f"{name}, {written_at(update)}",
                    "a loss returns no new parameters, so the leaf keeps its first value, whatever "
                    "statistics the loss computes",
                    _CURE,
                )
            elif (root := _root_of(program, leaf)) is not None:
                yield Finding(
                    Severity.WARNING,
                    f"{program.leaves[leaf]} is the variance of a normalisation and is trained",
                    f"{name}, {written_at(root)}",
                    "the gradient changes it like a weight, whatever the variance of the data is; "
                    "it may become negative, which gives NaN",
                    _CURE,
                )


def _kept(subject: Subject, name: str) -> bool:
    """Whether the adaptation updates a parameter from data, such as a statistic from aux."""
    if not name.startswith("params") or not subject.steps:
        return False
    episode, key = subject.task()

    def learned(meta, support):
        state = subject.run(meta, support, task_keys(key).adapt, steps=1)[0]
        return subject.adaptation.params(state)

    program = LossProgram(learned, (subject.meta, episode.support), ("meta", "batch"))
    names = [
        f"params{leaf}"
        for leaf in leaf_names(jax.eval_shape(learned, subject.meta, episode.support))
    ]
    after = dict(zip(names, program.flat.outputs, strict=True))
    return name in after and bool(after[name].inputs & program.inputs("batch"))


def _dropped_update(program: LossProgram, leaf: int) -> Operation | None:
    """The operation that computes a new value of the leaf from the batch, if nothing uses it.

    None if the loss depends on the leaf itself.
    """
    if leaf in program.read:
        return None
    batch, like = program.inputs("batch"), _kind(program.closed.jaxpr.invars[leaf])
    used = {arg.number for step in program.flat.steps for arg in step.args}
    for step in program.flat.steps:
        for value, atom in zip(step.results, step.operation.eqn.outvars, strict=True):
            of_both = leaf in value.inputs and batch & value.inputs
            if of_both and value.number not in used and _kind(atom) == like:
                return step.operation
    return None


def _kind(atom: Any) -> tuple:
    """Shape and dtype of a value; those of a token are None."""
    return getattr(atom.aval, "shape", None), getattr(atom.aval, "dtype", None)


def _root_of(program: LossProgram, leaf: int) -> Operation | None:
    """The root of the leaf plus a constant, if another leaf of its shape centres the data."""
    if not any(_centred(program, step, leaf) for step in program.flat.steps):
        return None
    roots = (
        step.operation
        for step in program.flat.steps
        if step.operation.name in ("sqrt", "rsqrt") and _plus_constant(program, step.args[0], leaf)
    )
    return next(roots, None)


def _plus_constant(program: LossProgram, value: Value, leaf: int) -> bool:
    maker = program.made_by.get(value.number)
    while maker is not None and maker.operation.name in SHAPING:
        maker = program.made_by.get(maker.args[0].number)
    if maker is None or maker.operation.name not in ("add", "max"):
        return False
    one, other = maker.args
    return any(program.source(a) == leaf and not b.inputs for a, b in ((one, other), (other, one)))


def _centred(program: LossProgram, step: FlatStep, leaf: int) -> bool:
    if step.operation.name != "sub":
        return False
    mean, shapes = program.source(step.args[1]), program.closed.jaxpr.invars
    return (
        mean is not None
        and mean in program.inputs("params", "meta") - {leaf}
        and _kind(shapes[mean]) == _kind(shapes[leaf])
        and bool(step.args[0].inputs & program.inputs("batch"))
    )
