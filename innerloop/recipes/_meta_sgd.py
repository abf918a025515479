"""Meta-SGD: learn an initialisation and one rate for each of its numbers."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import GradientDescent
from innerloop.models import ExamplesLoss, Model
from innerloop.optimizers import scale_by_rates
from innerloop.recipes.base import Recipe, learned_start, model_predictions


def meta_sgd(model: Model, loss: ExamplesLoss, rate: float = 0.05, steps: int = 1) -> Recipe:
    r"""Meta-SGD (Li, Zhou, Chen and Li 2017, arXiv 1707.09835).

    $$\theta_{t+1} = \theta_t - \alpha \odot \nabla L_\text{support}(\theta_t), \qquad
      \theta_0 = \phi$$

    φ and α, which has the shape of φ, are both meta-learned: `{"start", "rates"}`. Rates may become
    negative.

    Departs from the paper: all rates start from one value, and not from random ones in
    [0.005, 0.1]; the default is about the middle of that range.

    Args:
        model: The network.
        loss: The loss of the predictions.
        rate: The initial value of all rates α.
        steps: K, the number of inner steps.
    """

    def init_meta(key: PRNGKeyArray) -> PyTree:
        start = model.init(key)
        return {"start": start, "rates": jax.tree.map(lambda x: jnp.full_like(x, rate), start)}

    learn = GradientDescent(lambda meta: scale_by_rates(meta["rates"]), steps)
    start = lambda meta, support, key: meta["start"]
    return learned_start(start, learn, init_meta, model_predictions(model), loss)
