"""Model-agnostic meta-learning: learn an initialisation from which few steps suffice."""

from collections.abc import Callable
from typing import Any

import optax

from innerloop.adaptation import GradientDescent
from innerloop.gradients import FirstOrder
from innerloop.models import ExamplesLoss, Model
from innerloop.recipes.base import Recipe, learned_start, model_predictions


def maml(
    model: Model,
    loss: ExamplesLoss,
    rate: float = 0.01,
    steps: int = 1,
    step_weights: Callable[[int], Any] | None = None,
) -> Recipe:
    r"""MAML (Finn, Abbeel and Levine 2017, arXiv 1703.03400).

    $$\min_\phi \; \mathbb{E}\, L_\text{query}(\theta_K), \qquad \theta_0 = \phi, \quad
      \theta_{t+1} = \theta_t - \alpha \nabla L_\text{support}(\theta_t)$$

    with the exact, second-order meta-gradient. The default rate and number of steps are those of
    the paper's sinusoids; for its 5-way Omniglot they are 0.4 and 1.

    Args:
        model: The network.
        loss: The loss of the predictions.
        rate: α, the inner learning rate.
        steps: K, the number of inner steps.
        step_weights: Weights of the query losses after each step, as in `Problem`.
    """
    start = lambda meta, support, key: meta
    learn = GradientDescent(optax.sgd(rate), steps)
    return learned_start(start, learn, model.init, model_predictions(model), loss, step_weights)


def fomaml(
    model: Model,
    loss: ExamplesLoss,
    rate: float = 0.01,
    steps: int = 1,
    step_weights: Callable[[int], Any] | None = None,
) -> Recipe:
    """First-order MAML (Finn et al. 2017, section 5.2): every inner gradient is a constant.

    For the arguments, see `maml`.
    """
    return maml(model, loss, rate, steps, step_weights)._replace(gradient=FirstOrder())
