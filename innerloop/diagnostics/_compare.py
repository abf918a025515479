"""`compare`: the error and the cost of meta-gradients on your own problem."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import Adaptation
from innerloop.arguments import at_least, between, checked, function, optional, random_key
from innerloop.batches import task_count
from innerloop.diagnostics.candidates import exact_gradient, one_of_every_kind
from innerloop.diagnostics.comparison.entries import Entry, measure_errors, measure_seconds, reason
from innerloop.diagnostics.comparison.result import Comparison, ComparisonRow
from innerloop.errors import InnerloopError, StructureError
from innerloop.gradients import MetaGradient, gradient_name
from innerloop.objective import GRADIENT, check_meta, meta_value_and_grad, parts
from innerloop.problem import Episode, Problem
from innerloop.trees import number_count


@checked(
    **parts(
        key=random_key(),
        exact=GRADIENT,
        chunk=optional(at_least(1)),
        draws=at_least(1, such_as=8),
        seconds=between(0, math.inf, such_as=0.5),
        report=function("line"),
    )
)
def compare(
    problem: Problem,
    adaptation: Adaptation,
    meta: PyTree,
    episodes: Episode,
    key: PRNGKeyArray,
    gradients: Sequence[MetaGradient] | Mapping[str, MetaGradient] | None = None,
    *,
    exact: MetaGradient | None = None,
    chunk: int | None = None,
    draws: int = 8,
    seconds: float = 1.0,
    report: Callable[[str], Any] = lambda line: None,
) -> Comparison:
    r"""Compare meta-gradients with the exact one: cosine, relative error, memory and time.

    Each is compiled as `jax.jit(meta_value_and_grad(problem, adaptation, gradient, chunk=chunk))`
    and gives a gradient g at `meta`, on the same episodes and keys as the exact gradient e. With
    all leaves as one vector, in float64,

    $$\text{cosine} = \frac{g \cdot e}{\|g\| \|e\|}, \qquad
      \text{relative error} = \frac{\|g - e\|}{\|e\|}.$$

    A stochastic meta-gradient (whose fidelity is "unbiased", even inside `Clipped`) is drawn with
    each of `jax.random.split(key, draws)` and compared with the exact gradient of the same key; its
    row gives the means and their standard errors. Any other meta-gradient is computed with the
    first of these keys alone. Cosine and relative error are NaN if the exact gradient is zero or a
    gradient is not finite; the row's note says so.

    Args:
        problem: What is optimised.
        adaptation: How a task is learned.
        meta: The meta-parameters at which the gradients are compared. Errors differ between the
            start and the end of training.
        episodes: A batch of tasks.
        key: The random key of the batch.
        gradients: The meta-gradients, or a mapping from names to them; None for one of every kind.
            If one does not exist for the pair or fails, its row gives the reason.
        exact: The reference meta-gradient; by default `Unroll()`, or `Implicit()` if that does not
            exist. It becomes the first row if it is not among `gradients`.
        chunk: How many tasks are computed at a time, as in `meta_value_and_grad`.
        draws: The number of keys for stochastic meta-gradients, at least 2 if there is one.
        seconds: The time to spend on timing each meta-gradient. After all are compiled, they take
            turns, with at least one call and at most 100 calls each.
        report: Called with a line of text before each part of the work, such as `print`.

    Returns:
        A `Comparison`, which prints as a table.

    Raises:
        StructureError: Before anything is measured, if there are no gradients or one of them is not
            a meta-gradient, if `draws` or `seconds` is out of range, or if the problem itself is
            invalid.
        GradientError: If the reference does not exist (before anything is measured), or fails when
            it runs.
    """
    reference = exact or exact_gradient(adaptation)
    build = lambda gradient, problem: meta_value_and_grad(
        problem, adaptation, gradient, chunk=chunk
    )
    function = build(reference, problem)
    check_meta(meta)
    tasks = task_count(episodes)
    given = one_of_every_kind(adaptation, meta) if gradients is None else gradients
    named, main = _with_reference(_named(given), reference)
    entries = [
        Entry(ComparisonRow(name, gradient), gradient.fidelity(adaptation, problem))
        for name, gradient in named.items()
    ]
    _check_draws(entries, draws)
    keys = jax.random.split(key, draws)
    arguments = (meta, episodes, keys[0])
    _require_sound(function, arguments, main)

    for entry in entries:
        report(f"compiling {entry.row.name}")
        entry.compile(build, problem, arguments)
    report("measuring errors")
    measure_errors(entries, main, (meta, episodes), keys)
    report("measuring times")
    measure_seconds(entries, arguments, seconds)
    return Comparison(tuple(entry.row for entry in entries), main, tasks, number_count(meta), draws)


def _named(gradients: Any) -> dict[str, MetaGradient]:
    """The meta-gradients by name; equal names are numbered."""
    named: dict[str, Any] = {}
    if isinstance(gradients, Mapping):
        named = {str(name): gradient for name, gradient in gradients.items()}
    elif isinstance(gradients, Sequence):
        for gradient in gradients:
            name = gradient_name(gradient)
            count = sum(other.split(" #")[0] == name for other in named)
            named[f"{name} #{count + 1}" if count else name] = gradient
    if named and all(isinstance(gradient, MetaGradient) for gradient in named.values()):
        return named
    kinds = [type(gradient).__name__ for gradient in named.values()]
    raise StructureError(
        "compare needs meta-gradients to compare",
        got=", ".join(kinds) if kinds else f"gradients={gradients!r}",
        expected="at least one meta-gradient, in a sequence or as the values of a mapping",
        write="compare(..., [Unroll(), FirstOrder()])",
    )


def _with_reference(
    named: dict[str, MetaGradient], reference: MetaGradient
) -> tuple[dict[str, MetaGradient], str]:
    """The meta-gradients, with the reference among them, and its name."""
    for name, gradient in named.items():
        if type(gradient) is type(reference) and bool(eqx.tree_equal(gradient, reference)):
            return named, name
    name = gradient_name(reference)
    while name in named:
        name = f"{name}, the reference"
    return {name: reference} | named, name


def _check_draws(entries: Sequence[Entry], draws: int) -> None:
    stochastic = [entry.row.name for entry in entries if entry.fidelity.draws]
    if stochastic and draws < 2:
        raise StructureError(
            "a stochastic meta-gradient needs draws to tell its standard error",
            got=f"draws={draws} for {', '.join(stochastic)}",
            expected="draws >= 2, or deterministic meta-gradients alone",
            write="compare(..., draws=8)",
        )


def _require_sound(function: Callable, arguments: tuple, name: str) -> None:
    """Trace the reference, which raises the errors of the problem itself.

    This also does JAX's work of a first trace, so that it is not timed with the first
    meta-gradient.
    """
    try:
        jax.eval_shape(function, *arguments)
    except (InnerloopError, jax.errors.JAXTypeError, jax.errors.JAXIndexError):
        raise
    except Exception as error:
        raise StructureError(
            f"the problem fails while its meta-gradient is traced: {reason(error)}",
            got=f"{type(error).__name__} under {name}",
            expected="init and losses that can be traced and differentiated",
        ) from error
