"""MAML++: a rate for each layer and step, and a loss after each step that fades out."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from innerloop.adaptation import GradientDescent
from innerloop.arguments import at_least, checked
from innerloop.estimators import Estimator, Phases, WholeTasks
from innerloop.gradients import FirstOrder
from innerloop.models import ExamplesLoss, Model
from innerloop.optimizers import scale_by_scheduled_rates
from innerloop.problem import Problem
from innerloop.recipes.base import Recipe, learned_start, model_predictions


def annealed_weights(
    steps: int, outer_step: Int[Array, ""], over: int
) -> Float[Array, " steps_plus_one"]:
    """Weights of the outer losses after 0 ... K steps: equal from the first on, then the last's 1.

    They change linearly with the outer step and have arrived at the step `over`.
    """
    early = jnp.maximum(0, 1 - outer_step / max(over, 1)) / steps
    return jnp.full(steps + 1, early).at[0].set(0).at[-1].set(1 - (steps - 1) * early)


@checked(steps=at_least(1, such_as=5), annealed_over=at_least(0), first_order_until=at_least(0))
def maml_plus_plus(
    model: Model,
    loss: ExamplesLoss,
    rate: float = 0.1,
    steps: int = 5,
    annealed_over: int = 5000,
    first_order_until: int = 0,
) -> Recipe:
    r"""MAML++ (Antoniou, Edwards and Storkey 2019, arXiv 1810.09502).

    $$\min_{\phi, \alpha} \; \mathbb{E} \sum_t w_t L_\text{query}(\theta_t), \qquad
      \theta_{t+1}^l = \theta_t^l - \alpha_t^l \nabla_l L_\text{support}(\theta_t), \quad
      \theta_0 = \phi$$

    The rates $\alpha_t^l$, one for each step and each array of the parameters, are meta-learned
    with φ: `{"start", "rates"}`. Steps beyond K use the rates of the last step.

    Departs from the paper: there are no batch statistics or biases of each step (the normalisation
    is the model's policy). The paper's cosine schedule belongs to the outer optimizer.

    Args:
        model: The network.
        loss: The loss of the predictions.
        rate: The initial value of all inner rates.
        steps: K, the number of inner steps.
        annealed_over: Outer steps in which the weights $w_1 \dots w_K$ move from equal ones to the
            last alone (multi-step loss); 0 for the last alone. The authors' Omniglot has 5,000 of
            50,000.
        first_order_until: Outer steps at the beginning that hold inner gradients constant
            (derivative-order annealing). The authors' Omniglot has none.
    """
    learn = GradientDescent(lambda meta: _of_each_step(meta["rates"]), steps)

    def init_meta(key: PRNGKeyArray) -> PyTree:
        start = model.init(key)
        rates = jax.tree.map(lambda leaf: jnp.full(steps, rate, leaf.dtype), start)
        return {"start": start, "rates": rates}

    start = lambda meta, support, key: meta["start"]
    recipe = learned_start(start, learn, init_meta, model_predictions(model), loss)

    def schedule(outer_step: Int[Array, ""]) -> tuple[Problem, GradientDescent]:
        weights: Any = lambda steps: annealed_weights(steps, outer_step, annealed_over)
        return dataclasses.replace(recipe.problem, step_weights=weights), learn

    def first_order_first(whole: WholeTasks) -> Estimator:
        first = dataclasses.replace(whole, gradient=FirstOrder())
        return Phases(first, whole, until=first_order_until)

    recipe = recipe._replace(schedule=schedule) if annealed_over else recipe
    return recipe._replace(follow=first_order_first) if first_order_until else recipe


def _of_each_step(rates: PyTree) -> optax.GradientTransformation:
    """The step's own rate for each array; the last one after the last step."""
    at = lambda step: jax.tree.map(lambda rate: rate[jnp.minimum(step, len(rate) - 1)], rates)
    return scale_by_scheduled_rates(at)
