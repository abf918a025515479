"""Programs that JAX runs without this library: an adapted network, or a whole learner."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.arguments import (
    checked,
    each,
    flag,
    instance,
    one_of,
    optional,
    random_key,
)
from innerloop.checks import describe_briefly, explained, optional_package, require_arrays
from innerloop.errors import InnerloopError, StructureError
from innerloop.learner import Learner
from innerloop.objective import adapt
from innerloop.problem import Examples, task_keys
from innerloop.trees import abstract

ARGUMENTS = {
    "learner": instance(Learner, what="a Learner", such_as="recipe.learner"),
    "key": optional(random_key()),
    "any_rows": flag(),
    "platforms": optional(each(one_of("cpu", "cuda", "rocm", "tpu"))),
}


@checked(**ARGUMENTS)
def export_adapted(
    learner: Learner,
    params: PyTree,
    meta: PyTree,
    query: PyTree,
    key: PRNGKeyArray | None = None,
    *,
    any_rows: bool = True,
    platforms: Sequence[str] | None = None,
) -> bytes:
    """The predictions of adapted parameters, as a program that runs without innerloop.

    ```python
    params, _ = il.adapt(learner.problem, learner.adaptation, meta, support, key)
    Path("adapted.bin").write_bytes(il.adapters.export_adapted(learner, params, meta, query))

    # In a process without innerloop:
    adapted = jax.export.deserialize(Path("adapted.bin").read_bytes())
    predictions = adapted.call({"inputs": inputs})
    ```

    The parameters and meta-parameters are constants of the program. Its argument is the query set.
    In place of `Examples`, it takes a dictionary with `"inputs"` and those of `"mask"` and
    `"classes"` that are not None, without targets. The program works under `jax.jit`, but not under
    `jax.vmap`, and it has no derivative.

    Exporting and loading need the package flatbuffers (`pip install 'innerloop[export]'`).

    Args:
        learner: The learner, which has predictions.
        params: The adapted parameters, as `adapt` returns them.
        meta: The meta-parameters.
        query: A query set, as arrays or `jax.ShapeDtypeStruct`s: only the shapes and dtypes matter.
        key: The key of the predictions; None for `jax.random.key(0)`.
        any_rows: Whether the program takes any number of rows; if False, it takes as many as
            `query` has.
        platforms: The platforms on which the program runs, such as `("cpu", "cuda")`; None for the
            current one. Networks are traced for the current platform: on another, they give the
            same results but may be slower.

    Returns:
        The program, to be written to a file.

    Raises:
        StructureError: If the learner makes no predictions, the data are not arrays in
            dictionaries, lists and tuples, or the program exists only for a fixed number of rows.
        RunError: If the package is not installed.
    """
    predict = _predictions(learner, meta, key)
    _refuse_pair(predict, params, query)
    data, rebuilt = _plain(query, with_targets=False)
    program = lambda query: predict(params, rebuilt(query))
    return _exported(program, {"query": data}, any_rows, platforms)


@checked(**ARGUMENTS)
def export_learner(
    learner: Learner,
    meta: PyTree,
    support: PyTree,
    query: PyTree,
    key: PRNGKeyArray | None = None,
    *,
    any_rows: bool = True,
    platforms: Sequence[str] | None = None,
) -> bytes:
    """The predictions after learning a task, as a program that runs without innerloop.

    ```python
    Path("learner.bin").write_bytes(il.adapters.export_learner(learner, meta, support, query))

    # In a process without innerloop:
    learner = jax.export.deserialize(Path("learner.bin").read_bytes())
    predictions = learner.call({"inputs": images, "targets": labels}, {"inputs": others})
    ```

    The inner loop is a part of the program, and the meta-parameters are constants. The arguments of
    the program are the support set and the query set, as in `export_adapted`; the dictionary of the
    support set also has `"targets"`.

    Args:
        learner: The learner, which has predictions.
        meta: The meta-parameters.
        support: The support set of a task, as arrays or `jax.ShapeDtypeStruct`s.
        query: The query set of a task, in the same form.
        key: The key with which every task is learned; None for `jax.random.key(0)`.
        any_rows: Whether the program takes any number of rows in both sets; if False, it takes as
            many as `support` and `query` have.
        platforms: See `export_adapted`.

    Returns:
        The program, to be written to a file.

    Raises:
        StructureError: See `export_adapted`.
        RunError: If the package is not installed.
    """
    key = jax.random.key(0) if key is None else key
    predict = _predictions(learner, meta, task_keys(key).outer)
    (known, as_support), (asked, as_query) = _plain(support), _plain(query, with_targets=False)

    def program(support: PyTree, query: PyTree) -> PyTree:
        task = as_support(support), key
        params, _ = adapt(learner.problem, learner.adaptation, meta, *task)
        return predict(params, as_query(query))

    return _exported(program, {"support": known, "query": asked}, any_rows, platforms)


def _predictions(
    learner: Learner, meta: PyTree, key: PRNGKeyArray | None
) -> Callable[[PyTree, PyTree], PyTree]:
    """`(params, query) -> predictions` of a learner."""
    predict = learner.predict
    if predict is None:
        raise StructureError(
            "only a learner with predictions can be exported",
            got="Learner(..., predict=None)",
            expected="predict, which maps adapted parameters and a query set to predictions",
            write="Learner(..., predict=lambda params, meta, batch, key: ...)",
        )
    key = jax.random.key(0) if key is None else key
    predict = explained("predict", predict, "params", "meta", "batch", "key")
    return lambda params, query: predict(params, learner.problem.whole(meta), query, key)


def _refuse_pair(predict: Callable, params: PyTree, query: PyTree) -> None:
    """Raise `StructureError` for a pair of parameters and infos, which `adapt` returns."""

    def fails(params: PyTree) -> bool:
        try:
            jax.eval_shape(predict, params, query)
        except Exception:
            return True
        return False

    # The parameters themselves may be a pair, too.
    is_pair = isinstance(params, tuple) and len(params) == 2
    if is_pair and fails(params) and not fails(params[0]):
        raise StructureError(
            "params is the pair (params, info) that adapt returns",
            got=f"a pair of {describe_briefly(params[0])} and {describe_briefly(params[1])}",
            expected="the first of the two",
            write="export_adapted(learner, params[0], meta, query)",
        )


def _plain(data: PyTree, with_targets: bool = True) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """The shapes of the data in containers that a program may take, and the inverse function."""
    require_arrays("the data of a program", data)
    shapes = abstract(data)
    if not isinstance(shapes, Examples):
        return shapes, lambda given: given
    fields = {name: getattr(shapes, name) for name in ("inputs", "targets", "mask", "classes")}
    targets = fields["targets"] if with_targets else fields.pop("targets")
    given_fields = {name: field for name, field in fields.items() if field is not None}

    def rebuilt(given: dict[str, PyTree]) -> Examples:
        rows = jax.tree.leaves(given["inputs"])[0].shape[0]
        blank = lambda leaf: jnp.zeros((rows, *leaf.shape[1:]), leaf.dtype)
        without = {} if with_targets else {"targets": jax.tree.map(blank, targets)}
        return Examples(**given, **without, ways=shapes.ways)

    return given_fields, rebuilt


def _exported(
    program: Callable,
    arguments: dict[str, PyTree],
    any_rows: bool,
    platforms: Sequence[str] | None,
) -> bytes:
    optional_package("flatbuffers", "exporting a program", extra="export")
    jitted: Any = jax.jit(program)
    made = lambda shapes: _serialised(jitted, shapes, platforms)
    if not any_rows:
        return made(arguments.values())
    try:
        return made(_with_any_rows(arguments))
    except Exception as error:
        made(arguments.values())  # raises what is wrong with this number of rows too
        raise StructureError(
            "the program cannot be made for any number of rows",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            expected="functions that take any number of rows, without a loop over rows in Python "
            "or a shape that is computed from their number",
            write="any_rows=False",
        ) from error


def _with_any_rows(arguments: dict[str, PyTree]) -> list[PyTree]:
    """The shapes of the arguments, with a symbol for the number of rows of each."""
    scope = export.SymbolicScope()
    given = []
    for name, shapes in arguments.items():
        (rows,) = export.symbolic_shape(f"{name}_rows", scope=scope)
        counts = {leaf.shape[:1] for leaf in jax.tree.leaves(shapes)}
        if len(counts) != 1 or () in counts:
            raise ValueError(f"the arrays of the {name} set have no common number of rows")
        free = lambda leaf, rows=rows: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype)
        given.append(jax.tree.map(free, shapes))
    return given


def _serialised(jitted: Any, shapes: Iterable[PyTree], platforms: Sequence[str] | None) -> bytes:
    exported = export.export(jitted, platforms=platforms)
    try:
        return bytes(exported(*shapes).serialize())
    except InnerloopError:
        raise
    except ValueError as error:
        raise StructureError(
            "a program takes and returns arrays in dictionaries, lists and tuples",
            got=" ".join(str(error).split())[:200],
            expected="these containers in place of others",
        ) from error
    except NotImplementedError as error:
        raise StructureError(
            "an exported program has no host process and cannot call it back",
            got=" ".join(str(error).split())[:200],
            expected="functions without callbacks; the solvers of ConvexHead and Minimise check "
            "their results by callbacks",
        ) from error
