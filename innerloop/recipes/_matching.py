"""Matching networks: a query takes the classes of the support rows that it resembles."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.models import Model
from innerloop.precision import default_float
from innerloop.recipes.base import ExamplesLoss, Recipe, learned_head, model_features
from innerloop.recipes.memory import cosine_similarities, remembered


def matching(features: Model, loss: ExamplesLoss, ways: int, scale: float = 10.0) -> Recipe:
    r"""Matching networks (Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra 2016).

    $$p(k \mid x) = \sum_{i : y_i = k} a_i(x), \qquad
      a(x) = \text{softmax}_i\big(e^\tau \cos(f_\phi(x), f_\phi(x_i))\big)$$

    (arXiv 1606.04080). φ, the parameters of `features`, and τ are meta-learned: `{"features",
    "log_scale"}`. Predictions are $\log p$.

    Departs from the paper: there are no full context embeddings (the recurrent networks by which
    the support set changes the features), support and query share one network, and the scale is
    learned. The paper's scale is 1: with it, features that are not negative, whose cosines lie
    between 0 and 1, give no class of five a probability above 0.4.

    Args:
        features: The network f, `(rows, ...) -> (rows, width)`.
        loss: The loss of the predictions.
        ways: The number of classes of a task.
        scale: The initial value of $e^\tau$.
    """
    embed = model_features(features, lambda meta: meta["features"])

    def init_meta(key: PRNGKeyArray) -> PyTree:
        log_scale = jnp.asarray(np.log(scale), default_float())
        return {"features": features.init(key), "log_scale": log_scale}

    def predict(params, meta, batch, key):
        cosines = cosine_similarities(embed(meta, batch, key), params.features)
        similar = jnp.exp(meta["log_scale"]).astype(cosines.dtype) * cosines
        attention = jax.nn.softmax(jnp.where(params.present[None, :], similar, -jnp.inf), axis=1)
        share = attention @ params.classes
        # A class without support rows has no share; the logarithm stays finite.
        return jnp.log(jnp.maximum(share, jnp.finfo(share.dtype).tiny))

    return learned_head(remembered(embed, ways), init_meta, predict, loss)
