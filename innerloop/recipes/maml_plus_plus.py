"""MAML++: a rate for each layer and step, and a loss after each step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import GradientDescent
from innerloop.checks import check_count
from innerloop.gradients import Unroll
from innerloop.models import ExamplesLoss, Model, supervised_loss
from innerloop.optimizers import scale_by_scheduled_rates
from innerloop.problem import Problem
from innerloop.recipes.base import Recipe, model_predictions


def after_each_step(steps: int) -> np.ndarray:
    """Weights of the outer losses after 0 ... K steps: none before the first, equal after it."""
    weights = np.full(steps + 1, 1 / max(steps, 1))
    weights[0] = 0 if steps else 1
    return weights


def maml_plus_plus(
    model: Model,
    loss: ExamplesLoss,
    rate: float = 0.1,
    steps: int = 5,
    step_weights: Callable[[int], Any] | None = after_each_step,
) -> Recipe:
    r"""MAML++ (Antoniou, Edwards and Storkey 2019, arXiv 1810.09502).

    $$\min_{\phi, \alpha} \; \mathbb{E} \sum_t w_t L_\text{query}(\theta_t), \qquad
      \theta_{t+1}^l = \theta_t^l - \alpha_t^l \nabla_l L_\text{support}(\theta_t), \quad
      \theta_0 = \phi$$

    The rates $\alpha_t^l$, one for each step and each array of the parameters, are meta-learned
    with φ: `{"start", "rates"}`. Steps beyond K take the rates of the last. `rate` is the value
    that all begin with, `steps` is K, `step_weights` gives w.

    Departs from the paper: w does not move to the last step during training, derivatives are of
    second order from the beginning, and there are no batch statistics or biases of each step (the
    normalisation is the model's policy). The first two are changes of phase, which successive calls
    of `fit` can make:

    ```python
    first = fit(recipe._replace(gradient=FirstOrder()), ...)
    last = maml_plus_plus(..., step_weights=None)._replace(init_meta=lambda key: first.meta)
    fit(last, ...)
    ```

    though the outer optimizer's state begins anew with each. The paper's cosine schedule belongs to
    the outer optimizer.
    """
    check_count("steps", steps, write="maml_plus_plus(model, loss, rate=0.1, steps=5)")
    task_loss = supervised_loss(model, loss)
    problem = Problem(lambda meta, support, key: meta["start"], task_loss, task_loss, step_weights)

    def init_meta(key: PRNGKeyArray) -> PyTree:
        start = model.init(key)
        rates = jax.tree.map(lambda leaf: jnp.full(steps, rate, leaf.dtype), start)
        return {"start": start, "rates": rates}

    learn = GradientDescent(lambda meta: _of_each_step(meta["rates"]), steps)
    return Recipe(problem, learn, Unroll(), init_meta, model_predictions(model))


def _of_each_step(rates: PyTree) -> optax.GradientTransformation:
    """The step's own rate for each array; the last one after the last step."""
    at = lambda step: jax.tree.map(lambda rate: rate[jnp.minimum(step, len(rate) - 1)], rates)
    return scale_by_scheduled_rates(at)
