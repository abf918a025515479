"""The functions of a problem in the form in which adaptations and meta-gradients call them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.checks import (
    describe,
    explained,
    first_of,
    is_floating,
    require_arrays,
    require_tree,
)
from innerloop.errors import StructureError
from innerloop.problem import Loss, Problem, Stateful, learned_part, with_state
from innerloop.trees import cast_like, definite


def require_rows(name: str, examples: PyTree) -> None:
    """Raise `StructureError` if an array of the support or query set has no elements."""
    if any(0 in jnp.shape(leaf) for leaf in jax.tree.leaves(examples)):
        raise StructureError(
            f"the {name} set is empty",
            got=describe(examples),
            expected="at least one row",
        )


class After(NamedTuple):
    """The aux of an inner loss in its normal form, if the problem has a model state.

    Args:
        aux: The aux that the user's loss returns.
        state: The model state for the next step.
    """

    aux: PyTree
    state: PyTree


def loss_function(name: str, problem: Problem, needed_by: str) -> Loss:
    """Bring a loss of a problem into the normal form `(params, meta, batch, key) -> (value, aux)`.

    The user's function gets `problem.whole(meta)`. If the problem has a model state, `params` is a
    `Stateful`, and the aux of the inner loss is an `After`.

    Args:
        name: `"inner_loss"` or `"outer_loss"`.
        problem: The problem.
        needed_by: The name of what needs the loss, for error messages.

    Raises:
        StructureError: While tracing, if the loss is missing, gets an empty set, or is not one
            floating-point number per task.
    """
    loss: Callable[..., Any] | None = getattr(problem, name)
    keeps = name == "inner_loss" and problem.state is not None
    gives = "(scalar, aux, state)" if keeps else "scalar | (scalar, aux)"
    if loss is None:
        raise StructureError(
            f"{needed_by} needs {name}",
            got=f"{name}=None",
            expected=f"(params, meta, batch, key) -> {gives}",
        )
    explained_loss = explained(name, loss, "params", "meta", "batch", "key")

    def normal(params: PyTree, meta: PyTree, batch: PyTree, key: PRNGKeyArray):
        require_rows("support" if name == "inner_loss" else "query", batch)
        if problem.state is not None and not isinstance(params, Stateful):
            raise StructureError(
                f"{name} needs the model state, which the adaptation does not carry",
                got=f"params {describe(params)}",
                expected="an adaptation whose params are Stateful(params, state), such as those of "
                "GradientDescent and Minimise",
            )
        result: Any = explained_loss(params, problem.whole(meta), batch, key)
        value: Any
        state: PyTree = None
        if keeps:
            value, aux, state = _with_state(result, problem.state)
        else:
            pair = isinstance(result, tuple) and len(result) == 2
            value, aux = result if pair else (result, None)
        if not is_floating(value) or jnp.shape(value) != ():
            raise StructureError(
                f"{name} must return one real number per task",
                got=describe(value),
                expected="a floating-point scalar of shape (), or a pair (scalar, aux)",
            )
        require_arrays(f"the aux of {name}", aux)
        return jnp.asarray(value), After(aux, state) if keeps else aux

    return normal


def at_state(loss: Loss, state: PyTree) -> Loss:
    """The loss as a function of the parameters alone, at a model state."""
    return lambda params, *given: loss(with_state(params, state), *given)


def next_state(problem: Problem, aux: PyTree) -> tuple[PyTree, PyTree]:
    """The aux of the user's inner loss and the model state for the next step, from a normal aux.

    The state is None if the problem has none, and is held constant unless `through_state`.
    """
    if problem.state is None:
        return aux, None
    state = aux.state
    return aux.aux, state if problem.through_state else jax.lax.stop_gradient(state)


def _with_state(result: Any, like: PyTree) -> tuple[Any, Any, PyTree]:
    """What an inner loss returns with a model state; the state in the dtypes that it had before."""
    if not isinstance(result, tuple) or len(result) != 3:
        raise StructureError(
            "the inner loss of a problem with a state returns the state for the next step",
            got=f"a tuple of {len(result)}" if isinstance(result, tuple) else describe(result),
            expected="(scalar, aux, state)",
            write="return loss, {}, params.state",
        )
    value, aux, state = result
    shapes = lambda tree: (jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)])
    if shapes(state) != shapes(like):
        raise StructureError(
            "the inner loss returns a state of another structure than the problem's",
            got=describe(state),
            expected=describe(like),
        )
    return value, aux, cast_like(state, jax.tree.map(definite, like))


def initial_params(problem: Problem, needed_by: str) -> Callable[..., PyTree]:
    """The problem's `init`, `(meta, support, key) -> params`, with its result checked.

    Every leaf becomes an array of a definite dtype, so that the state of a loop has one structure
    from the first step to the last.

    Raises:
        StructureError: If there is no `init`, and while tracing if it does not return
            floating-point parameters, or returns a frozen array.
    """
    init = problem.init
    if init is None:
        raise StructureError(
            f"{needed_by} needs parameters to start from",
            got="Problem(init=None, ...)",
            expected="init(meta, support, key) -> params",
            write="Problem(..., init=lambda meta, support, key: meta)",
        )
    explained_init = explained("init", init, "meta", "support", "key")

    def normal(meta: PyTree, support: PyTree, key: PRNGKeyArray) -> PyTree:
        whole = problem.whole(meta)
        params = explained_init(whole, support, key)
        require_tree("what init returns", params)
        _refuse_frozen(problem, whole, params)
        leaves = jax.tree.leaves(params)
        if not leaves or not all(is_floating(leaf) for leaf in leaves):
            raise StructureError(
                "init must return floating-point parameters to adapt",
                got=describe(params),
                expected="a pytree of floating-point arrays with at least one leaf; values "
                "that are not adapted stay in meta, where the losses read them",
            )
        return jax.tree.map(definite, params)

    return normal


def _refuse_frozen(problem: Problem, whole: PyTree, params: PyTree) -> None:
    """Raise `StructureError` if a frozen array is among the parameters, where it would change."""
    # One array may be in two places of meta, frozen in only one of them.
    learned = map(id, jax.tree.leaves(learned_part(whole, problem.frozen)))
    frozen = set(map(id, jax.tree.leaves(problem.frozen))).difference(learned)
    found = [
        f"params{jax.tree_util.keystr(path)}"
        for path, leaf in jax.tree.leaves_with_path(params)
        if id(leaf) in frozen
    ]
    if found:
        raise StructureError(
            "init returns frozen arrays, which the inner loop would change",
            got=f"frozen arrays as {first_of(found)}",
            expected="only the learned part of meta, with None in place of frozen arrays, which "
            "the losses read from meta: equinox.combine(params, meta)",
            write="init=lambda meta, support, key: il.problem.learned_part(meta, frozen)",
        )
