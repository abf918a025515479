"""The baseline that learns no features: the class of the nearest support row."""

import jax.numpy as jnp

from innerloop.precision import default_float
from innerloop.recipes.base import ExamplesLoss, Recipe, learned_head
from innerloop.recipes.memory import remembered, squared_distances


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
        distances = squared_distances(flat(meta, batch, key), params.features) / width
        of_class = params.classes[None, :, :] > 0
        nearest = jnp.min(jnp.where(of_class, distances[:, :, None], jnp.inf), axis=1)
        found = jnp.any(of_class, axis=1)
        # Nothing infinite may meet the sharpness, whose derivative would be 0 times it.
        scores = -jnp.exp(meta["sharpness"]) * jnp.where(found, nearest, 0)
        return jnp.where(found, scores, -jnp.inf)

    init_meta = lambda key: {"sharpness": jnp.zeros((), default_float())}
    return learned_head(remembered(flat, ways), init_meta, predict, loss)
