"""Prototypical networks: learn features in which the nearest class mean is right."""

import jax.numpy as jnp

from innerloop.heads import Prototypes
from innerloop.models import Model
from innerloop.recipes.base import ExamplesLoss, Recipe, learned_head, model_features
from innerloop.recipes.memory import squared_distances


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
        distances = squared_distances(embed(meta, batch, key), params.means)
        return jnp.where(params.counts[None, :] > 0, -distances, -jnp.inf)

    return learned_head(Prototypes(embed, ways), features.init, predict, loss)
