"""Reptile: move the initialisation towards what each task makes of it."""

import optax

from innerloop.adaptation import GradientDescent
from innerloop.gradients import Reptile
from innerloop.models import Model
from innerloop.recipes.base import ExamplesLoss, Recipe
from innerloop.recipes.maml import maml


def reptile(model: Model, loss: ExamplesLoss, rate: float = 1e-3, steps: int = 5) -> Recipe:
    r"""Reptile (Nichol, Achiam and Schulman 2018, arXiv 1803.02999).

    $$\phi \leftarrow \phi + \epsilon \, \mathbb{E}\,(\theta_K - \phi), \qquad \theta_0 = \phi$$

    with K steps of Adam without momentum (β₁ = 0) at the rate α on the support set. `rate` is α,
    `steps` is K; the defaults are those of the paper's Omniglot. The query set gives the value
    alone. The paper's outer step is `optax.sgd` with ε falling linearly from 1 to 0.

    Departs from the paper: every inner step sees the whole support set, and not a mini-batch of it
    (wrap the adaptation in `MiniBatches` for those); Adam's state begins anew with each task; and
    the paper trains on more shots than it is tested with, which is a choice of the tasks.
    """
    learn = GradientDescent(optax.adam(rate, b1=0), steps)
    return maml(model, loss)._replace(adaptation=learn, gradient=Reptile())
