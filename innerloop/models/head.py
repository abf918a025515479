"""A linear read-out on top of any features."""

import jax
from jax.nn.initializers import Initializer
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from innerloop.arguments import at_least, checked
from innerloop.models.base import Model
from innerloop.models.layers import GLOROT, dense, dense_init


@checked(width=at_least(1, such_as=64), outputs=at_least(1, such_as=5))
def linear_head(features: Model, width: int, outputs: int, weights: Initializer = GLOROT) -> Model:
    """`features` followed by a dense layer: `(rows, ...) -> (rows, outputs)`.

    Parameters: `{"body": those of features, "head": {"weights", "bias"}}`.
    Normalisation: that of `features`.

    Args:
        features: A model whose outputs are `(rows, width)`.
        width: The number of features.
        outputs: The number of classes, or of regressed values.
        weights: Initialises the head's weights; biases start at zero. MAML's authors use
            `jax.nn.initializers.normal(1.0)` on Omniglot.

    Raises:
        StructureError: If a size is not a positive integer, and while tracing if the features
            are not `(rows, width)`.
    """

    def init(key: PRNGKeyArray) -> PyTree[Array]:
        body_key, head_key = jax.random.split(key)
        return {
            "body": features.init(body_key),
            "head": dense_init(head_key, width, outputs, weights),
        }

    def apply(
        params: PyTree[Array], inputs: ArrayLike, key: PRNGKeyArray | None, mask: Array | None
    ) -> Float[Array, "rows outputs"]:
        return dense(params["head"], features.apply(params["body"], inputs, key, mask))

    return Model(init, apply, features.normalisation)
