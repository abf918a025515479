"""Models from Flax nnx modules."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adapters._network import (
    NORMALISATION,
    Mode,
    Outcome,
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
from innerloop.checks import optional_package
from innerloop.errors import StructureError
from innerloop.models import Model
from innerloop.trees import abstract, is_key


@checked(normalisation=NORMALISATION)
def from_nnx(
    module: Any,
    *,
    call: Callable[..., Any] | None = None,
    normalisation: str | None = None,
) -> Model:
    """A model from a Flax nnx module.

    ```python
    model = il.adapters.from_nnx(lambda rngs: Network(rngs=rngs))
    ```

    The parameters are a dictionary of the module's attributes, nested like the module, with None in
    place of everything that is not learned. A part is chosen by names and positions:
    `lambda params: params["layers"][2]`. The floating-point arrays of `nnx.Param` are learned; its
    value may be a pytree.
    `nnx.BatchStat` follows the normalisation policy. All other arrays are frozen, except those of
    `nnx.RngState`: the random streams start anew from the key of each call.

    The module is called on the whole batch, as `module(inputs)`. As with `module.train()` and
    `module.eval()`, the attribute `deterministic` is False in training and True in prediction in
    every layer that has it. The policy sets the attribute `use_running_average`.

    Args:
        module: A function `rngs -> module`, which is given an `nnx.Rngs`; or a module, such as a
            pretrained one, whose own arrays are the initial parameters for every key. The module
            itself is never changed.
        call: `(module, inputs) -> outputs`, if the call is not `module(inputs)`. It may also take,
            by their names, `key` and `training` (True or False):
            `call=lambda module, inputs, training: module(inputs, train=training)`.
        normalisation: The policy for `nnx.BatchStat`, required if there is any. `"transductive"`:
            statistics of the rows at hand, in training and prediction. `"carried"`: statistics of
            the rows in training, which update running averages in the model state; running averages
            in prediction. `"frozen"`: running averages that never change. `nnx.BatchNorm` holds its
            running averages constant itself, so `Problem.through_state` has no effect on them.

    Returns:
        The model.

    Raises:
        RunError: If Flax is not installed.
        StructureError: If the module or its call is not as described, or the policy is missing;
            while tracing, if there is a mask where batch statistics are computed, if the network
            does not follow the policy, or if it draws at random in prediction without a key.
    """
    nnx = optional_package("flax.nnx", "from_nnx", extra="ecosystem")
    make = _maker(nnx, module)
    template = make(jax.random.key(0))
    if call is None:
        require_call("from_nnx", template.__call__, "inputs", offered=())
        require_mode("from_nnx", template.__call__)
    else:
        require_call("from_nnx", call, "module", "inputs", offered=("key", "training"))
        require_mode("from_nnx", call, offered=("training",))
    graph, arrays = _split(nnx, template)
    trees = _trees(nnx, template)
    policy_name = policy("from_nnx", normalisation, bool(arrays.statistics))
    carried = policy_name == "carried"
    others = arrays.others if carried else arrays.others | arrays.statistics
    frozen = _nested(others | dict.fromkeys(arrays.learned))
    init = lambda key: _nested(_split(nnx, make(key))[1].learned | dict.fromkeys(others))
    streams = abstract(arrays.streams)

    def run(whole: PyTree, before: PyTree, inputs: PyTree, key: Any, mode: Mode) -> Outcome:
        drawn = _reseeded(streams, jax.random.key(0) if key is None else key)
        given = _flat(whole) | drawn | (_flat(before) if carried else {})
        network = nnx.merge(graph, _nested(_with_trees(given, trees)))
        network.set_attributes(deterministic=not mode.training, raise_if_not_found=False)
        network.set_attributes(use_running_average=not mode.of_rows, raise_if_not_found=False)
        if call is None:
            outputs = network(inputs)
        else:
            outputs = call(network, inputs, **named(call, key=key, training=mode.training))
        after = _split(nnx, network)[1]
        if key is None:
            _require_no_draw(drawn, after.streams)
        _require_not_written(given, after.others)
        updated = any(leaf is not given[path] for path, leaf in after.statistics.items())
        state = _nested(after.statistics) if carried else None
        return Outcome(outputs, state, updated if after.statistics else None)

    state = _nested(arrays.statistics) if carried else None
    modules = (each for _, each in nnx.iter_modules(template))
    return put_together(
        *(init, run, policy_name, frozen, state),
        has_modes=takes_training(call) or any(hasattr(each, "deterministic") for each in modules),
    )


Flat = dict[tuple, Any]
"""Arrays by their paths in a module."""


class _Arrays(NamedTuple):
    """The arrays of a module by their kinds."""

    learned: Flat
    statistics: Flat
    streams: Flat
    others: Flat


def _maker(nnx: Any, given: Any) -> Callable[[PRNGKeyArray], Any]:
    """`key -> module`."""

    def required(module: Any) -> Any:
        if not isinstance(module, nnx.Module) or not callable(module):
            refuse_module("from_nnx", module, "a module of flax.nnx that can be called")
        return module

    if isinstance(given, nnx.Module):
        required(given)
        return lambda key: given
    require_maker("from_nnx", given, "rngs", "a module of flax.nnx, or a function rngs -> module")

    def made(rngs: Any) -> Any:
        try:
            return given(rngs)
        except (TypeError, ValueError) as error:
            said = str(error).splitlines()[0]
            raise StructureError(
                "from_nnx calls the function that makes the module with an nnx.Rngs, and it fails",
                got=f"{type(error).__name__}: {said}",
                expected="a function rngs -> module, such as lambda rngs: Network(rngs=rngs)",
            ) from error

    return lambda key: required(made(nnx.Rngs(key)))


def _split(nnx: Any, module: Any) -> tuple[Any, _Arrays]:
    """The structure of a module, and its arrays."""
    graph, state = nnx.split(module)
    arrays = _Arrays({}, {}, {}, {})
    for path, leaf in nnx.to_flat_state(state):
        for inner, value in _parts(_value(nnx, leaf)).items():
            if isinstance(leaf, nnx.BatchStat):
                kind = arrays.statistics
            elif isinstance(leaf, nnx.RngState):
                kind = arrays.streams
            elif isinstance(leaf, nnx.Param) and learnable(value):
                kind = arrays.learned
            else:
                kind = arrays.others
            kind[*path, *inner] = value
    return graph, arrays


def _value(nnx: Any, leaf: Any) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _parts(value: PyTree) -> Flat:
    """The arrays of a variable by their paths in it; the path of a single array is empty."""
    leaves = jax.tree.leaves_with_path(value)
    return {tuple(map(_name, path)): leaf for path, leaf in leaves}


def _name(entry: Any) -> Any:
    """The key, index or attribute of an entry of a path."""
    (name,) = (getattr(entry, each) for each in ("key", "idx", "name") if hasattr(entry, each))
    return name


class _Tree(NamedTuple):
    """A variable whose value is a pytree, such as a dictionary of arrays."""

    variable: Any
    paths: list[tuple]
    structure: Any


def _trees(nnx: Any, module: Any) -> dict[tuple, _Tree]:
    """The variables of a module whose values are pytrees, without their arrays."""
    leaves = nnx.to_flat_state(nnx.state(module))
    return {
        path: _Tree(leaf.replace(None), list(_parts(value)), jax.tree.structure(value))
        for path, leaf in leaves
        if isinstance(leaf, nnx.Variable)
        and not jax.tree_util.treedef_is_leaf(jax.tree.structure(value := leaf.get_value()))
    }


def _with_trees(given: Flat, trees: dict[tuple, _Tree]) -> Flat:
    """The arrays, with variables in place of those that are parts of a pytree."""
    whole = dict(given)
    for path, tree in trees.items():
        parts = [whole.pop((*path, *inner)) for inner in tree.paths]
        whole[path] = tree.variable.replace(tree.structure.unflatten(parts))
    return whole


def _nested(flat: Flat) -> dict:
    tree: dict = {}
    for path, value in flat.items():
        inner = tree
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = value
    return tree


def _flat(tree: dict, path: tuple = ()) -> Flat:
    found: Flat = {}
    for name, value in tree.items():
        inner = (*path, name)
        found |= _flat(value, inner) if isinstance(value, dict) else {inner: value}
    return found


def _reseeded(streams: Flat, key: PRNGKeyArray) -> Flat:
    """The random streams of a module, each from a key of its own, and their counts at zero."""
    typed = key if is_key(key) else jax.random.wrap_key_data(key)

    def stream(i: int, shape: tuple) -> PRNGKeyArray:
        own = jax.random.fold_in(typed, i)
        return jax.random.split(own, shape) if shape else own

    return {
        path: stream(i, leaf.shape) if is_key(leaf) else jnp.zeros(leaf.shape, leaf.dtype)
        for i, (path, leaf) in enumerate(streams.items())
    }


def _require_not_written(before: Flat, after: Flat) -> None:
    written = [path for path, leaf in after.items() if leaf is not before.get(path)]
    if written:
        raise StructureError(
            "the network changes variables that nothing carries",
            got=", ".join(".".join(map(str, path)) for path in written),
            expected="changes of nnx.BatchStat and of random streams alone; from_functions takes "
            "a network with a state of its own",
        )


def _require_no_draw(before: Flat, after: Flat) -> None:
    if any(after[path] is not leaf for path, leaf in before.items()):
        raise StructureError(
            "the network draws at random, and has no key",
            got="key=None",
            expected="a random key",
        )
