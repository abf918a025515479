"""Which meta-gradient? All of them on your own problem: how far from exact, and at what cost."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import Adaptation
from innerloop.arguments import at_least, between, checked
from innerloop.diagnostics.candidates import one_of_every_kind
from innerloop.diagnostics.comparison.entries import Entry, measure_errors, measure_seconds, reason
from innerloop.diagnostics.comparison.result import Comparison, ComparisonRow
from innerloop.diagnostics.given import check_given, exact_gradient
from innerloop.errors import InnerloopError, StructureError
from innerloop.gradients import MetaGradient, gradient_name
from innerloop.objective import meta_value_and_grad
from innerloop.problem import Episode, Problem
from innerloop.trees import number_count


@checked(draws=at_least(1, such_as=8), seconds=between(0, math.inf))
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
) -> Comparison:
    r"""Hold meta-gradients against the exact one: cosine, relative error, memory and time.

    Each is compiled as `jax.jit(meta_value_and_grad(problem, adaptation, gradient, chunk=chunk))`
    and gives a gradient g at `meta`, on the same episodes and keys as the exact gradient e. With
    all leaves as one vector, in float64,

    $$\text{cosine} = \frac{g \cdot e}{\|g\| \|e\|}, \qquad
      \text{relative error} = \frac{\|g - e\|}{\|e\|}.$$

    A meta-gradient that is stochastic (whose fidelity is "unbiased", also where it is `Clipped`)
    is drawn with each of `jax.random.split(key, draws)` and held against the exact gradient of the
    same key; the row gives the means and their standard errors. Any other is computed with the
    first of these keys alone.

    Args:
        problem: the problem
        adaptation: how one task is learned
        meta: where the gradients are compared. Errors differ between the start and the end of
            training.
        episodes: a batch of tasks
        key: the random key of the batch
        gradients: the meta-gradients, or a mapping from names to them; None: one of every kind.
            One that does not exist for the pair, or fails, gives a row that says why.
        exact: the meta-gradient that the others are held against; `Unroll()` unless given, or
            `Implicit()` where that does not exist. It is put first where it is not among
            `gradients`.
        chunk: tasks that are computed at a time, as in `meta_value_and_grad`
        draws: keys for stochastic meta-gradients, at least 2 where there is one
        seconds: time spent on timing each meta-gradient. They take turns, at least one call and at
            most 100 each, after all are compiled.

    Cosine and relative error are NaN where the exact gradient is zero or a gradient is not finite;
    the row's note says so.

    Returns:
        A `Comparison`, which prints as a table.

    Raises:
        StructureError: for no gradients, for anything but meta-gradients among them, for `draws` or
            `seconds` out of range, and for a problem that fails by itself
        GradientError: where the reference does not exist

    These errors come before anything is measured, except for a reference that fails when it runs.
    """
    reference = exact or exact_gradient(adaptation)
    tasks = check_given(problem, adaptation, reference, meta, episodes, key)
    build = lambda gradient: meta_value_and_grad(problem, adaptation, gradient, chunk=chunk)
    given = one_of_every_kind(adaptation, meta) if gradients is None else gradients
    named, main = _with_reference(_named(given), reference)
    rows = [ComparisonRow(name, gradient) for name, gradient in named.items()]
    entries = [Entry(row, adaptation) for row in rows]
    _check_draws(entries, draws)
    keys = jax.random.split(key, draws)
    arguments = (meta, episodes, keys[0])
    _require_sound(build(reference), arguments, main)

    for entry in entries:
        entry.compile(build, arguments)
    measure_errors(entries, main, lambda key: (meta, episodes, key), keys)
    measure_seconds(entries, arguments, seconds)
    return Comparison(tuple(entry.row for entry in entries), main, tasks, number_count(meta), draws)


def _named(gradients: Any) -> dict[str, MetaGradient]:
    """The meta-gradients by name; those of one name are numbered."""
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
        write="compare(problem, adaptation, meta, episodes, key, [Unroll(), FirstOrder()])",
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
    stochastic = [entry.row.name for entry in entries if entry.stochastic]
    if stochastic and draws < 2:
        raise StructureError(
            "a stochastic meta-gradient needs draws to tell its standard error",
            got=f"draws={draws} for {', '.join(stochastic)}",
            expected="draws >= 2, or deterministic meta-gradients alone",
            write="compare(..., draws=8)",
        )


def _require_sound(function: Callable, arguments: tuple, name: str) -> None:
    """Trace the reference, which raises what is wrong with the problem itself.

    JAX's work of a first trace is then done, and is not counted for the first meta-gradient.
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
            write="meta_objective(problem, adaptation, gradient)(meta, episode, key) to find out "
            "where, or exact=... for another reference",
        ) from error
