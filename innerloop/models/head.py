"""Heads on top of any features: a linear read-out, and one whose features a context scales."""

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from innerloop.arguments import at_least, checked, random_key
from innerloop.errors import StructureError
from innerloop.models.base import Model
from innerloop.models.layers import GLOROT, dense, dense_init
from innerloop.precision import default_float
from innerloop.problem import parameters, state_of, with_state


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

    @checked("init", key=random_key())
    def init(key: PRNGKeyArray) -> PyTree[Array]:
        body_key, head_key = jax.random.split(key)
        head = dense_init(head_key, width, outputs, weights)
        return {"body": features.init(body_key), "head": head}

    def apply(params, inputs, key, mask) -> Float[Array, "rows outputs"]:
        adapted, state = parameters(params), state_of(params)
        body = with_state(adapted["body"], state)
        return dense(adapted["head"], features.apply(body, inputs, key, mask))

    def learn(params, inputs, key, mask) -> tuple[Float[Array, "rows outputs"], PyTree]:
        assert features.learn is not None
        adapted, state = parameters(params), state_of(params)
        x, state = features.learn(with_state(adapted["body"], state), inputs, key, mask)
        return dense(adapted["head"], x), state

    return Model(
        *(init, apply, features.normalisation),
        frozen=None if features.frozen is None else {"body": features.frozen, "head": None},
        state=features.state,
        learn=None if features.learn is None else learn,
    )


@checked(width=at_least(1, such_as=64), context=at_least(1, such_as=100))
def film(features: Model, width: int, head: Model, context: int = 100) -> Model:
    r"""`head` on features that a context scales and shifts (FiLM: Perez et al. 2018).

    $$\text{head}\big((1 + \gamma(c)) \odot f(x) + \beta(c)\big), \qquad
      (\gamma, \beta) = c\, W$$

    (arXiv 1709.07871). The context c is one vector for all rows. It starts at zero, so γ and β
    start at zero too.

    Parameters: `{"body": those of features, "film": {"weights": (context, 2 * width), "bias"},
    "head": those of head, "context": (context,)}`. Normalisation: that of `features`.

    Args:
        features: A model whose outputs are `(rows, width)`.
        width: The number of features.
        head: A model whose inputs are `(rows, width)`.
        context: The length of c.

    Raises:
        StructureError: If a size is not a positive integer.
    """
    parts = {"body": features, "head": head}
    if any(model.state is not None or model.learn is not None for model in parts.values()):
        raise StructureError(
            "film takes networks that are the same in training and prediction",
            got="a model with a state, or with learn",
            expected="models without batch statistics that are carried, and without dropout",
        )

    @checked("init", key=random_key())
    def init(key: PRNGKeyArray) -> PyTree[Array]:
        body_key, film_key, head_key = jax.random.split(key, 3)
        return {
            "body": features.init(body_key),
            "film": dense_init(film_key, context, 2 * width),
            "head": head.init(head_key),
            "context": jnp.zeros(context, default_float()),
        }

    def apply(params, inputs, key, mask) -> Float[Array, "rows ..."]:
        x = features.apply(params["body"], inputs, key, mask)
        scale, shift = jnp.split(dense(params["film"], params["context"][None, :]), 2, axis=1)
        return head.apply(params["head"], (1 + scale) * x + shift, key, mask)

    frozen = {name: model.frozen for name, model in parts.items()}
    frozen = None if not jax.tree.leaves(frozen) else frozen | {"film": None, "context": None}
    return Model(init, apply, features.normalisation, frozen=frozen)
