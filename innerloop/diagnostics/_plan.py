"""`plan`: the cheapest meta-gradient and chunk that fit a budget of memory, before a run."""

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import PyTree

from innerloop.adaptation import Adaptation
from innerloop.checks import check_count
from innerloop.diagnostics.planning.amounts import format_bytes, parse_bytes
from innerloop.diagnostics.planning.choices import biased_gradients, exact_gradients
from innerloop.diagnostics.planning.drafts import Request
from innerloop.diagnostics.planning.search import Draft, Search, Trial
from innerloop.diagnostics.planning.table import plan_table, plan_text
from innerloop.errors import StructureError
from innerloop.fidelity import Kind
from innerloop.gradients import MetaGradient, gradient_name
from innerloop.problem import Episode, Problem
from innerloop.trees import tree_bytes


class Option(NamedTuple):
    """A meta-gradient that was considered.

    - `flops`: floating-point operations of the whole batch, NaN where it could not be traced; a
      lower bound where `lower_bound` says so
    - `tried`: `(chunk, bytes)` of the programs that were compiled for it
    - `verdict`: what became of it
    """

    gradient: MetaGradient
    kind: Kind
    flops: float
    lower_bound: bool
    tried: tuple[tuple[int, int], ...]
    verdict: str


class Plan(eqx.Module):
    """A meta-gradient and a chunk that fit a budget.

    ```python
    best = plan(problem, adaptation, meta, episodes, "2GiB")
    meta_value_and_grad(problem, adaptation, best.gradient, chunk=best.chunk)
    ```

    It holds for meta-parameters and episodes of the shapes that were planned for.

    Args:
        gradient: the meta-gradient that was chosen
        chunk: how many tasks are to be run at a time; None for all at once
        memory: forecast of the peak in bytes, by the compiler: arguments (meta-parameters and
            episodes), results (gradient and aux) and everything between
        flops: floating-point operations of the whole batch
        price: what the plan minimises: a forecast of time, in operations of this backend
        budget: bytes
        tasks: how many tasks the batch has
        options: what was considered
        compilations: how many programs were compiled
        seconds: the time that planning took
    """

    gradient: MetaGradient
    chunk: int | None = eqx.field(static=True)
    memory: int = eqx.field(static=True)
    flops: float = eqx.field(static=True)
    price: float = eqx.field(static=True)
    budget: int = eqx.field(static=True)
    tasks: int = eqx.field(static=True)
    options: tuple[Option, ...] = eqx.field(static=True)
    compilations: int = eqx.field(static=True)
    seconds: float = eqx.field(static=True)

    def __str__(self) -> str:
        return plan_text(self)

    def __rich__(self) -> Any:
        return plan_table(self)


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
    """The cheapest meta-gradient and chunk whose compiled program fits into `memory`.

    Nothing is run. Each candidate is traced, which tells the operations it takes and about how much
    memory; from the cheapest on they are compiled, until one fits by the compiler's account of its
    memory. The price of a candidate is what predicts its time: floating-point operations, bytes of
    temporary memory, and calls that are too small to be cheap, weighed by rates of the backend
    (`innerloop.diagnostics.planning.price`).

    - `meta`, `episodes`: arrays, or `jax.ShapeDtypeStruct`s in their places. `episodes` is the
      whole batch, with its task axis.
    - `memory`: the budget, `"2GiB"`, `"512MB"` or a number of bytes. It is to hold the arguments
      and results too, but not the program itself or constants that the losses close over.
    - `chunk`: how many tasks to run at a time, where that is not to be chosen
    - `allow`: which fidelities, in order of preference: with `("exact", "biased")` a biased
      estimator is taken only where no exact one fits.
    - `gradients`: candidates to choose from, in place of the built-in ones; then `allow` does not
      matter

    The exact candidates are `Unroll` with and without `MixedMode`, keeping every intermediate
    value, every state, √K of them, or (beyond 16 steps) about log₂ K; `ForwardMode` for up to 32
    meta-parameters; `Implicit` where no other exists. `MixedMode` takes second derivatives for
    symmetric: give `gradients=[Unroll(),
    Unroll(loop=Segments(1))]` for losses with straight-through
    estimators. The biased ones are `Truncated` and `FirstOrder`.

    Raises `StructureError` for an unreadable budget, for one below the size of meta, its gradient
    and the episodes, and where nothing fits: then it says what would. What the losses raise while
    they are traced is raised, but for candidates that do not exist for them where others do.
    """
    begin = time.perf_counter()
    budget = parse_bytes(memory)
    request = Request(problem, adaptation, meta, episodes)
    tasks = request.tasks
    if chunk is not None:
        check_count("chunk", chunk, write="plan(..., memory='2GiB', chunk=1)")
    _check_floor(budget, request)
    chunks = chunk_sizes(tasks) if chunk is None else [min(chunk, tasks)]
    search, drafts = Search(request.room, tasks, budget), []
    for group in _groups(request, allow, gradients):
        of_group = request.drafts(group)
        drafts += of_group
        chosen = search.first_that_fits(of_group, chunks)
        if chosen is not None:
            break
    else:
        raise _nothing_fits(request, search, drafts, chunks[-1], budget, allow)
    return Plan(
        gradient=chosen.draft.gradient,
        chunk=None if chosen.chunk == tasks else chosen.chunk,
        memory=chosen.room.peak,
        flops=chosen.draft.cost.flops,
        price=search.price(chosen.draft, chosen.chunk),
        budget=budget,
        tasks=tasks,
        options=_options(request, search, drafts, chosen),
        compilations=len(search.trials),
        seconds=time.perf_counter() - begin,
    )


