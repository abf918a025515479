"""The multilayer perceptron."""

import itertools
from collections.abc import Callable, Sequence

import jax
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from innerloop.arguments import at_least, checked, each, random_key
from innerloop.checks import describe
from innerloop.errors import StructureError
from innerloop.models.base import Model, model_inputs
from innerloop.models.layers import GLOROT, dense, dense_init

SIZES = each(at_least(1, such_as=40), least=2)


@checked(sizes=SIZES)
def mlp(
    sizes: Sequence[int],
    activation: Callable[[Array], Array] = jax.nn.relu,
    weights: Initializer = GLOROT,
) -> Model:
    """Dense layers with an activation between them: `(rows, ...) -> (rows, sizes[-1])`.

    `mlp([1, 40, 40, 1])` is the network of MAML's sinusoid regression (Finn et al. 2017).

    Parameters: `{"body": [{"weights", "bias"}, ...], "head": {"weights", "bias"}}`.
    Normalisation: none.

    Args:
        sizes: Widths from inputs to outputs, at least two. Inputs with more axes, such as images,
            are flattened row by row.
        activation: The elementwise function after every layer but the last.
        weights: Initialises all weights; biases start at zero. MAML's authors use
            `jax.nn.initializers.truncated_normal(0.01)`.

    Raises:
        StructureError: If `sizes` are not at least two positive integers, and while tracing if the
            rows of the inputs do not have `sizes[0]` entries.
    """
    widths = tuple(sizes)

    @checked("init", key=random_key())
    def init(key: PRNGKeyArray) -> PyTree[Array]:
        layers = _layers(key, widths, weights)
        return {"body": layers[:-1], "head": layers[-1]}

    def apply(params, inputs, key, mask) -> Float[Array, "rows outputs"]:
        x = _flat_rows(model_inputs(inputs, params["head"]["weights"].dtype, mask), widths)
        for layer in params["body"]:
            x = activation(dense(layer, x))
        return dense(params["head"], x)

    return Model(init, apply, normalisation="none")


@checked(sizes=SIZES)
def mlp_features(
    sizes: Sequence[int],
    activation: Callable[[Array], Array] = jax.nn.relu,
    weights: Initializer = GLOROT,
) -> Model:
    """The hidden layers of `mlp`, an activation after each: `(rows, ...) -> (rows, sizes[-1])`.

    `linear_head(mlp_features(sizes), sizes[-1], outputs)` is `mlp([*sizes, outputs])` with its
    parameters in the same places, drawn from other keys.

    Parameters: a list of `{"weights", "bias"}`. Normalisation: none.

    Args:
        sizes: Widths from inputs to features, at least two.
        activation: See `mlp`.
        weights: See `mlp`.

    Raises:
        StructureError: See `mlp`.
    """
    widths = tuple(sizes)

    def apply(params, inputs, key, mask) -> Float[Array, "rows width"]:
        x = _flat_rows(model_inputs(inputs, params[0]["weights"].dtype, mask), widths)
        for layer in params:
            x = activation(dense(layer, x))
        return x

    return Model(lambda key: _layers(key, widths, weights), apply, normalisation="none")


def _layers(key: PRNGKeyArray, widths: tuple[int, ...], weights: Initializer) -> list:
    keys = jax.random.split(key, len(widths) - 1)
    return [
        dense_init(layer_key, inputs, outputs, weights)
        for layer_key, (inputs, outputs) in zip(keys, itertools.pairwise(widths), strict=True)
    ]


def _flat_rows(x: Float[Array, "..."], widths: tuple[int, ...]) -> Float[Array, "rows width"]:
    entries = x[:1].size if x.ndim > 1 and x.shape[0] else 0
    if x.ndim < 2 or (x.shape[0] and entries != widths[0]):
        raise StructureError(
            "the inputs do not fit the mlp's first layer",
            got=describe(x),
            expected=f"shape (rows, ...) with {widths[0]} entries per row",
        )
    return x.reshape(x.shape[0], widths[0])
