"""`plan`: a meta-gradient and a chunk that fit a memory budget, before a run."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from innerloop.adaptation import Adaptation
from innerloop.arguments import at_least, checked, each, function, instance, one_of, optional
from innerloop.batches import task_count
from innerloop.diagnostics.amounts import format_bytes, parse_bytes
from innerloop.diagnostics.candidates import biased_gradients, chunk_sizes, exact_gradients
from innerloop.diagnostics.compiled import Compiled, compile_for
from innerloop.diagnostics.text import table
from innerloop.errors import InnerloopError, StructureError
from innerloop.fidelity import Kind
from innerloop.gradients import MetaGradient, gradient_name
from innerloop.objective import check_meta, meta_value_and_grad, parts
from innerloop.problem import Episode, Problem
from innerloop.trees import abstract, tree_bytes

AT_A_TIME = 2**22
"""Bytes of temporary memory up to which more tasks at a time are faster on a CPU.

Above it, every call on a CPU sets up new memory page by page. An accelerator keeps its memory.
"""
FEWEST = 8
"""The smallest number of tasks within `AT_A_TIME` for which more than one at a time is faster.

Larger tasks consist of large matrix products, and XLA's products of batches are slower on a CPU.
"""


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


@checked(
    **parts(
        chunk=optional(at_least(1)),
        allow=each(one_of("exact", "biased")),
        gradients=optional(
            each(instance(MetaGradient, what="a meta-gradient", such_as="Unroll()"))
        ),
        report=function("line"),
    )
)
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
    report: Callable[[str], Any] = lambda line: None,
) -> Plan:
    """The first of the exact meta-gradients, from the fastest on, that fits into `memory`.

    Nothing is run. The candidates are compiled in a fixed order until one fits by the compiler's
    analysis of its memory: `Unroll(MixedMode())` and `Unroll()`, which keep every intermediate
    value; those that keep every state; √K of the states; beyond 16 steps about log₂ K of them;
    `ForwardMode` for up to 32 meta-parameters; `Implicit` if no other exists. As many tasks are run
    at a time as fit. On a CPU, the chunk is also limited to about 4 MiB beside arguments and
    results, and to one task if fewer than eight fit into them, because larger chunks are slower.

    `MixedMode` assumes that second derivatives are symmetric. For losses with straight-through
    estimators, give `gradients=[Unroll(), Unroll(loop=Segments(1))]`.

    Args:
        problem: What is optimised.
        adaptation: How a task is learned.
        meta: The meta-parameters, as arrays or `jax.ShapeDtypeStruct`s.
        episodes: The whole batch with its task axis, as arrays or `jax.ShapeDtypeStruct`s.
        memory: The budget: `"2GiB"`, `"512MB"` or a number of bytes. It includes the arguments and
            results and the arrays that the losses close over, but not the program itself.
        chunk: How many tasks to run at a time; by default `plan` chooses it.
        allow: The allowed fidelities, in order of preference. With `("exact", "biased")`, a biased
            meta-gradient, `Truncated` or `FirstOrder`, is chosen only if no exact one fits.
        gradients: Candidates instead of the built-in ones, in order of preference; `allow` then has
            no effect.
        report: Called with a line of text before each compilation, such as `print`.

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
            "the budget is smaller than the arguments and results",
            got=f"memory={format_bytes(budget)}, where meta takes "
            f"{format_bytes(tree_bytes(meta))}, its gradient as much again, and the episodes "
            f"{format_bytes(tree_bytes(episodes))}",
            expected=f"more than {format_bytes(floor)}",
        )
    chunks = chunk_sizes(tasks) if chunk is None else [min(chunk, tasks)]
    arguments = abstract((meta, episodes, jax.random.key(0)))

    def candidate(gradient: MetaGradient) -> _Candidate:
        build = lambda problem, chunk: meta_value_and_grad(
            problem, adaptation, gradient, chunk=chunk
        )
        return _Candidate(gradient, problem, build, arguments, report)

    built_in = {
        "exact": lambda: exact_gradients(problem, adaptation, meta),
        "biased": lambda: biased_gradients(problem, adaptation),
    }
    ways = [built_in[kind] for kind in allow] if gradients is None else [lambda: list(gradients)]
    considered: list[_Candidate] = []
    for way in ways:
        group = [candidate(gradient) for gradient in way()]
        considered += group
        fitting = ((one, size) for one in group if (size := one.chunk_within(budget, chunks)))
        choice = next(fitting, None)
        if choice is not None:
            break
    else:
        biased = [] if "biased" in allow else biased_gradients(problem, adaptation)
        others = [candidate(gradient) for gradient in [*biased[:1], *biased[1:][-1:]]]
        raise _nothing_fits(considered, others, chunks[-1], budget)
    chosen, size = choice
    return Plan(
        gradient=chosen.gradient,
        chunk=None if size == tasks else size,
        memory=chosen.programs[size].memory,
        budget=budget,
        tasks=tasks,
        options=tuple(
            one.option(one.gradient.fidelity(adaptation, problem).kind, one is chosen)
            for one in considered
        ),
        compilations=sum(len(one.programs) for one in considered),
        seconds=time.perf_counter() - begin,
    )


