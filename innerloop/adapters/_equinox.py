"""Models from Equinox modules."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adapters._network import (
    MODES,
    NORMALISATION,
    Mode,
    Outcome,
    differ_as_objects,
    learnable,
    named,
    policy,
    put_together,
    refuse_module,
    require_call,
    require_maker,
    require_mode,
    takes_training,
)
from innerloop.arguments import checked
from innerloop.checks import explained
from innerloop.errors import StructureError
from innerloop.models import Model

NAMES = ("state", "key")


@checked(normalisation=NORMALISATION)
def from_equinox(
    module: eqx.Module | tuple | Callable[[PRNGKeyArray], Any],
    *,
    call: Callable[..., Any] | None = None,
    normalisation: str | None = None,
) -> Model:
    """A model from an Equinox module.

    ```python
    model = il.adapters.from_equinox(lambda key: eqx.nn.MLP(1, 1, 40, 2, key=key))
    ```

    The parameters are the module itself, with None in place of everything that is not learned. A
    part is chosen as in Equinox: `lambda module: module.layers[-1]`. Floating-point arrays are
    learned, and all other arrays are frozen.

    The module is called on each row, under `jax.vmap`. If its `__call__` has an argument `key`, it
    gets a random key for each row; if it has an argument `state`, it gets the `eqx.nn.State`.
    Layers with a state, such as `eqx.nn.BatchNorm`, compute statistics over the rows; the adapter
    reads the name of the axis from the layers. For all other layers, such as `eqx.nn.Dropout`,
    `inference` is False in training and True in prediction.

    Args:
        module: A function `key -> module`; or a module, such as a pretrained one, whose own arrays
            are the initial parameters for every key. A pair `(module, state)`, as
            `eqx.nn.make_with_state` returns it, can take the place of a module.
        call: `(module, inputs) -> outputs`, the network on a whole batch, if the module is not to
            be called on each row: `call=lambda module, inputs: module(inputs)`. It may also take,
            by their names, `key`, `state` and `training` (True or False). If the module has a
            state, `call` returns `(outputs, state)`.
        normalisation: The policy for the state of layers such as `eqx.nn.BatchNorm`, required if
            there are any. `"transductive"`: statistics of the rows at hand, in training and
            prediction. `"carried"`: statistics of the rows in training, which update running
            averages in the model state; running averages in prediction. `"frozen"`: running
            averages that never change. `eqx.nn.BatchNorm` with `mode="batch"` needs many updates:
            its running variance starts from 1, but its bias correction assumes a start from 0, so
            after one update with the default momentum the variance is too large by 99.

    Returns:
        The model.

    Raises:
        StructureError: If the module or its call is not as described, or the policy is missing;
            while tracing, if there is a mask where batch statistics are computed.
    """
    make = _maker(module)
    template, state = make(jax.random.key(0))
    if call is None:
        require_call("from_equinox", template.__call__, "x", offered=NAMES)
        if state is not None and "state" not in named(template.__call__, state=None):
            raise StructureError(
                "the module has layers with a state, but its call does not take one",
                got=f"{type(template).__name__}.__call__ without an argument state",
                expected="__call__(x, state) -> (outputs, state)",
            )
        require_mode("from_equinox", template.__call__, _call_with_mode(template))
    else:
        require_call("from_equinox", call, "module", "inputs", offered=(*NAMES, "training"))
        require_mode("from_equinox", call, offered=("training",))
    policy_name = policy("from_equinox", normalisation, state is not None)
    if policy_name == "transductive":
        state = _as_before_the_first_batch(template, state)
    carried = policy_name == "carried"
    whole = template if carried or state is None else _with_state(template, state)
    learned, rest = eqx.partition(whole, _learned_leaves(whole))
    frozen, static = eqx.partition(rest, eqx.is_array)
    structure, axis_name = jax.tree.structure(learned), _axis_name(whole)
    # A static field may differ between calls of a function, such as a lambda in it.
    init = lambda key: structure.unflatten(jax.tree.leaves(_learned(make(key)[0])))
    has_state = state is not None

    def run(whole: PyTree, before: PyTree, inputs: PyTree, key: Any, mode: Mode) -> Outcome:
        network = eqx.combine(whole, _in_mode(static, mode))
        # The user's code makes a state that it has read invalid, so it gets a copy.
        start = _copy(before if carried else _state(network))
        if call is not None:
            given = named(call, key=key, state=start, training=mode.training)
            result = call(network, inputs, **given)
            outputs, after = result if has_state else (result, None)
            updated = None
        else:
            outputs, after, updated = _on_each_row(network, start, inputs, key, axis_name)
        return Outcome(outputs, after if carried else None, updated)

    modes = (_in_mode(static, Mode(training, of_rows=False)) for training in (True, False))
    return put_together(
        *(init, run, policy_name, frozen, state if carried else None),
        has_modes=takes_training(call) or not eqx.tree_equal(*modes),
    )


def _call_with_mode(module: Any) -> Callable[[str], str]:
    """The call of a module on each row, for an argument that says whether it is in training."""
    if not named(module.__call__, key=None):
        return lambda name: (
            "call=lambda module, inputs, training: "
            f"jax.vmap(lambda x: module(x, {name}={MODES[name]}))(inputs)"
        )
    return lambda name: (
        "call=lambda module, inputs, key, training: "
        f"jax.vmap(lambda x, k: module(x, key=k, {name}={MODES[name]}))"
        "(inputs, None if key is None else jax.random.split(key, len(inputs)))"
    )


def _maker(given: Any) -> Callable[[PRNGKeyArray], tuple[Any, eqx.nn.State | None]]:
    """`key -> (module, state)`; the state is None if the module has no layer with one."""

    def pair(made: Any) -> tuple[Any, eqx.nn.State | None]:
        module: Any
        module, state = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(module, eqx.Module) or not callable(module):
            refuse_module("from_equinox", module, "a module of Equinox that can be called")
        indices = _indices(module)
        if state is not None or not indices:
            return module, state
        try:
            return eqx.nn.make_with_state(lambda: module)()
        except ValueError as error:
            raise StructureError(
                "the module has layers with a state, and the state is missing",
                got=f"a {type(module).__name__} alone",
                expected="the pair (module, state) that eqx.nn.make_with_state returns",
            ) from error

    if isinstance(given, eqx.Module | tuple):
        made = pair(given)
        return lambda key: made
    require_maker("from_equinox", given, "key", "a module of Equinox, or a function key -> module")
    make = explained("the function that makes the module", given, "key")
    return lambda key: pair(make(key))


def _is_index(leaf: Any) -> bool:
    return isinstance(leaf, eqx.nn.StateIndex)


def _indices(module: PyTree) -> list[eqx.nn.StateIndex]:
    return [leaf for leaf in jax.tree.leaves(module, is_leaf=_is_index) if _is_index(leaf)]


def _learned_leaves(module: PyTree) -> PyTree:
    """True at the arrays that are learned; what a `StateIndex` holds never is."""
    is_learned = lambda leaf: not _is_index(leaf) and eqx.is_array(leaf) and learnable(leaf)
    return jax.tree.map(is_learned, module, is_leaf=_is_index)


def _learned(module: PyTree) -> PyTree:
    return eqx.filter(module, _learned_leaves(module))


def _with_state(module: PyTree, state: eqx.nn.State) -> PyTree:
    """The module with the state in its `StateIndex`es, where it is frozen with other arrays."""
    put = lambda index: eqx.tree_at(lambda i: i.init, index, state.get(index))
    each = lambda leaf: put(leaf) if _is_index(leaf) else leaf
    return jax.tree.map(each, module, is_leaf=_is_index)


def _state(module: PyTree) -> eqx.nn.State | None:
    return eqx.nn.State(module) if _indices(module) else None


def _is_batch_norm(leaf: Any) -> bool:
    return isinstance(leaf, eqx.nn.BatchNorm)


def _batch_norms(module: PyTree) -> list[eqx.nn.BatchNorm]:
    leaves = jax.tree.leaves(module, is_leaf=_is_batch_norm)
    return [leaf for leaf in leaves if _is_batch_norm(leaf)]


def _as_before_the_first_batch(module: PyTree, state: Any) -> Any:
    """With `mode="ema"`, only the first batch is normalised by its own statistics alone."""
    for layer in _batch_norms(module):
        if layer.ema_first_time_index is not None:
            state = state.set(layer.ema_first_time_index, jnp.asarray(True))
    return state


def _axis_name(module: PyTree) -> Any:
    """The axis over which the layers of a module compute their statistics; None if none does."""
    names = [layer.axis_name for layer in _batch_norms(module)]
    if any(name != names[0] or isinstance(name, list | tuple) for name in names):
        raise StructureError(
            "the layers of the module compute statistics over different axes",
            got=f"axis names {', '.join(map(repr, names))}",
            expected="one name of the axis of rows, or a function `call` with a jax.vmap for each",
        )
    return names[0] if names else None


def _in_mode(static: PyTree, mode: Mode) -> PyTree:
    """The part of a module that is no array, with its `inference` flags as the mode says."""
    static = eqx.nn.inference_mode(static, not mode.training)
    with_state = lambda leaf: hasattr(leaf, "inference") and any(map(_is_index, _fields(leaf)))
    flags = lambda tree: [
        leaf.inference for leaf in jax.tree.leaves(tree, is_leaf=with_state) if with_state(leaf)
    ]
    return eqx.tree_at(flags, static, replace_fn=lambda _: not mode.of_rows)


def _fields(module: Any) -> list[Any]:
    return list(vars(module).values()) if isinstance(module, eqx.Module) else []


def _on_each_row(
    network: Any, state: Any, inputs: PyTree, key: Any, axis_name: Any
) -> tuple[Any, Any, bool | None]:
    """The outputs of all rows, the state after them, and whether it differs from that before."""
    taken = named(network.__call__, key=None)
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(inputs)}
    keys = jax.random.split(key, rows.pop()) if taken and key is not None else None
    updated: list[bool] = []

    def of_row(row: PyTree, key: Any) -> Any:
        by_name = dict.fromkeys(taken, key)
        if state is None:
            return network(row, **by_name), None
        outputs, after = network(row, state=_copy(state), **by_name)
        updated.append(differ_as_objects(state, after))
        return outputs, after

    over_rows = jax.vmap(of_row, out_axes=(0, None), axis_name=axis_name)
    outputs, after = over_rows(inputs, keys)
    return outputs, after, updated[0] if updated else None


def _copy(state: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf, state)
