"""What is optimised: the problem, its episodes, and the keys of a task's randomness."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Scalar

from innerloop.arguments import CheckedModule, function, optional, or_none
from innerloop.checks import (
    check_numbers,
    describe,
    failures_explained,
    is_floating,
)
from innerloop.errors import StructureError

Loss = Callable[[PyTree, PyTree, PyTree, PRNGKeyArray], tuple[Scalar, PyTree]]
"""A loss in its normal form: `(params, meta, batch, key) -> (value, aux)`."""


class Episode(eqx.Module):
    """One task: what it is learned from and what the learning is judged on.

    - `support`: pytree of arrays, read by the inner loop
    - `query`: pytree of arrays, read by the outer loss
    - `weight`: scalar, this task's weight in the mean over tasks; None counts as 1. A weight of 0
      masks a padded task, whose data must still give a finite loss.

    A *batch of episodes* has one more leading axis, the task axis, on every leaf.
    """

    support: PyTree[Array | np.ndarray]
    query: PyTree[Array | np.ndarray]
    weight: Float[Array, "..."] | None = None


class Examples(eqx.Module):
    """Labelled rows, the support and query of the library's own tasks, models and heads.

    - `inputs`: `(rows, ...)`
    - `targets`: `(rows, ...)`, real for regression, integer classes for classification
    - `mask`: `(rows,)`, False where a row is padding; None when every row counts
    - `classes`: `(rows, ways)`, False where an output is no class of the row's task, as in a task
      of fewer classes than the model has outputs; None when all are

    Your own tasks may use any other pytree.

    Raises `StructureError` for inputs or targets that are not numbers, such as labels in words.
    """

    inputs: PyTree[Array | np.ndarray]
    targets: PyTree[Array | np.ndarray]
    mask: Array | None = None
    classes: Array | None = None

    def __check_init__(self):
        write = "Examples(inputs, numpy.unique(labels, return_inverse=True)[1])"
        check_numbers("targets", self.targets, write=write)
        check_numbers("inputs", self.inputs, write="Examples(inputs.astype(float), targets)")


class Problem(CheckedModule):
    r"""What is optimised. It names no gradient, no optimizer and no device.

    The meta-objective of one task is

    $$\sum_{t=0}^{K} w_t \, L_\text{outer}(\theta_t(\phi), \phi, \text{query}),
      \qquad \theta_0 = \text{init}(\phi, \text{support}),$$

    where $\phi$ is `meta`, any pytree of floating-point arrays, and the inner loop leads from
    $\theta_t$ to $\theta_{t+1}$ by the inner loss on the support set.

    - `init`: `(meta, support, key) -> params`: what adaptation starts from, and therefore what is
      adapted. None where the adaptation builds its own parameters.
    - `inner_loss`: `(params, meta, batch, key) -> scalar | (scalar, aux)`: support loss. None where
      the adaptation needs none.
    - `outer_loss`: `(params, meta, batch, key) -> scalar | (scalar, aux)`: query loss; `aux` is a
      pytree of metrics.
    - `step_weights`: `steps -> (steps + 1,)` weights $w_0 \dots w_K$; None: $w_K = 1$, the rest 0.
      (Multi-step loss: Antoniou et al. 2019, "How to train your MAML".)

    Raises `StructureError` when a function does not take exactly the arguments above: signatures
    are never guessed at.
    """

    init: Callable[..., PyTree] | None = or_none(function("meta", "support", "key", gives="params"))
    inner_loss: Callable[..., Any] | None = or_none(
        function("params", "meta", "batch", "key", gives="scalar | (scalar, aux)")
    )
    outer_loss: Callable[..., Any] = function(
        "params", "meta", "batch", "key", gives="scalar | (scalar, aux)"
    )
    step_weights: Callable[[int], Float[Array, " steps_plus_one"]] | None = optional(
        function("steps", gives="(steps + 1,) weights")
    )


class TaskKeys(NamedTuple):
    """The three sources of randomness of one task, split from the task's key.

    - `adapt`: the inner loop: `init` uses `fold_in(adapt, 0)`, step t uses `fold_in(adapt, t + 1)`
    - `outer`: the outer loss; the same key after every step
    - `estimator`: the meta-gradient estimator's own draws
    """

    adapt: PRNGKeyArray
    outer: PRNGKeyArray
    estimator: PRNGKeyArray


def task_keys(key: PRNGKeyArray) -> TaskKeys:
    """Split one task's key. Every estimator and `adapt` use it, so they see one inner loop."""
    adapt, outer, estimator = jax.random.split(key, 3)
    return TaskKeys(adapt, outer, estimator)