@dataclass(eq=False)
class _Candidate:
    """A meta-gradient, and the memory of its programs.

    Args:
        gradient: The meta-gradient.
        problem: What is optimised.
        build: Maps the problem and a chunk to the function that is compiled.
        arguments: Meta-parameters, episodes and a key, as shapes.
        report: Called with a line before each compilation.
        programs: The compiled programs by their chunk.
        error: The error that tracing the meta-gradient raised, for which it is refused.
    """

    gradient: MetaGradient
    problem: Problem
    build: Callable[[Problem, int], Callable]
    arguments: tuple
    report: Callable[[str], Any]
    programs: dict[int, Compiled] = field(default_factory=dict)
    error: Exception | None = None

    def compiled(self, chunk: int) -> Compiled | None:
        """The program for a chunk, compiled once; None if the meta-gradient is refused.

        An error in the losses refuses only this meta-gradient, since they may work with another.
        """
        if self.error is None and chunk not in self.programs:
            self.report(f"compiling {gradient_name(self.gradient)}, {chunk} tasks at a time")
            build = lambda problem: self.build(problem, chunk)
            try:
                self.programs[chunk] = compile_for(build, self.problem, *self.arguments)
            except (InnerloopError, TypeError, ValueError, NotImplementedError) as error:
                self.error = error
        return self.programs.get(chunk)

    def chunk_within(self, budget: int, chunks: Sequence[int]) -> int | None:
        """How many tasks to run at a time; None if even the smallest chunk exceeds the budget.

        Args:
            budget: The budget in bytes.
            chunks: How many tasks may be run at a time, largest first.

        Returns:
            The largest chunk that fits the budget, or else the smallest one. On a CPU, the
            temporary memory of the chunk is at most about `AT_A_TIME`, and the chunk is the
            smallest if that is less than `FEWEST` tasks.
        """
        at_a_time = AT_A_TIME if jax.default_backend() == "cpu" else math.inf
        smallest = self.compiled(chunks[-1])
        if smallest is None or smallest.memory > budget:
            return None
        for chunk in chunks[:-1]:
            slow = smallest.temporary / chunks[-1] * max(chunk, FEWEST) > at_a_time
            if not slow and self._can_fit(chunk, budget):
                program = self.compiled(chunk)
                if program is not None and program.memory <= budget:
                    return chunk
        return chunks[-1]

    def _can_fit(self, chunk: int, budget: int) -> bool:
        """Whether a chunk may fit: it needs at least its share of the memory of a larger chunk."""
        return all(
            more.memory - more.temporary + more.temporary * chunk / tasks <= budget
            for tasks, more in self.programs.items()
            if tasks >= chunk
        )

    def option(self, kind: Kind, chosen: bool) -> Option:
        """The candidate as `Plan` shows it."""
        tried = tuple((chunk, program.memory) for chunk, program in self.programs.items())
        if chosen:
            verdict = "chosen"
        elif self.error is not None:
            verdict = getattr(self.error, "problem", str(self.error).partition("\n")[0])
        else:
            verdict = "does not fit" if tried else "not needed"
        return Option(self.gradient, kind, tried, verdict)


def _cells(option: Option, tasks: int) -> tuple[str, ...]:
    tried = ", ".join(
        f"{format_bytes(size)}: {'all' if chunk == tasks else chunk}"
        for chunk, size in sorted(option.tried, reverse=True)
    )
    return gradient_name(option.gradient), option.kind, tried, option.verdict


def _nothing_fits(
    considered: Sequence[_Candidate], biased: Sequence[_Candidate], chunk: int, budget: int
) -> Exception:
    needed = lambda one: one.programs[chunk].memory
    shown = lambda one: (
        f"{gradient_name(one.gradient)} with chunk={chunk}: {format_bytes(needed(one))}"
    )
    if not considered:
        return StructureError(
            "no meta-gradient of the allowed fidelity is known for this adaptation",
            got="no candidates, as none is biased after 0 steps or after a solver",
            expected="an adaptation by steps, or exact candidates too",
            write="plan(..., allow=('exact', 'biased'))",
        )
    known = [one for one in considered if one.compiled(chunk)]
    if not known:
        return next(one.error for one in considered if one.error)
    best = min(known, key=needed)
    least = needed(best)
    said = "".join(f"; biased: {shown(one)}" for one in biased if one.compiled(chunk))
    enough = least if least < 2**20 else f"'{math.ceil(least / 2**20)}MiB'"
    ways = [f"plan(..., memory={enough})"]
    if any(needed(one) <= budget for one in biased if one.compiled(chunk)):
        ways.append("plan(..., allow=('exact', 'biased')) for a biased one")
    return StructureError(
        "no meta-gradient that was to be considered fits the budget",
        got=f"memory={format_bytes(budget)}; the least is {shown(best)}{said}",
        expected=f"at least {format_bytes(least)}",
        write=", or ".join(ways),
    )
