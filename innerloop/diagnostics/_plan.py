"""`plan`: a meta-gradient and a chunk that fit a memory budget, before a run."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from innerloop.adaptation import Adaptation
from innerloop.arguments import at_least, checked, each, one_of, optional
from innerloop.diagnostics.candidates import biased_gradients, chunk_sizes, exact_gradients
from innerloop.diagnostics.planning.amounts import format_bytes, parse_bytes
from innerloop.diagnostics.planning.search import Attempt, Search
from innerloop.diagnostics.text import table
from innerloop.errors import StructureError
from innerloop.fidelity import Kind
from innerloop.gradients import MetaGradient, gradient_name
from innerloop.objective import check_meta, task_count
from innerloop.problem import Episode, Problem
from innerloop.trees import abstract, tree_bytes


class Option(NamedTuple):
    """A meta-gradient that was considered.

    Attributes:
        gradient: The meta-gradient.
        kind: The kind of its fidelity.
        tried: `(chunk, bytes)` of each program that was compiled for it.
        verdict: Whether it was chosen, or why not.
    """

    gradient: MetaGradient
    kind: Kind
    tried: tuple[tuple[int, int], ...]
    verdict: str


@dataclass(frozen=True)
class Plan:
    """A meta-gradient and a chunk that fit a budget. `print` shows what was considered.

    ```python
    best = plan(problem, adaptation, meta, episodes, "2GiB")
    meta_value_and_grad(problem, adaptation, best.gradient, chunk=best.chunk)
    ```

    A plan holds for meta-parameters and episodes of the shapes that it was made for.

    Attributes:
        gradient: The chosen meta-gradient.
        chunk: How many tasks to run at a time; None for all at once.
        memory: The compiler's forecast of the peak in bytes: arguments (meta-parameters and
            episodes), results (gradient and aux) and all temporary values.
        budget: The budget in bytes.
        tasks: The number of tasks in the batch.
        options: The meta-gradients that were considered, in the order in which they were tried.
        compilations: How many programs were compiled.
        seconds: The time that planning took.
    """

    gradient: MetaGradient
    chunk: int | None
    memory: int
    budget: int
    tasks: int
    options: tuple[Option, ...]
    compilations: int
    seconds: float

    def summary(self) -> str:
        """The choice and its cost, in one sentence."""
        chunk = f"all {self.tasks}" if self.chunk is None else f"{self.chunk} of {self.tasks}"
        return (
            f"{gradient_name(self.gradient)}, {chunk} tasks at a time: "
            f"{format_bytes(self.memory)} of {format_bytes(self.budget)}. "
            f"{self.compilations} compiled in {self.seconds:.1f} s."
        )

    def __str__(self) -> str:
        headings = ("meta-gradient", "fidelity", "memory: chunk", "verdict")
        rows = [_cells(option, self.tasks) for option in self.options]
        return f"{self.summary()}\n\n{table(headings, rows, right=len(headings))}"


@checked(chunk=optional(at_least(1)), allow=each(one_of("exact", "biased")))
def plan(
    problem: Problem,
    adaptation: Adaptation,
    meta: PyTree,
    episodes: Episode,
    memory: Any,
    *,
    chunk: int | None = None,
    allow: Sequence[str] = ("exact",),
    gradients: Sequence[MetaGradient] | None = None,
) -> Plan:
    """The first of the exact meta-gradients, from the fastest on, that fits into `memory`.

    Nothing is run. The candidates are compiled in a fixed order until one fits by the compiler's
    analysis of its memory: `Unroll(MixedMode())` and `Unroll()`, which keep every intermediate
    value; those that keep every state; √K of the states; beyond 16 steps about log₂ K of them;
    `ForwardMode` for up to 32 meta-parameters; `Implicit` if no other exists. As many tasks are run
    at a time as fit. On a CPU, only as many are run as take about 4 MiB beside arguments and
    results, and one if these are fewer than eight, because more are not faster there.

    `MixedMode` assumes that second derivatives are symmetric. For losses with straight-through
    estimators, give `gradients=[Unroll(), Unroll(loop=Segments(1))]`.

    Args:
        problem: What is optimised.
        adaptation: How a task is learned.
        meta: The meta-parameters, as arrays or `jax.ShapeDtypeStruct`s.
        episodes: The whole batch with its task axis, as arrays or `jax.ShapeDtypeStruct`s.
        memory: The budget: `"2GiB"`, `"512MB"` or a number of bytes. It includes the arguments and
            results, but not the program itself or constants that the losses close over.
        chunk: How many tasks to run at a time; by default `plan` chooses it.
        allow: The allowed fidelities, in order of preference. With `("exact", "biased")`, a biased
            meta-gradient, `Truncated` or `FirstOrder`, is chosen only if no exact one fits.
        gradients: Candidates instead of the built-in ones, in order of preference; `allow` then has
            no effect.

    Returns:
        A `Plan`, which prints as a table.

    Raises:
        StructureError: If the budget cannot be read, if it is below the size of meta, its gradient
            and the episodes, or if nothing fits; the message then gives the memory that would be
            enough.
        Exception: Any error that the losses raise during tracing, if no candidate can be traced.
    """
    begin = time.perf_counter()
    budget = parse_bytes(memory)
    tasks = task_count(episodes)
    check_meta(meta)
    floor = 2 * tree_bytes(meta) + tree_bytes(episodes)
    if budget < floor:
        raise StructureError(
            "the budget does not hold what goes in and what comes out",
            got=f"memory={format_bytes(budget)}, where meta takes "
            f"{format_bytes(tree_bytes(meta))}, its gradient as much again, and the episodes "
            f"{format_bytes(tree_bytes(episodes))}",
            expected=f"more than {format_bytes(floor)}",
            write="a larger budget, or a batch of fewer tasks",
        )
    chunks = chunk_sizes(tasks) if chunk is None else [min(chunk, tasks)]
    arguments = abstract((meta, episodes, jax.random.key(0)))
    search = Search(problem, adaptation, arguments, budget)
    built_in = {
        "exact": lambda: exact_gradients(problem, adaptation, meta),
        "biased": lambda: biased_gradients(problem, adaptation),
    }
    ways = [built_in[kind] for kind in allow] if gradients is None else [lambda: list(gradients)]
    considered: list[MetaGradient] = []
    for way in ways:
        group = way()
        considered += group
        chosen = search.first_that_fits(group, chunks)
        if chosen is not None:
            break
    else:
        biased = [] if "biased" in allow else biased_gradients(problem, adaptation)
        raise _nothing_fits(search, considered, biased, chunks[-1], budget)
    return Plan(
        gradient=chosen.gradient,
        chunk=None if chosen.chunk == tasks else chosen.chunk,
        memory=chosen.peak,
        budget=budget,
        tasks=tasks,
        options=tuple(
            _option(search, gradient, gradient.fidelity(adaptation, problem).kind, chosen)
            for gradient in considered
        ),
        compilations=len(search.attempts),
        seconds=time.perf_counter() - begin,
    )


def _option(search: Search, gradient: MetaGradient, kind: Kind, chosen: Attempt) -> Option:
    tried = tuple((attempt.chunk, attempt.peak) for attempt in search.of(gradient))
    errors = [error for refused, error in search.refused if refused is gradient]
    if gradient is chosen.gradient:
        verdict = "chosen"
    elif errors:
        verdict = getattr(errors[0], "problem", str(errors[0]).partition("\n")[0])
    else:
        verdict = "does not fit" if tried else "not needed"
    return Option(gradient, kind, tried, verdict)


def _cells(option: Option, tasks: int) -> tuple[str, ...]:
    tried = ", ".join(
        f"{format_bytes(size)}: {'all' if chunk == tasks else chunk}"
        for chunk, size in sorted(option.tried, reverse=True)
    )
    return gradient_name(option.gradient), option.kind, tried, option.verdict


def _nothing_fits(
    search: Search,
    exact: Sequence[MetaGradient],
    biased: Sequence[MetaGradient],
    chunk: int,
    budget: int,
) -> Exception:
    least = search.least(exact, chunk)
    if least is None:
        return search.refused[0][1]
    others = [search.attempt(gradient, chunk) for gradient in [*biased[:1], *biased[1:][-1:]]]
    said = "".join(f"; biased: {_needs(other)}" for other in others if other is not None)
    enough = least.peak if least.peak < 2**20 else f"'{math.ceil(least.peak / 2**20)}MiB'"
    ways = [f"plan(..., memory={enough})"]
    if said:
        ways.append("plan(..., allow=('exact', 'biased')) for a biased one")
    return StructureError(
        "no meta-gradient that was to be considered fits the budget",
        got=f"memory={format_bytes(budget)}; the least is {_needs(least)}{said}",
        expected=f"at least {format_bytes(least.peak)}",
        write=", or ".join(ways),
    )


def _needs(attempt: Attempt) -> str:
    name = gradient_name(attempt.gradient)
    return f"{name} with chunk={attempt.chunk}: {format_bytes(attempt.peak)}"
