"""Recipes that compare queries with support rows or class means, in learned features or none."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from innerloop.adaptation import Procedure
from innerloop.arguments import at_least, checked
from innerloop.heads import Prototypes
from innerloop.heads.base import Features, embedded, members
from innerloop.models import Model
from innerloop.precision import default_float
from innerloop.recipes.base import (
    ExamplesLoss,
    Recipe,
    frozen_parts,
    learned_head,
    model_features,
)


def protonet(features: Model, loss: ExamplesLoss, ways: int) -> Recipe:
    r"""Prototypical networks (Snell, Swersky and Zemel 2017, arXiv 1703.05175).

    $$\log p(k \mid x) = \log \text{softmax}_k\big(-\|f_\phi(x) - c_k\|^2\big), \qquad
      c_k = \text{mean of } f_\phi \text{ over the support rows of class } k$$

    φ, the parameters of `features`, is meta-learned. The logits of a class without support rows are
    -∞. The paper trains with more classes per task than at test, which is a choice of the tasks.

    Departs from the paper: if `features` normalises by the batch, support and query are two
    batches, and not one.

    Args:
        features: The network f, `(rows, ...) -> (rows, width)`.
        loss: The loss of the predictions.
        ways: The number of classes of a task.
    """
    embed = model_features(features, lambda meta: meta)

    def predict(params, meta, batch, key):
        distances = _squared_distances(embed(meta, batch, key), params.means)
        return jnp.where(params.counts[None, :] == 0, -jnp.inf, -distances)

    return learned_head(Prototypes(embed, ways), features.init, predict, loss, features.frozen)


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
        cosines = _unit(embed(meta, batch, key)) @ _unit(params.features).T
        similar = jnp.exp(meta["log_scale"]).astype(cosines.dtype) * cosines
        attention = jax.nn.softmax(jnp.where(params.present[None, :], similar, -jnp.inf), axis=1)
        share = attention @ params.classes
        # A class without support rows has no share; the logarithm stays finite.
        return jnp.log(jnp.maximum(share, jnp.finfo(share.dtype).tiny))

    frozen = frozen_parts(init_meta, features=features)
    return learned_head(_remembered(embed, ways), init_meta, predict, loss, frozen)


def nearest_neighbour(loss: ExamplesLoss, ways: int) -> Recipe:
    r"""One nearest neighbour on the inputs themselves (the pixels; Vinyals et al. 2016, table 1).

    $$\log p(k \mid x) = \log \text{softmax}_k\big(-e^\tau \min_{i : y_i = k} \|x - x_i\|^2\big)$$

    τ, which is meta-learned and starts from 0, turns the distances (means over the entries) into
    probabilities. The predicted class, and so the accuracy, does not depend on τ. The logits of a
    class without support rows are -∞.

    Args:
        loss: The loss of the predictions.
        ways: The number of classes of a task.
    """

    def flat(meta, batch, key):
        x = jnp.asarray(batch.inputs)
        return x.reshape(x.shape[0], -1).astype(meta["sharpness"].dtype)

    def predict(params, meta, batch, key):
        width = params.features.shape[1]
        distances = _squared_distances(flat(meta, batch, key), params.features) / width
        members = params.classes[None, :, :]  # an invalid label makes these and the result NaN
        of_class = members != 0
        nearest = jnp.min(jnp.where(of_class, members * distances[:, :, None], jnp.inf), axis=1)
        found = jnp.any(of_class, axis=1)
        # Nothing infinite may meet the sharpness, whose derivative would be 0 times it.
        scores = -jnp.exp(meta["sharpness"]) * jnp.where(found, nearest, 0)
        return jnp.where(found, scores, -jnp.inf)

    init_meta = lambda key: {"sharpness": jnp.zeros((), default_float())}
    return learned_head(_remembered(flat, ways), init_meta, predict, loss)


class Memory(NamedTuple):
    """The rows of a support set: `(rows, width)`, `(rows, ways)`, and whether each counts."""

    features: Float[Array, "rows width"]
    classes: Float[Array, "rows ways"]
    present: Bool[Array, " rows"]


@checked("matching", ways=at_least(2, such_as=5))
def _remembered(features: Features, ways: int) -> Procedure:
    """The adaptation that stores the features and classes of the support set."""

    def fn(meta, support, key) -> Memory:
        x, dtype = embedded(features, meta, support, key)
        found = members(support, ways, dtype)
        return Memory(x.astype(dtype), found.marked, found.labels.counts)

    return Procedure(fn)


def _squared_distances(
    x: Float[Array, "rows width"], y: Float[Array, "others width"]
) -> Float[Array, "rows others"]:
    """Squared Euclidean distances. By differences: expanded squares cancel in narrow dtypes."""
    return jnp.sum(jnp.square(x[:, None, :] - y[None, :, :]), axis=2)


def _unit(x: Float[Array, "rows width"]) -> Float[Array, "rows width"]:
    """Each row divided by its length; zeros, with a zero derivative, where it is zero."""
    square = jnp.sum(jnp.square(x), axis=1, keepdims=True)
    # The root is not taken at zero, where its derivative is infinite.
    safe = jnp.where(square > 0, square, 1)
    return jnp.where(square > 0, x / jnp.sqrt(safe), jnp.zeros((), x.dtype))
