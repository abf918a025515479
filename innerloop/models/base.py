"""Models: a pair of pure functions, and the name of the normalisation."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, DTypeLike, Float, PRNGKeyArray, PyTree

from innerloop.arguments import instance
from innerloop.checks import adapter_call, describe, describe_briefly
from innerloop.errors import StructureError
from innerloop.masks import blank_rows
from innerloop.problem import Stateful


class Model(NamedTuple):
    """A network as pure functions of its arrays, without modes or devices.

    The library's classifiers keep their parameters as `{"body": ..., "head": ...}`, so that
    `subset(meta, lambda meta: meta["head"])` adapts the head alone.

    Args:
        init: `key -> params`, a pytree of arrays in JAX's default float dtype (float64 under
            `jax_enable_x64`). Cast the tree for another precision: `apply` follows its parameters.
        apply: `(params, inputs, key, mask) -> outputs`, `(rows, ...) -> (rows, ...)`. `key` feeds
            models that draw at random; the others take None. `mask` is `(rows,)`, False where a row
            is padding, or None if every row counts. Padding never affects the output of another
            row, not even if it holds NaN; the outputs of padded rows have no meaning.
        normalisation: The name of the normalisation policy (`"none"` if there is none). The policy
            decides whether predictions depend on the other rows of a batch, and so what a test
            accuracy means; the name is therefore written into every result.
        frozen: The arrays of the network that are not learned, of any dtype, in a tree that has
            None where `init` returns an array. `apply` and `learn` get the learned and the frozen
            arrays in one tree. None if all arrays are learned.
        state: The model state before training, such as batch statistics: any pytree of arrays. If
            the network has one, `apply` and `learn` get `Stateful(params, state)` as `params`. None
            if it has none.
        learn: `(params, inputs, key, mask) -> (outputs, state)`, the network in training on the
            support set, and the state after it. It may use `key`, for example for dropout. None if
            training uses `apply`.
    """

    init: Callable[[PRNGKeyArray], PyTree[Array]]
    apply: Callable[
        [PyTree[Array], ArrayLike, PRNGKeyArray | None, Bool[Array, " rows"] | None],
        Float[Array, "rows ..."],
    ]
    normalisation: str
    frozen: PyTree = None
    state: PyTree = None
    learn: Callable[..., tuple[Array, PyTree]] | None = None


MODEL = instance(
    *(Model,),
    what="a Model, which innerloop.adapters makes from another library's module or from functions",
    such_as="adapters.from_functions(init, apply)",
    cure_for=adapter_call,
)
"""The kind of an argument that is a model."""


def model_inputs(
    inputs: ArrayLike, dtype: DTypeLike, mask: Array | None
) -> Float[Array, "rows ..."]:
    """Inputs in the parameters' dtype, padded rows replaced by zeros.

    The parameters decide the precision. Padding is replaced here because a weight's gradient
    multiplies activations by zeros otherwise: 0 · NaN is NaN.

    Raises:
        StructureError: If the inputs are integers. They may be pixels, which are to be scaled to
            [0, 1], measurements or classes, and a network cannot know which.
    """
    if not eqx.is_array_like(inputs):
        raise StructureError(
            "the inputs of a network must be one array",
            got=describe(inputs),
            expected="an array with one row for each example",
        )
    numbers = jnp.asarray(inputs)
    if jnp.issubdtype(numbers.dtype, jnp.integer):
        refuse_whole_numbers(numbers)
    return blank_rows(numbers.astype(dtype), mask)


def require_state(params: PyTree) -> None:
    """Raise `StructureError` if the parameters of a network with a model state come without it."""
    if not isinstance(params, Stateful):
        raise StructureError(
            "the network has a model state, and the parameters come without one",
            got=describe_briefly(params),
            expected="Stateful(params, state): what adapt returns, as a whole; or for parameters "
            "from elsewhere, Stateful(params, model.state)",
        )


def refuse_whole_numbers(numbers: Array) -> None:
    """Raise `StructureError` for inputs that may be pixels."""
    raise StructureError(
        "the network's inputs are whole numbers, which may be pixels, measurements or classes",
        got=describe(numbers),
        expected="real numbers, in the range that they had in training; the library's image "
        "tasks give pixels as inputs.astype(float) / 255",
    )
