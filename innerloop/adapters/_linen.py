"""Models from Flax linen modules."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adapters._network import (
    MODES,
    NORMALISATION,
    Mode,
    Outcome,
    call_with_mode,
    differ_as_objects,
    learnable,
    named,
    policy,
    put_together,
    refuse_module,
    require_call,
    require_mode,
    takes_training,
)
from innerloop.arguments import checked
from innerloop.checks import adapter_call, describe, failures_explained, optional_package
from innerloop.errors import StructureError
from innerloop.models import Model

PARAMS, STATISTICS = "params", "batch_stats"


@checked(normalisation=NORMALISATION)
def from_linen(
    module: Any,
    inputs: PyTree = None,
    *,
    variables: PyTree = None,
    train: str | None = None,
    call: Callable[..., Any] | None = None,
    normalisation: str | None = None,
) -> Model:
    """A model from a Flax linen module.

    ```python
    model = il.adapters.from_linen(Network(), jnp.zeros((1, 28, 28, 1)), train="train")
    ```

    The parameters are the variables of linen, `{"params": ..., ...}`, with None in place of
    everything that is not learned. A part is chosen by names: `lambda variables:
    variables["params"]["Dense_1"]`. The floating-point arrays of the collection `params` are
    learned. `batch_stats` follows the normalisation policy, and all other collections are frozen.

    The module is called on the whole batch. The policy decides whether `linen.BatchNorm` uses
    running averages, whatever the module passes to it. All other layers follow the argument that
    `train` names. Every random stream, such as `dropout`, starts from the key of the call.

    Args:
        module: The module.
        inputs: A batch of inputs, or arrays of the same shapes and dtypes, from which linen makes
            the parameters. None if `variables` are given.
        variables: The initial variables for every key, such as pretrained ones; None if they are
            drawn with the key.
        train: The name of the argument that tells the module whether it is in training, such as
            `"train"`; None if it has none.
        call: `(module, inputs) -> outputs`, if the call is not `module(inputs)`. It may also take,
            by their names, `key` and `training` (True or False):
            `call=lambda module, inputs, training: module(inputs, deterministic=not training)`.
        normalisation: The policy for `batch_stats`, required if there are any. `"transductive"`:
            statistics of the rows at hand, in training and prediction. `"carried"`: statistics of
            the rows in training, which update running averages in the model state; running averages
            in prediction. `"frozen"`: running averages that never change.

    Returns:
        The model.

    Raises:
        RunError: If Flax is not installed.
        StructureError: If the module or its call is not as described, or the policy is missing;
            while tracing, if there is a mask where batch statistics are computed, or if the network
            does not follow the policy.
    """
    linen = optional_package("flax.linen", "from_linen", extra="ecosystem")
    core = optional_package("flax.core", "from_linen", extra="ecosystem")
    if not isinstance(module, linen.Module):
        refuse_module("from_linen", module, "a module of flax.linen")
    if (inputs is None) == (variables is None):
        raise StructureError(
            "from_linen needs either example inputs or the variables",
            got="none of them" if inputs is None else "both",
            expected="inputs from which linen makes the parameters, or variables=... ",
        )
    _require_given(inputs, variables)
    _require_call(module, train, call)
    options = lambda training: {} if train is None else {train: training}

    def method(network: Any, inputs: PyTree, key: Any, training: bool) -> Any:
        if call is None:
            return network(inputs, **options(training))
        return call(network, inputs, **named(call, key=key, training=training))

    def make(key: PRNGKeyArray) -> dict:
        if variables is not None:
            return core.unfreeze(variables)
        return core.unfreeze(module.init(key, _arrays(inputs), None, False, method=method))

    with failures_explained("the network", inputs=inputs, variables=variables):
        shapes = jax.eval_shape(make, jax.random.key(0))
    policy_name = policy("from_linen", normalisation, bool(jax.tree.leaves(shapes.get(STATISTICS))))
    carried = policy_name == "carried"
    fixed = jax.jit(lambda key: _fixed(make(key)))(jax.random.key(0))
    state = fixed.pop(STATISTICS) if carried else None

    def init(key: PRNGKeyArray) -> dict:
        learned = lambda leaf: leaf if learnable(leaf) else None
        nothing = jax.tree.map(lambda _: None, fixed)
        return nothing | {"params": jax.tree.map(learned, make(key).get("params", {}))}

    def run(whole: PyTree, before: PyTree, inputs: PyTree, key: Any, mode: Mode) -> Outcome:
        given = whole | ({STATISTICS: before} if carried else {})
        followed = linen.intercept_methods(_of_rows(linen, mode.of_rows))
        with followed, _explained(key):
            outputs, updates = module.apply(
                given,
                *(inputs, key, mode.training),
                rngs=None if key is None else {"params": key},
                mutable=[STATISTICS],
                method=method,
            )
        after = core.unfreeze(updates).get(STATISTICS)
        had = given.get(STATISTICS)
        updated = None if had is None else differ_as_objects(had, after)
        return Outcome(outputs, after if carried else None, updated)

    return put_together(
        *(init, run, policy_name, fixed, state),
        has_modes=train is not None or takes_training(call),
    )


def _require_given(inputs: PyTree, variables: PyTree) -> None:
    """Raise `StructureError` unless these are a batch of inputs, or variables of linen."""
    is_array = lambda leaf: (
        eqx.is_array(leaf) or isinstance(leaf, np.ndarray | np.generic | jax.ShapeDtypeStruct)
    )
    if inputs is not None:
        if isinstance(inputs, Mapping) and isinstance(inputs.get(PARAMS), Mapping):
            raise StructureError(
                "the second argument of from_linen is a batch of inputs, and not the variables",
                got=describe(inputs),
                expected="variables by their name",
                write="from_linen(module, variables=variables)",
            )
        if not all(is_array(leaf) and leaf.ndim for leaf in jax.tree.leaves(inputs)):
            raise StructureError(
                "from_linen makes the parameters from a batch of inputs",
                got=f"inputs={describe(inputs)}",
                expected="an array with one row for each example, such as jnp.zeros((1, 3))",
            )
        return
    if adapter_call(variables) is not None:
        refuse_module("from_linen", variables, "variables of flax.linen")
    collections = variables if isinstance(variables, Mapping) else {}
    if not collections or not all(map(eqx.is_array_like, jax.tree.leaves(collections))):
        raise StructureError(
            "variables are not those of flax.linen",
            got=f"variables={describe(variables)}",
            expected="what module.init returns: a dictionary with arrays, {'params': ...}",
        )
    if PARAMS not in collections:
        raise StructureError(
            "the variables have no collection params, so nothing would be learned",
            got=f"variables with {', '.join(map(str, collections))}",
            expected="all that module.init returns: the collection params, and perhaps others",
            write="from_linen(..., variables={'params': ...})",
        )


@contextmanager
def _explained(key: PRNGKeyArray | None) -> Iterator[None]:
    """Explains what linen refuses while the network runs."""
    errors = optional_package("flax.errors", "from_linen", extra="ecosystem")
    try:
        yield
    except errors.ModifyScopeVariableError as error:
        raise StructureError(
            "the network changes variables that nothing carries",
            got=str(error).partition(". (http")[0],
            expected=f"changes of {STATISTICS} alone; from_functions takes a network with a state "
            "of its own",
        ) from error
    except errors.InvalidRngError as error:
        if key is not None:
            raise
        raise StructureError(
            "the network draws at random, and has no key",
            got="key=None",
            expected="a random key",
        ) from error


def _require_call(module: Any, train: str | None, call: Callable[..., Any] | None) -> None:
    if call is not None:
        require_call("from_linen", call, "module", "inputs", offered=("key", "training"))
        require_mode("from_linen", call, offered=("training",))
        if train is not None:
            raise StructureError(
                "from_linen takes the name of an argument, or a whole call",
                got=f"train={train!r} and call",
                expected="one of them; `call` may take the argument training",
            )
        return
    if train is not None and not named(module.__call__, **{str(train): None}):
        names = [name for name in MODES if named(module.__call__, **{name: None})]
        raise StructureError(
            f"the module's call has no argument {train}",
            got=f"train={train!r}",
            expected="the name of the argument that tells the module whether it is trained",
            write=f"from_linen(..., train={names[0]!r})" if names else None,
        )
    offered = () if train is None else (train,)
    require_call("from_linen", module.__call__, "inputs", offered=offered)
    if train is not None and MODES.get(train) == "not training":
        raise StructureError(
            "train names an argument that is to be False in training",
            got=f"train={train!r}",
            expected="the name of an argument that is True in training; or a call in place of it",
            write=call_with_mode(train),
        )
    names_itself = lambda name: MODES[name] == "training"
    cure = lambda name: f"train={name!r}" if names_itself(name) else call_with_mode(name)
    require_mode("from_linen", module.__call__, cure, offered=offered)


def _arrays(inputs: PyTree) -> PyTree:
    """The inputs, with zeros in place of shapes."""
    is_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    return jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if is_shape(leaf) else jnp.asarray(leaf),
        inputs,
    )


def _fixed(variables: dict) -> dict:
    """The variables with None in place of what is learned."""
    not_learned = lambda leaf: None if learnable(leaf) else leaf
    return variables | {"params": jax.tree.map(not_learned, variables.get("params", {}))}


def _of_rows(linen: Any, of_rows: bool) -> Callable[..., Any]:
    """Tells every `linen.BatchNorm` whether its statistics are those of the rows at hand."""

    def intercept(following: Callable[..., Any], args: tuple, kwargs: dict, context: Any) -> Any:
        layer = context.module
        if not isinstance(layer, linen.BatchNorm) or context.method_name != "__call__":
            return following(*args, **kwargs)
        # The layer refuses the argument if its field has a value too.
        own = layer.use_running_average
        object.__setattr__(layer, "use_running_average", None)
        try:
            return following(*args[:1], **kwargs | {"use_running_average": not of_rows})
        finally:
            object.__setattr__(layer, "use_running_average", own)

    return intercept