def subset(
    tree: PyTree, where: Callable[[PyTree], PyTree]
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """Split a tree into the part that is adapted and a function that puts it back.

    `where` selects a subtree, or a tuple of subtrees, as in `equinox.tree_at`. Returns
    `(part, merge)` with `part = where(tree)` and `merge(new)` the tree with `new` in its place, so
    that a loss over the whole tree need not be rewritten when only a part of it is adapted:

    ```python
    head = lambda meta: meta["head"]
    problem = il.Problem(
        init=lambda meta, support, key: il.subset(meta, head)[0],
        inner_loss=lambda params, meta, batch, key: loss(il.subset(meta, head)[1](params), batch),
        outer_loss=lambda params, meta, batch, key: loss(il.subset(meta, head)[1](params), batch),
    )
    ```

    The frozen leaves are `meta`'s own, so they still receive their meta-gradient.

    Raises `StructureError` where `where` selects nothing, or something that is not in the tree.
    """
    try:
        part = where(tree)
    except (KeyError, AttributeError, IndexError, TypeError) as error:
        raise StructureError(
            "where selects something that is not in the tree",
            got=repr(error),
            expected=f"a part of {jax.tree.structure(tree)}",
            write="subset(meta, lambda meta: meta['head'])",
        ) from error
    if not jax.tree.leaves(part):
        raise StructureError(
            "where selects nothing, so nothing would be adapted",
            got=f"{part!r}",
            expected=f"a part of {jax.tree.structure(tree)} with at least one array",
            write="subset(meta, lambda meta: meta['head'])",
        )

    def merge(new: PyTree) -> PyTree:
        return eqx.tree_at(where, tree, new)

    return part, merge


def loss_function(name: str, loss: Callable[..., Any] | None, needed_by: str) -> Loss:
    """Bring a user's loss into the normal form `(params, meta, batch, key) -> (value, aux)`.

    Raises `StructureError` while tracing when the loss is missing, or is not one floating-point
    number per task.
    """
    if loss is None:
        raise StructureError(
            f"{needed_by} needs {name}",
            got=f"{name}=None",
            expected="(params, meta, batch, key) -> scalar | (scalar, aux)",
            write=f"Problem(..., {name}=lambda params, meta, batch, key: ...)",
        )

    def normal(params: PyTree, meta: PyTree, batch: PyTree, key: PRNGKeyArray):
        with failures_explained(
            name,
            params=params,
            meta=meta,
            batch=batch,
            expected=f"parameters, meta and a batch that {name} can read",
            write="Problem(init, ...) whose init returns what the losses take as params",
        ):
            result: Any = loss(params, meta, batch, key)
        value: Any
        value, aux = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
        if not is_floating(value) or jnp.shape(value) != ():
            raise StructureError(
                f"{name} must return one real number per task",
                got=describe(value),
                expected="a floating-point scalar of shape (), or a pair (scalar, aux)",
                write=f"jnp.mean(...) over the rows of the batch in {name}",
            )
        return jnp.asarray(value), aux

    return normal


def initial_params(problem: Problem, needed_by: str) -> Callable[..., PyTree]:
    """The problem's `init`, `(meta, support, key) -> params`, its result checked.

    Every leaf is an array of a definite dtype, so that a loop finds one structure from the first
    step to the last. Raises `StructureError` when there is no `init`, and while tracing unless it
    returns floating-point parameters.
    """
    init = problem.init
    if init is None:
        raise StructureError(
            f"{needed_by} needs parameters to start from",
            got="Problem(init=None, ...)",
            expected="init(meta, support, key) -> params",
            write="Problem(init=lambda meta, support, key: meta, ...)",
        )

    def normal(meta: PyTree, support: PyTree, key: PRNGKeyArray) -> PyTree:
        params = init(meta, support, key)
        leaves = jax.tree.leaves(params)
        if not leaves or not all(is_floating(leaf) for leaf in leaves):
            raise StructureError(
                "init must return floating-point parameters to adapt",
                got=describe(params),
                expected="a pytree of floating-point arrays with at least one leaf",
                write="init=lambda meta, support, key: meta['params'], the rest read off meta by "
                "losses",
            )
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), params)

    return normal
