"""Checks of how the losses use their data, by tracing only."""

from collections.abc import Iterator

import jax
import numpy as np

from innerloop.diagnostics.checks.loss_program import SHAPING, LossProgram
from innerloop.diagnostics.checks.source import asked_for, written_at
from innerloop.diagnostics.checks.subject import Subject
from innerloop.diagnostics.findings import Finding, Severity
from innerloop.programs import FlatStep, Value

_SETS = {"inner_loss": "support", "outer_loss": "query"}
_OF_ALL_OPERATORS = {"forward_operator_to_aval"}
"""JAX functions that every arithmetic operator passes through."""


def losses_read_data(subject: Subject) -> Iterator[Finding]:
    """Losses that read nothing of their set, or do not read the classes of a task."""
    for name, program in subject.programs.items():
        own = _SETS[name]
        batch = program.inputs("batch")
        if (
            batch
            and not batch & program.read
            and not (name == "inner_loss" and _init_reads(subject))
        ):
            yield Finding(
                Severity.WARNING,
                f"{name} does not read the {own} set",
                f"{name}, batch",
                "its value is the same whatever the data of the task are",
                f"a loss of params on batch, which is the {own} set; or an empty set, as in "
                f"Episode({own}=(), ...), if the task has no data",
            )
        elif program.inputs("batch.classes") and not program.inputs("batch.classes") & program.read:
            classes = getattr(getattr(subject.episodes, own), "classes", None)
            if classes is not None and not np.all(np.asarray(classes)):
                yield Finding(
                    Severity.WARNING,
                    f"{name} does not read the classes of the task",
                    f"{name}, batch.classes",
                    f"episodes.{own}.classes excludes outputs that are not classes of the task, "
                    "but the loss counts them",
                    "models.cross_entropy(logits, batch), or jnp.where(batch.classes, logits, "
                    "-jnp.inf)",
                )


def _init_reads(subject: Subject) -> bool:
    """Whether `init` reads the support set, so that the data are in the parameters."""
    episode, key = subject.task()
    init = subject.problem.init
    if init is None or not subject.steps:
        return True  # the adaptation decides what it reads
    made = lambda meta, support: sum(
        leaf.sum() for leaf in jax.tree.leaves(init(meta, support, key))
    )
    program = LossProgram(made, (subject.meta, episode.support), ("meta", "batch"))
    return bool(program.inputs("batch") & program.read)


def broadcast_rows(subject: Subject) -> Iterator[Finding]:
    """Operations that broadcast `(rows,)` with `(rows, 1)`, which gives all pairs of rows.

    An operation is reported only if its sides come from different data, such as targets and
    predictions. All pairs of one set of numbers, as in a kernel, are often intended.
    """
    for name, program in subject.programs.items():
        for step in program.flat.steps:
            given = [_before_shaping(program, step, i) for i in range(len(step.args))]
            flat = [(value, shape[0]) for value, shape in given if len(shape) == 1]
            column = [
                (value, shape[0]) for value, shape in given if len(shape) == 2 and shape[1] == 1
            ]
            for one, rows in flat:
                for other, same in column:
                    if rows == same > 1 and _apart(program, one, other):
                        yield _all_pairs(name, step, rows)


def _all_pairs(name: str, step: FlatStep, rows: int) -> Finding:
    return Finding(
        Severity.WARNING,
        f"{name} combines every row with every other row",
        f"{name}, {step.operation.name} at {written_at(step.operation)}",
        f"shapes ({rows}, 1) and ({rows},) broadcast to ({rows}, {rows}), so each prediction is "
        "compared with the targets of all rows",
        "the same shape on both sides, such as predictions[:, 0] or targets[:, None]",
    )


def _before_shaping(program: LossProgram, step: FlatStep, index: int):
    """An argument as the user passed it to the function, `(value, shape)`.

    JAX gives all arguments the same shape first, by operations that belong to the same call.
    """
    value, atom = step.args[index], step.operation.eqn.invars[index]
    call = asked_for(step.operation) - _OF_ALL_OPERATORS
    while (maker := program.made_by.get(value.number)) is not None:
        if maker.operation.name not in SHAPING or call.isdisjoint(asked_for(maker.operation)):
            break
        value, atom = maker.args[0], maker.operation.eqn.invars[0]
    return value, getattr(atom.aval, "shape", ())


def _apart(program: LossProgram, one: Value, other: Value) -> bool:
    """Whether two values come from different leaves of the batch."""
    batch = program.inputs("batch")
    sources = [value.inputs & batch for value in (one, other)]
    return all(sources) and not sources[0] & sources[1] and bool(program.read & sources[0])
