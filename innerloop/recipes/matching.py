"""Matching networks: a query takes the classes of the support rows that it resembles."""

import jax
import jax.numpy as jnp

from innerloop.gradients import Unroll
from innerloop.models import Model
from innerloop.recipes.base import ExamplesLoss, Recipe, learned_head, model_features
from innerloop.recipes.memory import remembered
from innerloop.recipes.similarity import cosine_similarities


def matching(features: Model, loss: ExamplesLoss, ways: int) -> Recipe:
    r"""Matching networks (Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra 2016).

    $$p(k \mid x) = \sum_{i : y_i = k} a_i(x), \qquad
      a(x) = \text{softmax}_i\big(\cos(f_\phi(x), f_\phi(x_i))\big)$$

    (arXiv 1606.04080). φ, the parameters of `features`, is meta-learned. Predictions are
    $\log p$.

    Departs from the paper: no full context embeddings (the recurrent networks by which the support
    set changes the features); one network for support and query.
    """
    embed = model_features(features, lambda meta: meta)

    def predict(params, meta, batch, key):
        similar = cosine_similarities(embed(meta, batch, key), params.features)
        attention = jax.nn.softmax(jnp.where(params.present[None, :], similar, -jnp.inf), axis=1)
        share = attention @ params.classes
        # A class without support rows has no share; the logarithm stays finite.
        return jnp.log(jnp.maximum(share, jnp.finfo(share.dtype).tiny))

    return learned_head(remembered(embed, ways), features.init, predict, loss, Unroll())
