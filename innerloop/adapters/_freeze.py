"""A network of which a part is frozen at given values, such as pretrained weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import DTypeLike, PRNGKeyArray, PyTree

from innerloop.adapters._precision import require_range
from innerloop.adapters._where import (
    SELECTION,
    Selection,
    chosen_leaves,
    literal,
    named_leaves,
    split,
)
from innerloop.arguments import checked, floating_dtype, optional, random_key
from innerloop.checks import adapter_call, describe_briefly, is_floating, require_arrays
from innerloop.errors import StructureError
from innerloop.models import Model
from innerloop.models.base import MODEL
from innerloop.problem import overlay, parameters, state_of, with_state
from innerloop.trees import abstract

DTYPE = optional(floating_dtype())


@checked(model=MODEL, where=SELECTION, dtype=DTYPE)
def freeze(
    model: Model, params: PyTree, where: Selection, *, dtype: DTypeLike | None = None
) -> Model:
    """The network with a part frozen at the given values; the rest starts from its values.

    ```python
    model = il.adapters.freeze(model, pretrained, ~il.adapters.matching("head"))
    ```

    The frozen arrays are in `Model.frozen`. They have no gradient and no optimizer state, and
    `init` returns None in their places. Arrays that `model` already freezes stay frozen.

    Args:
        model: The network.
        params: The values of all parameters, as `model.apply` takes them. Frozen arrays may have
            any dtype that the network accepts, such as integers of quantised weights.
        where: Selects the frozen part, a subtree or a tuple of subtrees, as in `subset`; see
            `matching`.
        dtype: The dtype in which frozen floating-point arrays are stored, such as
            `jax.numpy.bfloat16`. The network still gets them in the dtype of `params`, so it
            computes in that precision, with rounded values. None stores them unchanged.

    Returns:
        A model whose `init` returns the learned part of `params`, whatever the key.

    Raises:
        StructureError: If `params` are not the parameters of `model`, if `where` selects nothing or
            everything, if a part that is learned is not made of floating-point arrays, or if
            `dtype` is not a floating-point dtype or has a smaller range than the frozen numbers.
    """
    whole, fixed = with_frozen(model, params)
    frozen_marks = [a or b for a, b in zip(fixed, chosen_leaves(whole, where), strict=True)]
    if all(frozen_marks):
        raise StructureError(
            "where selects everything, so nothing would be learned",
            got=f"{len(frozen_marks)} of {len(frozen_marks)} arrays to be frozen",
            expected="a part of the parameters, such as all but one of the paths "
            + ", ".join(named_leaves(whole)),
        )
    frozen, learned = split(whole, frozen_marks)
    require_floating(learned)
    return Model(
        start_from(learned),
        OnParams(restoring(frozen, dtype), model.apply),
        model.normalisation,
        stored(frozen, dtype),
        model.state,
        None if model.learn is None else OnParams(restoring(frozen, dtype), model.learn),
    )


def with_frozen(model: Model, params: PyTree) -> tuple[PyTree, list[bool]]:
    """All arrays of a network, and for each of them whether the network freezes it already.

    Raises:
        StructureError: If the parameters are not those of the network.
    """
    own = overlay(jax.eval_shape(model.init, jax.random.key(0)), abstract(model.frozen))
    has_others = not all(map(eqx.is_array_like, jax.tree.leaves(params)))
    call = adapter_call(params)
    if call is not None and (has_others or adapter_call(own) != call):
        raise StructureError(
            "params is a module or its state, and not the parameters of the network",
            got=f"a {type(params).__qualname__}",
            expected="parameters as model.init returns them; those of a module are what its "
            "adapter makes of it",
            write=f"{call}.init(jax.random.key(0))",
        )
    require_arrays("the parameters", params)
    whole = overlay(params, model.frozen)
    if difference := _difference(named_leaves(own), named_leaves(whole)):
        raise StructureError(
            "the parameters are not those of the network",
            got=difference,
            expected="the arrays that model.init returns, with other values",
        )
    marks = overlay(
        jax.tree.map(lambda _: False, whole), jax.tree.map(lambda _: True, model.frozen)
    )
    return jax.tree.map(jnp.asarray, whole), jax.tree.leaves(marks)


def _difference(own: dict[str, Any], given: dict[str, Any]) -> str | None:
    """In which array the given ones differ from a network's own."""
    for path in own | given:
        if path not in given:
            return f"parameters without {path}"
        shape = jnp.shape(given[path])
        if path not in own:
            return f"{path} {shape}, which the network does not have"
        if shape != own[path].shape:
            return f"{path} {shape}, where the network's has the shape {own[path].shape}"
    return None


