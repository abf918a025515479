"""What the adapters have in common: policies, inputs, calls, and making the model."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.arguments import checked, function, one_of, optional, random_key, requirement_of
from innerloop.checks import adapter_call, describe, describe_briefly, is_floating
from innerloop.errors import StructureError
from innerloop.masks import blank_rows
from innerloop.models import Model
from innerloop.models.base import refuse_whole_numbers, require_state
from innerloop.problem import learned_part
from innerloop.trees import definite

POLICIES = {
    "none": (False, False),
    "transductive": (True, True),
    "carried": (True, False),
    "frozen": (False, False),
}
"""Whether batch statistics are those of the rows at hand, in training and in prediction."""

NORMALISATION = optional(one_of("transductive", "carried", "frozen", "none"))
"""The kind of an argument that names a policy, or is None if the network needs none."""


class Mode(NamedTuple):
    """How a network is run.

    Args:
        training: Whether it is in training, where dropout is active.
        of_rows: Whether batch statistics are those of the rows at hand, and not running averages.
    """

    training: bool
    of_rows: bool


class Outcome(NamedTuple):
    """What a run of a network gives.

    Args:
        outputs: `(rows, ...)`.
        state: The model state after the run, if it was given one.
        updated: Whether the network updated its batch statistics; None if that is not known.
    """

    outputs: PyTree
    state: PyTree
    updated: bool | None


Run = Callable[[PyTree, PyTree, PyTree, PRNGKeyArray | None, Mode], Outcome]
"""`(whole, state, inputs, key, mode) -> Outcome`; `state` is None unless it is carried."""


def policy(adapter: str, normalisation: str | None, has_statistics: bool) -> str:
    """The normalisation policy of a network.

    Args:
        adapter: The name of the adapter, for errors.
        normalisation: The policy that the user named, or None.
        has_statistics: Whether the network keeps batch statistics.

    Raises:
        StructureError: If the network keeps batch statistics and no policy is named for them, or
            the other way round.
    """
    if has_statistics and normalisation in (None, "none"):
        raise StructureError(
            "the network keeps batch statistics, and only you can say what they are to be",
            got=f"normalisation={normalisation!r}",
            expected="'transductive' (those of the rows at hand, in training and prediction), "
            "'carried' (those of the rows in training, running averages in prediction) or 'frozen' "
            "(running averages that never change)",
            write=f"{adapter}(..., normalisation='transductive')",
        )
    if not has_statistics and normalisation in ("carried", "frozen"):
        raise StructureError(
            "the network keeps no batch statistics",
            got=f"normalisation={normalisation!r}",
            expected="no normalisation policy",
            write=f"{adapter}(..., normalisation=None)",
        )
    return normalisation or "none"


def learnable(leaf: Any) -> bool:
    """Whether an array of a network can be learned: real floating-point numbers.

    Raises:
        StructureError: If it is complex, because it would never be learned.
    """
    if jnp.issubdtype(getattr(leaf, "dtype", jnp.int32), jnp.complexfloating):
        raise StructureError(
            "a network with complex parameters cannot be learned",
            got=describe(leaf),
            expected="floating-point parameters, such as real and imaginary parts",
        )
    return is_floating(leaf)


def none_if_empty(tree: PyTree) -> PyTree:
    """The tree, or None if it has no leaf."""
    return tree if jax.tree.leaves(tree) else None


def put_together(
    init: Callable[[PRNGKeyArray], PyTree],
    run: Run,
    normalisation: str,
    frozen: PyTree,
    state: PyTree,
    *,
    has_modes: bool,
) -> Model:
    """The model of a network.

    Args:
        init: `key -> learned part`.
        run: How the network is run.
        normalisation: The policy.
        frozen: The arrays that are not learned, or a tree without arrays.
        state: The model state, or None if the policy carries none.
        has_modes: Whether the network may differ between training and prediction in more than its
            batch statistics.
    """
    frozen = jax.tree.map(definite, none_if_empty(frozen))

    def forward(params, inputs, key, mask, mode: Mode) -> Outcome:
        if state is not None:
            require_state(params)
        whole, before = (params, None) if state is None else (params.params, params.state)
        if mode.of_rows and mask is not None:
            raise StructureError(
                "padded rows would count in the network's batch statistics",
                got="a mask, where the statistics are those of the rows at hand",
                expected="tasks without padding, or normalisation='frozen'",
            )
        inputs = _prepared(inputs, learned_part(whole, frozen), mask)
        outcome = run(whole, before, inputs, key, mode)
        _require_policy(normalisation, outcome.updated, mode)
        return outcome

    in_training, in_prediction = POLICIES[normalisation]

    def apply(params, inputs, key, mask) -> Any:
        return forward(params, inputs, key, mask, Mode(False, in_prediction)).outputs

    def learn(params, inputs, key, mask) -> tuple[Any, PyTree]:
        outcome = forward(params, inputs, key, mask, Mode(True, in_training))
        return outcome.outputs, outcome.state

    start = checked("init", key=random_key())(lambda key: jax.tree.map(definite, init(key)))
    state = jax.tree.map(definite, state)
    differs = has_modes or in_training != in_prediction
    return Model(
        *(start, apply, normalisation),
        frozen=frozen,
        state=state,
        learn=learn if differs else None,
    )


def _prepared(inputs: PyTree, learned: PyTree, mask: Array | None) -> PyTree:
    """The inputs with floating-point numbers in the parameters' dtype and padded rows blanked."""
    with jax.numpy_dtype_promotion("standard"):  # parameters may differ in type
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(learned) if is_floating(leaf)]
        dtype = jnp.result_type(*dtypes) if dtypes else None

    def prepared(leaf: Any) -> Array:
        if not eqx.is_array_like(leaf):
            raise StructureError(
                "the inputs of a network must be arrays",
                got=describe(inputs),
                expected="arrays with one row for each example",
            )
        numbers = jnp.asarray(leaf)
        if numbers.dtype == jnp.uint8:
            refuse_whole_numbers(numbers)
        if dtype is not None and is_floating(numbers):
            numbers = numbers.astype(dtype)
        return blank_rows(numbers, mask)

    return jax.tree.map(prepared, inputs)


