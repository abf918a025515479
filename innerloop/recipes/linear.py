"""What the recipes with a linear head share: learned features, strength, scale and offset."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation import Adaptation
from innerloop.heads.base import Features
from innerloop.models import Model
from innerloop.precision import default_float
from innerloop.recipes.base import ExamplesLoss, Recipe, learned_head, model_features


def with_linear_head(
    features: Model,
    loss: ExamplesLoss,
    head: Callable[[Features, Callable[[PyTree], Scalar]], Adaptation],
    strength: float,
    scale: float,
) -> Recipe:
    r"""Predictions $e^a\, f_\phi(x)\, W + b$, with W by `head(features, strength)`.

    Meta-parameters: `{"features", "log_strength", "log_scale", "offset"}`, the logarithm of the
    regularisation, a and b, both scalars.
    """
    embed = model_features(features, lambda meta: meta["features"])

    def predict(params, meta, batch, key):
        scores = embed(meta, batch, key) @ params
        return jnp.exp(meta["log_scale"]) * scores + meta["offset"]

    def init_meta(key: PRNGKeyArray) -> PyTree:
        dtype = default_float()
        return {
            "features": features.init(key),
            "log_strength": jnp.asarray(np.log(strength), dtype),
            "log_scale": jnp.asarray(np.log(scale), dtype),
            "offset": jnp.zeros((), dtype),
        }

    learned = lambda meta: jnp.exp(meta["log_strength"])
    return learned_head(head(embed, learned), init_meta, predict, loss)