def require_floating(learned: PyTree) -> None:
    """Raise `StructureError` if an array that is to be learned has no gradient."""
    others = [path for path, leaf in named_leaves(learned).items() if not is_floating(leaf)]
    if others:
        raise StructureError(
            "an array that is not frozen is not a floating-point array, so it cannot be learned",
            got=", ".join(f"{path}: {named_leaves(learned)[path].dtype}" for path in others),
            expected="floating-point arrays, or these arrays among the frozen ones",
            write=f"matching({', '.join(repr(literal(path)) for path in others)}) | where, for the "
            "frozen part",
        )


def start_from(learned: PyTree) -> Callable[[PRNGKeyArray], PyTree]:
    """An `init` that returns these arrays."""

    @checked("init", key=random_key())
    def init(key: PRNGKeyArray) -> PyTree:
        return learned

    return init


def stored(frozen: PyTree, dtype: DTypeLike | None) -> PyTree:
    """The frozen arrays in the dtype in which they are stored."""
    if dtype is None:
        return frozen
    narrow = jax.tree.map(lambda leaf: leaf.astype(dtype) if is_floating(leaf) else leaf, frozen)
    after = named_leaves(narrow)
    for path, leaf in named_leaves(frozen).items():
        if is_floating(leaf) and not isinstance(leaf, Tracer):
            require_range(leaf, after[path], "a frozen array", repr(path), StructureError)
    return narrow


def restoring(frozen: PyTree, dtype: DTypeLike | None) -> Callable[[PyTree], PyTree]:
    """Gives the frozen arrays of a whole tree back the dtypes that they had before `stored`."""
    if dtype is None:
        return lambda whole: whole
    before, treedef = jax.tree.flatten(abstract(frozen), is_leaf=lambda leaf: leaf is None)

    def restored(whole: PyTree) -> PyTree:
        parts = treedef.flatten_up_to(whole)
        wide = [
            leaf if old is None else leaf.astype(old.dtype)
            for leaf, old in zip(parts, before, strict=True)
        ]
        return treedef.unflatten(wide)

    return restored


@dataclass(frozen=True)
class OnParams:
    """`apply` or `learn` of a model, on changed parameters.

    Args:
        change: `params -> params`.
        function: `apply` or `learn`.
    """

    change: Callable[[PyTree], PyTree]
    function: Callable[..., Any]

    def __call__(self, params: PyTree, inputs: Any, key: PRNGKeyArray | None, mask: Any) -> Any:
        changed = with_state(self.change(parameters(params)), state_of(params))
        return self.function(changed, inputs, key, mask)


@checked(model=MODEL)
def merged_params(model: Model, meta: PyTree) -> PyTree:
    """The parameters of the network that `freeze` or `lora` was given, after training.

    ```python
    low_rank = il.adapters.lora(network, params, rank=4, where=where, alpha=8)
    # ... train low_rank, which gives meta ...
    params = il.adapters.merged_params(low_rank, meta)
    ```

    `network.apply(params, ...)` then computes the outputs of the trained model. The frozen arrays
    and the learned ones are in one tree, and the changes of `lora` are merged with its `alpha` and
    `as_matrix`. Frozen arrays that are stored in another dtype have that of the network's
    parameters, with rounded values.

    Args:
        model: A model that `freeze` or `lora` returned.
        meta: Its parameters: as `model.init` returns them, before or after training, or as `adapt`
            returns them.

    Returns:
        The parameters, as `apply` of the network takes them.

    Raises:
        StructureError: If the model comes from elsewhere, or the parameters are not those of the
            model.
    """
    if not isinstance(model.apply, OnParams):
        raise StructureError(
            "only a model of freeze or lora has parameters to merge",
            got=f"a model with apply={describe_briefly(model.apply)}",
            expected="a model that freeze or lora returned; the parameters of other models are "
            "those that model.init returns, with model.frozen",
        )
    return model.apply.change(overlay(parameters(meta), model.frozen))