def _require_policy(normalisation: str, updated: bool | None, mode: Mode) -> None:
    """Raise `StructureError` if the network did not do what its policy says."""
    when = "training" if mode.training else "prediction"
    if updated and not mode.of_rows:
        raise StructureError(
            f"the network updates its batch statistics in {when}, where its policy is that it uses "
            "running averages",
            got=f"normalisation={normalisation!r}",
            expected="a network that follows the mode of its library, or an argument `call` that "
            "sets the mode",
        )
    if updated is False and mode.of_rows and normalisation != "none":
        raise StructureError(
            f"the network uses running averages in {when}, where its policy is that it computes "
            "batch statistics",
            got=f"normalisation={normalisation!r}",
            expected="a network that follows the mode of its library, an argument `call` that sets "
            "the mode, or normalisation='frozen'",
        )


def differ_as_objects(before: PyTree, after: PyTree) -> bool:
    """Whether any leaf was replaced; one that was only handed on is the same object."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return any(old is not new for old, new in pairs)


def named(function: Callable[..., Any], **offered: Any) -> dict[str, Any]:
    """The offered arguments that a function takes by their names."""
    taken = inspect.signature(function).parameters
    return {name: value for name, value in offered.items() if name in taken}


def takes_training(call: Callable[..., Any] | None) -> bool:
    """Whether a call that the user gave may differ between training and prediction."""
    return call is not None and bool(named(call, training=None))


TRAINING_CALL = "call=lambda module, inputs, training: module(inputs, train=training)"
"""An example of a `call`, for errors."""


def require_call(
    adapter: str,
    function: Callable[..., Any],
    *positional: str,
    offered: tuple[str, ...],
    example: str = TRAINING_CALL,
) -> None:
    """Raise `StructureError` unless a function can be called with what an adapter gives it.

    Args:
        adapter: The name of the adapter.
        function: The function, or the method of a module.
        *positional: The names of the arguments by position.
        offered: The names of the arguments that it may take by name.
        example: An argument of the adapter that would be right.
    """
    signature = inspect.signature(function)
    try:
        signature.bind(*positional, **named(function, **dict.fromkeys(offered)))
    except TypeError as error:
        raise StructureError(
            f"{adapter} does not know all arguments of the network's call: {error}",
            got=f"a call with the arguments {signature}",
            expected=f"the arguments ({', '.join(positional)})"
            + (f" and, by name, any of {', '.join(offered)}" if offered else "")
            + f"; or the right call, such as {example}",
        ) from error


MODES = {
    **dict.fromkeys(("train", "training", "is_training"), "training"),
    **dict.fromkeys(("deterministic", "inference"), "not training"),
}
"""Names by which a network's call takes whether it is in training, and what they then are."""


def call_with_mode(name: str) -> str:
    """The argument `call` of an adapter for a network whose call has an argument of `MODES`."""
    return f"call=lambda module, inputs, training: module(inputs, {name}={MODES[name]})"


def require_mode(
    adapter: str,
    function: Callable[..., Any],
    cure: Callable[[str], str] = call_with_mode,
    *,
    offered: tuple[str, ...] = (),
) -> None:
    """Raise `StructureError` if a network would not learn whether it is in training.

    Args:
        adapter: The name of the adapter.
        function: The function, or the method of a module.
        cure: `name -> argument of the adapter` that fills the argument of this name.
        offered: The names of the arguments that the adapter fills.
    """
    given = {*offered, *getattr(function, "keywords", ())}  # of functools.partial
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in MODES or name in given:
            continue
        if parameter.default is not None and parameter.default is not parameter.empty:
            raise StructureError(
                f"the network's call has an argument {name}, which {adapter} would leave as it is",
                got=f"{name}={parameter.default!r} in training and in prediction",
                expected=f"a call that passes {name}={MODES[name]}",
                write=f"{adapter}(..., {cure(name)})",
            )


def refuse_module(adapter: str, module: Any, expected: str) -> None:
    """Raise `StructureError` for what an adapter does not take."""
    right = adapter_call(module)
    raise StructureError(
        f"{adapter} does not take this module",
        got=describe_briefly(module) if right is None else _briefly(module),
        expected=expected,
        write=right,
    )


def require_maker(adapter: str, given: Any, argument: str, expected: str) -> None:
    """Raise `StructureError` unless a value is a function of one argument that makes a module."""
    right = adapter_call(given)
    of_another = right is not None and not right.startswith(f"adapters.{adapter}(")
    is_module = right is not None and not isinstance(given, type)
    if is_module or of_another or not callable(given):
        refuse_module(adapter, given, expected)
    maker = requirement_of(function(argument))
    if maker is not None and not maker.accepts(given):
        raise StructureError(
            f"{adapter} calls a function that makes a module with one argument, {argument}",
            got=_briefly(given) if isinstance(given, type) else maker.shown("module", given),
            expected=expected,
            write=right or f"adapters.{adapter}(lambda {argument}: Network({argument}={argument}))",
        )


def _briefly(module: Any) -> str:
    if isinstance(module, type):
        return f"the class {module.__qualname__}"
    return f"a {type(module).__qualname__}"
