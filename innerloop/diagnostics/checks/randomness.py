"""Checks for random numbers that are the same in every call, by tracing only."""

from collections.abc import Iterator

from innerloop.diagnostics.checks.source import written_at
from innerloop.diagnostics.checks.subject import Subject
from innerloop.diagnostics.findings import Finding, Severity

_DRAWS = ("random_bits", "random_gamma", "rng_bit_generator", "threefry2x32")
"""Operations whose first arguments are a random key and whose results are random numbers."""


def keys_of_draws(subject: Subject) -> Iterator[Finding]:
    """Random numbers in the losses whose key is a constant, or a part of params or meta."""
    for name, program in subject.programs.items():
        key, learned = program.inputs("key"), program.inputs("params", "meta")
        for step in program.flat.steps:
            if step.operation.name not in _DRAWS:
                continue
            read = frozenset().union(*(arg.inputs for arg in step.args))
            place = f"{name}, {written_at(step.operation)}"
            if not read:
                yield Finding(
                    Severity.WARNING,
                    f"{name} draws the same random numbers each time",
                    place,
                    "the key is a constant, so every step and every task has the same dropout mask "
                    "or noise",
                    "jax.random with the key that the loss is given; numbers that are to be fixed "
                    "are drawn outside the loss",
                )
            elif read & learned and not read & key:
                leaves = ", ".join(program.leaves[i] for i in sorted(read & learned))
                yield Finding(
                    Severity.ERROR,
                    f"{name} draws random numbers with a key in {leaves}",
                    place,
                    "a random state among the parameters is trained like a number, or keeps its "
                    "first value",
                    "jax.random with the key that the loss is given, and the leaf left out",
                )
