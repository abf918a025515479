"""Conditional neural processes: one vector represents the support set of a task."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.adaptation import Procedure
from innerloop.heads.base import embedded, members
from innerloop.masks import blank_rows, masked_mean
from innerloop.models import Model
from innerloop.models.supervised import stateless
from innerloop.recipes.base import (
    ExamplesLoss,
    Recipe,
    frozen_parts,
    learned_head,
    model_features,
)


def cnp(
    features: Model, encoder: Model, decoder: Model, loss: ExamplesLoss, ways: int | None = None
) -> Recipe:
    r"""Conditional neural processes (Garnelo et al. 2018, arXiv 1807.01613).

    $$\text{prediction}(x) = g\big(f(x), r\big), \qquad r = \frac1n \sum_i h\big(f(x_i), y_i\big)$$

    For classes, r holds one vector for each class, one after the other:
    $r = (r_1, \dots, r_k)$, $r_k$ the mean of $h(f(x_i))$ over the rows of class k. The parameters
    of f, h and g are meta-learned: `{"features", "encoder", "decoder"}`; there is no inner descent.

    Departs from the paper: the loss is the one given (such as `mean_squared_error`), where the
    paper predicts mean and variance of a Gaussian; the features f are shared by h and g.

    Args:
        features: The network f, `(rows, ...) -> (rows, width)`.
        encoder: The network h. Its inputs are `width` features and, in regression, the targets.
        decoder: The network g, from `width` features and the entries of r to predictions.
        loss: The loss of the predictions.
        ways: The number of classes; None for regression to real targets `(rows, outputs)`.
    """
    embed = model_features(features, lambda meta: meta["features"])

    def represent(meta: PyTree, support, key: PRNGKeyArray) -> Array:
        x, dtype = embedded(embed, meta, support, key)
        x = x.astype(dtype)
        if ways is None:
            y = blank_rows(jnp.asarray(support.targets).astype(dtype), support.mask)
            rows = encoder.apply(meta["encoder"], jnp.concatenate([x, y], 1), key, support.mask)
            return masked_mean(rows, support.mask, axis=(0,))
        vectors = members(support, ways, dtype).marked
        rows = blank_rows(encoder.apply(meta["encoder"], x, key, support.mask), support.mask)
        return jnp.ravel(vectors.T @ rows / jnp.maximum(jnp.sum(vectors, axis=0), 1)[:, None])

    def predict(params, meta, batch, key):
        x = embed(meta, batch, key)
        known = jnp.broadcast_to(params[None, :], (x.shape[0], params.shape[0]))
        return decoder.apply(meta["decoder"], jnp.concatenate([x, known], 1), key, batch.mask)

    models = {"features": features, "encoder": encoder, "decoder": decoder}
    for model in models.values():
        stateless(model, "cnp")

    def init_meta(key: PRNGKeyArray) -> PyTree:
        keys = jax.random.split(key, len(models))
        return {name: model.init(k) for (name, model), k in zip(models.items(), keys, strict=True)}

    frozen = frozen_parts(init_meta, **models)
    return learned_head(Procedure(represent), init_meta, predict, loss, frozen)
