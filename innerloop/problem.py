"""What is optimised: the problem, its episodes, and the random keys of a task."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Scalar, Shaped

from innerloop.arguments import (
    CheckedModule,
    at_least,
    flag,
    function,
    optional,
    or_none,
    require,
)
from innerloop.checks import describe, describe_briefly, first_of, text_type
from innerloop.errors import StructureError
from innerloop.trees import is_key

Loss = Callable[[PyTree, PyTree, PyTree, PRNGKeyArray], tuple[Scalar, PyTree]]
"""A loss in its normal form: `(params, meta, batch, key) -> (value, aux)`."""


class Episode(eqx.Module):
    """One task: the data to learn it from and the data to evaluate the result on.

    In a *batch of episodes* every leaf has one more leading axis, the task axis.

    Args:
        support: Pytree of arrays, read by the inner loop.
        query: Pytree of arrays, read by the outer loss.
        weight: Scalar, this task's weight in the mean over tasks; None counts as 1. In a batch, a
            task of weight 0 is not learned, whatever its data.
    """

    support: PyTree[Array | np.ndarray]
    query: PyTree[Array | np.ndarray]
    weight: Shaped[Array | np.ndarray, "..."] | None = None


class Examples(eqx.Module):
    """Labelled rows: the support and query sets of the library's tasks, models and heads.

    Tasks of your own may use any other pytree.

    Args:
        inputs: Array or pytree of arrays, `(rows, ...)`.
        targets: `(rows, ...)`, real numbers for regression and integer classes for classification.
            Classes count from 0; `IGNORED`, which is -100, marks a row without a label.
        mask: `(rows,)`, False where a row is padding; None if every row counts.
        classes: `(rows, ways)`, False where an output of the model is not a class of the row's
            task, as in a task with fewer classes than others; None if all are.
        ways: The number of classes, which is static. If a model has more outputs, losses, heads and
            predictions leave the others out. None means that every output is a class.
        source: `(rows, 2)`, the numbers of the class and of the row in the data from which each row
            was drawn, -1 for padding; None if they are not known. Learning does not read it.

    Raises:
        StructureError: If inputs or targets are not numbers, such as labels in words, or `ways` is
            not a whole number of at least 1.
    """

    inputs: PyTree[Array | np.ndarray]
    targets: PyTree[Array | np.ndarray]
    mask: Array | None = None
    classes: Array | None = None
    ways: int | None = eqx.field(default=None, static=True)
    source: Array | np.ndarray | None = None

    def __check_init__(self):
        require(optional(at_least(1, such_as=5)), "ways", self.ways, "Examples")
        if text_type(self.targets) is not None:
            raise StructureError(
                "targets are not numbers",
                got=f"targets of type {text_type(self.targets)}",
                expected="arrays of numbers",
                write="Examples(inputs, numpy.unique(targets, return_inverse=True)[1])",
            )
        if text_type(self.inputs) is not None:
            raise StructureError(
                "inputs are not numbers",
                got=f"inputs of type {text_type(self.inputs)}",
                expected="arrays of numbers",
            )


class Stateful(eqx.Module):
    """The parameters that an inner step learns, and the model state, which no gradient changes.

    If the problem has a `state`, the losses and predictions get a `Stateful` in place of the
    parameters, and `adapt` returns one.

    Args:
        params: The parameters, a pytree of floating-point arrays.
        state: The model state, such as batch statistics or a recurrent carry: any pytree of arrays.
    """

    params: PyTree
    state: PyTree


def parameters(adapted: PyTree) -> PyTree:
    """The parameters alone, of what an adaptation returns."""
    return adapted.params if isinstance(adapted, Stateful) else adapted


def state_of(adapted: PyTree) -> PyTree:
    """The model state alone, of what an adaptation returns; None if there is none."""
    return adapted.state if isinstance(adapted, Stateful) else None


def state_form(state: PyTree) -> tuple:
    """Structure, shapes and dtypes of a model state."""
    leaves, structure = jax.tree.flatten(state)
    return structure, *((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def with_state(params: PyTree, state: PyTree) -> PyTree:
    """The parameters with a model state, unless there is none or they already have one."""
    return params if state is None or isinstance(params, Stateful) else Stateful(params, state)


def _is_numeric(leaf: Any) -> bool:
    """Whether a leaf is an array of numbers or keys, the shape of one, or a number."""
    is_array = isinstance(leaf, jax.ShapeDtypeStruct) or eqx.is_array_like(leaf)
    return is_array and text_type(leaf) is None


def _as_arguments(tree: PyTree) -> PyTree:
    """The tree with JAX arrays for NumPy arrays, which would be constants of compiled programs."""
    is_numpy = lambda leaf: isinstance(leaf, np.ndarray) and text_type(leaf) is None
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if is_numpy(leaf) else leaf, tree)


class Problem(CheckedModule):
    r"""The bilevel problem: what is optimised, without a gradient, an optimizer or a device.

    The meta-objective of one task is

    $$\sum_{t=0}^{K} w_t \, L_\text{outer}(\theta_t(\phi), \phi, \text{query}),
      \qquad \theta_0 = \text{init}(\phi, \text{support}),$$

    where $\phi$ is `meta`, any pytree of floating-point arrays, and the adaptation takes
    $\theta_t$ to $\theta_{t+1}$ with the inner loss on the support set.

    Two kinds of arrays are not learned by a gradient. `frozen` holds arrays that never change, such
    as pretrained weights; every function sees them as a part of `meta`. `state` is the model state
    at the beginning of a task, such as batch statistics. If there is one, the losses get
    `Stateful(params, state)` as `params`, the inner loss returns the state for the next step, and
    the outer loss gets the state after the last step.

    Args:
        init: `(meta, support, key) -> params`, the parameters that adaptation starts from and
            changes. It returns no frozen array; see `learned_part`. None if the adaptation builds
            its own parameters.
        inner_loss: `(params, meta, batch, key) -> scalar | (scalar, aux)`, the loss on the support
            set; with `state`, `-> (scalar, aux, state)`. None if the adaptation needs none.
        outer_loss: `(params, meta, batch, key) -> scalar | (scalar, aux)`, the loss on the query
            set; `aux` is a pytree of metrics. `fit` and `evaluate` name its leaves by their paths:
            `{"error": {"top1": x}}` gives `"error.top1"`.
        step_weights: `steps -> (steps + 1,)`, the weights $w_0 \dots w_K$; by default $w_K = 1$
            and the others are 0. (Multi-step loss: Antoniou et al. 2019, "How to train your
            MAML".)
        frozen: The frozen arrays, of any dtype, in a tree with the structure of `meta` or a prefix
            of it, and with None where meta is learned. In their places `meta` holds None, or
            arrays that the functions do not see.
        state: The model state at the beginning of every task; None if the model has none.
            `WholeTasks` replaces it after each outer step by the weighted mean of the states after
            the tasks. With estimators of windows, every inner run begins with this one.
        through_state: Whether the meta-gradient includes the dependence of the state on the
            parameters and on meta. By default the state is held constant, and fidelity says so.

    Raises:
        StructureError: If a function does not take exactly these arguments, because the library
            never guesses at a signature; or if `frozen` or `state` holds anything but arrays.
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
    frozen: PyTree = eqx.field(default=None, kw_only=True, converter=_as_arguments)
    state: PyTree = eqx.field(default=None, kw_only=True, converter=_as_arguments)
    through_state: bool = flag(default=False, kw_only=True)

    def __check_init__(self):
        for name, tree in {"frozen": self.frozen, "state": self.state}.items():
            others = [leaf for leaf in jax.tree.leaves(tree) if not _is_numeric(leaf)]
            if others:
                raise StructureError(
                    f"{name} holds a leaf that is not an array",
                    got=f"{name}={describe_briefly(tree)}",
                    expected="a pytree of arrays and numbers",
                )
        if any(map(is_key, jax.tree.leaves(self.state))):
            raise StructureError(
                "the model state holds a random key, which a mean over tasks would destroy",
                got=describe(self.state),
                expected="arrays of numbers; the losses get a new key in each step",
            )

    def whole(self, meta: PyTree) -> PyTree:
        """`meta` as the functions of the problem see it: with the frozen arrays in their places."""
        return overlay(meta, self.frozen)

    def holding(self, frozen: PyTree, state: PyTree) -> "Problem":
        """The same problem with other frozen arrays and another model state."""
        return dataclasses.replace(self, frozen=frozen, state=state)


def overlay(tree: PyTree, frozen: PyTree) -> PyTree:
    """The tree with the arrays of `frozen` in their places.

    Args:
        tree: Any pytree.
        frozen: A tree of arrays with the structure of `tree` or a prefix of it; None where `tree`
            is not replaced.

    Raises:
        StructureError: If the structures do not fit.
    """
    is_none = lambda leaf: leaf is None
    if frozen is None:
        return tree
    try:
        return jax.tree.map(
            lambda fixed, learned: learned if fixed is None else fixed,
            *(frozen, tree),
            is_leaf=is_none,
        )
    except (ValueError, TypeError) as error:
        raise StructureError(
            "the frozen arrays do not fit into meta",
            got=f"frozen {jax.tree.structure(frozen)}, meta {jax.tree.structure(tree)}",
            expected="one structure, in which each array is learned or frozen",
        ) from error


def learned_part(tree: PyTree, frozen: PyTree) -> PyTree:
    """The tree with None in place of the frozen arrays, such as the part of meta to be adapted.

    Args:
        tree: Any pytree.
        frozen: A tree of arrays as in `overlay`; None if nothing is frozen.

    Returns:
        The tree. `equinox.combine(part, whole)` puts the frozen arrays back.
    """
    if frozen is None:
        return tree
    leaf_if_learned = lambda fixed, leaf: leaf if fixed is None else None
    return jax.tree.map(leaf_if_learned, frozen, tree, is_leaf=lambda leaf: leaf is None)


class TaskKeys(NamedTuple):
    """The three sources of randomness of one task, split from the task's key.

    Args:
        adapt: The key of the inner loop: `init` uses `fold_in(adapt, 0)` and step t uses
            `fold_in(adapt, t + 1)`.
        outer: The key of the outer loss, the same after every step.
        gradient: The key of the meta-gradient's own draws.
    """

    adapt: PRNGKeyArray
    outer: PRNGKeyArray
    gradient: PRNGKeyArray


def task_keys(key: PRNGKeyArray) -> TaskKeys:
    """Split the key of one task into its three sources of randomness.

    Every meta-gradient and `adapt` split it in this way, so they run the same inner loop.

    Args:
        key: The key of the task.

    Returns:
        The keys of the inner loop, the outer loss and the meta-gradient.
    """
    return TaskKeys(*jax.random.split(key, 3))


def subset(
    tree: PyTree, where: Callable[[PyTree], PyTree]
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """Split a tree into the part that is adapted and a function that puts it back.

    A loss over the whole tree need not be rewritten if only a part of the tree is adapted:

    ```python
    head = lambda meta: meta["head"]
    problem = il.Problem(
        init=lambda meta, support, key: il.subset(meta, head)[0],
        inner_loss=lambda params, meta, batch, key: loss(il.subset(meta, head)[1](params), batch),
        outer_loss=lambda params, meta, batch, key: loss(il.subset(meta, head)[1](params), batch),
    )
    ```

    The leaves that are not adapted are those of `meta`, so they still receive their meta-gradient.

    Args:
        tree: Any pytree.
        where: Selects a subtree, or a tuple of subtrees, as in `equinox.tree_at`.

    Returns:
        `(part, merge)`, where `part = where(tree)` and `merge(new)` is the tree with `new` in place
        of the part.

    Raises:
        StructureError: If `where` selects nothing, or something that is not in the tree.
    """
    leaves, treedef = jax.tree.flatten(tree)
    # `where` may read the shapes of leaves, but a leaf may occur twice, so each has a stand-in.
    places = [_stand_in(leaf) for leaf in leaves]
    index = {id(place): i for i, place in enumerate(places)}
    try:
        part = where(tree)
        chosen = [index[id(place)] for place in jax.tree.leaves(where(treedef.unflatten(places)))]
    except (KeyError, AttributeError, IndexError, TypeError) as error:
        raise StructureError(
            "where selects something that is not in the tree",
            got=repr(error),
            expected=f"a part of {_paths(tree)}",
        ) from error
    if not jax.tree.leaves(part):
        raise StructureError(
            "where selects no array",
            got=f"{part!r}",
            expected=f"a part of {_paths(tree)}",
        )
    if len(set(chosen)) < len(chosen):
        raise StructureError(
            "where selects a leaf twice, so it would be two parameters",
            got=f"{len(chosen)} leaves, {len(set(chosen))} of them different",
            expected="subtrees without a common leaf",
        )

    def merge(new: PyTree) -> PyTree:
        if jax.tree.structure(new) != jax.tree.structure(part):
            raise StructureError(
                "only a part of the same structure can be put back",
                got=f"{jax.tree.structure(new)}",
                expected=f"{jax.tree.structure(part)}",
            )
        # Leaves are replaced by position, because some containers give a new object at each access.
        replaced = dict(zip(chosen, jax.tree.leaves(new), strict=True))
        return treedef.unflatten(replaced.get(i, leaf) for i, leaf in enumerate(leaves))

    return part, merge


def _paths(tree: PyTree) -> str:
    """The paths of a tree's leaves, for errors."""
    paths = [f"tree{jax.tree_util.keystr(path)}" for path, _ in jax.tree.leaves_with_path(tree)]
    return first_of(paths) or "a tree with arrays; this one has none"


def _stand_in(leaf: Any) -> Any:
    """An object of its own with the shape and dtype of a leaf."""
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct((), jnp.result_type(leaf)) if eqx.is_array_like(leaf) else object()
