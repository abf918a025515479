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
    set, or on all of it. `rate` is α, `steps` is K. New tasks are learned by `test_steps` steps on
    the whole support set. The defaults are those of the paper's Omniglot, which trains with 10 rows
    on 10 shots; the query set gives the value alone. The paper's outer step is `optax.sgd` with ε
    falling linearly from 1 to 0.

    What is learned beyond a start from which the support set is soon fitted comes from gradients of
    different rows of a task. With one shot in training there is next to nothing of it: train on
    more shots than are tested.

    Departs from the paper: Adam's state begins anew with each task.
    """
    adam = optax.adam(rate, b1=0)
    learn = GradientDescent(adam, steps)
    recipe = maml(model, loss)
    return recipe._replace(
        adaptation=learn if rows is None else MiniBatches(learn, rows),
        gradient=Reptile(),
        tested=Learner(recipe.problem, GradientDescent(adam, test_steps), recipe.predict),
    )
