"""Reptile: move the initialisation towards what each task makes of it."""

import optax

from innerloop.adaptation import GradientDescent, MiniBatches
from innerloop.gradients import Reptile
from innerloop.learner import Learner
from innerloop.models import Model
from innerloop.recipes._maml import maml
from innerloop.recipes.base import ExamplesLoss, Recipe


def reptile(
    model: Model,
    loss: ExamplesLoss,
    rate: float = 1e-3,
    steps: int = 5,
    rows: int | None = None,
    test_steps: int = 50,
) -> Recipe:
    r"""Reptile (Nichol, Achiam and Schulman 2018, arXiv 1803.02999).

    $$\phi \leftarrow \phi + \epsilon \, \mathbb{E}\,(\theta_K - \phi), \qquad \theta_0 = \phi$$

    with K steps of Adam without momentum (β₁ = 0) at the rate α, each on `rows` rows of the support
    set, or on all of it. New tasks are learned by `test_steps` steps on the whole support set. The
    defaults are those of the paper's Omniglot, which trains with 10 rows on 10 shots. The query set
    affects the value only. The paper's outer step is `optax.sgd` with ε falling linearly from 1
    to 0.

    Reptile learns more than a start that fits the support set quickly only because the gradients of
    a task are those of different rows. With one shot in training there is almost nothing of this:
    train with more shots than at test.

    Departs from the paper: Adam's state starts anew with each task.

    Args:
        model: The network.
        loss: The loss of the predictions.
        rate: α, the inner learning rate.
        steps: K, the number of inner steps.
        rows: Rows of the support set that each step sees; None for all.
        test_steps: The number of steps on a new task.
    """
    adam = optax.adam(rate, b1=0)
    learn = GradientDescent(adam, steps)
    recipe = maml(model, loss)
    return recipe._replace(
        adaptation=learn if rows is None else MiniBatches(learn, rows),
        gradient=Reptile(),
        tested=Learner(recipe.problem, GradientDescent(adam, test_steps), recipe.predict),
    )