def chunk_sizes(tasks: int) -> list[int]:
    """All tasks at once, about half of them at a time, about a quarter ..., one.

    Sizes that divide the batch where there is one near, because padding copies it.
    """
    sizes = set()
    for i in range(tasks.bit_length() + 1):
        size = math.ceil(tasks / 2**i)
        divisors = (n for n in range(size, math.ceil(size / 2), -1) if tasks % n == 0)
        sizes.add(next(divisors, size))
    return sorted(sizes, reverse=True)


def _groups(request: Request, allow: Sequence[str], gradients) -> list[list[MetaGradient]]:
    """The candidates, group after group in order of preference."""
    if gradients is not None:
        return [list(gradients)]
    problem, adaptation = request.problem, request.adaptation
    built_in = {
        "exact": lambda: exact_gradients(problem, adaptation, request.meta),
        "biased": lambda: biased_gradients(problem, adaptation),
    }
    unknown = [kind for kind in allow if kind not in built_in]
    if unknown or not allow or isinstance(allow, str):
        raise StructureError(
            "allow names the fidelities to choose from",
            got=f"allow={allow!r}",
            expected='a tuple of "exact" and "biased"',
            write='plan(..., allow=("exact", "biased")), or plan(..., gradients=[...])',
        )
    return [built_in[kind]() for kind in allow]


def _options(
    request: Request, search: Search, drafts: list[Draft], chosen: Trial
) -> tuple[Option, ...]:
    """Every candidate, that of the fewest operations first."""

    def option(draft: Draft) -> Option:
        tried = tuple((t.chunk, t.room.peak) for t in search.trials if t.draft is draft)
        verdict = "chosen" if draft is chosen.draft else search.verdict(draft, chosen)
        kind = draft.gradient.fidelity(request.adaptation).kind
        return Option(
            draft.gradient, kind, draft.cost.flops, draft.cost.lower_bound, tried, verdict
        )

    traced = sorted(map(option, drafts), key=lambda option: option.flops)
    refused = [
        Option(
            each.gradient,
            each.gradient.fidelity(request.adaptation).kind,
            math.nan,
            False,
            (),
            _reason(each.error),
        )
        for each in request.refused
    ]
    return (*traced, *refused)


def _reason(error: Exception) -> str:
    return getattr(error, "problem", str(error).partition("\n")[0])


def _check_floor(budget: int, request: Request) -> None:
    meta, episodes = tree_bytes(request.meta), tree_bytes(request.episodes)
    if budget >= 2 * meta + episodes:
        return
    raise StructureError(
        "the budget does not hold what goes in and what comes out",
        got=f"memory={format_bytes(budget)}, where meta takes {format_bytes(meta)}, its gradient "
        f"as much again, and the episodes {format_bytes(episodes)}",
        expected=f"more than {format_bytes(2 * meta + episodes)}",
        write="a larger budget, or a batch of fewer tasks",
    )


def _nothing_fits(
    request: Request,
    search: Search,
    drafts: list[Draft],
    chunk: int,
    budget: int,
    allow: Sequence[str],
) -> Exception:
    if not drafts:
        return request.refused[0].error
    smallest = search.smallest(drafts, chunk)
    said = [_needs(smallest)]
    if "biased" not in allow:
        biased = request.drafts(biased_gradients(request.problem, request.adaptation))
        said += [_needs(search.measure(draft, chunk)) for draft in biased[:1] + biased[1:][-1:]]
    others = "".join(f"; biased: {each}" for each in said[1:])
    peak = smallest.room.peak
    enough = peak if peak < 2**20 else f"'{math.ceil(peak / 2**20)}MiB'"
    ways = [f"plan(..., memory={enough})"]
    if others:
        ways.append("plan(..., allow=('exact', 'biased')) for a biased one")
    return StructureError(
        "no meta-gradient that was to be considered fits the budget",
        got=f"memory={format_bytes(budget)}; the least is {said[0]}{others}",
        expected=f"at least {format_bytes(peak)}",
        write=", or ".join(ways),
    )


def _needs(trial: Trial) -> str:
    flops = f"{trial.draft.cost.flops / 1e9:.3g} GFLOP"
    name = gradient_name(trial.draft.gradient)
    return f"{name} with chunk={trial.chunk}: {format_bytes(trial.room.peak)}, {flops}"
