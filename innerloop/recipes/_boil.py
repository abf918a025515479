"""BOIL: the body alone is adapted, and the head stays."""

from innerloop.models import Model
from innerloop.recipes._anil import partly_adapted
from innerloop.recipes.base import ExamplesLoss, Recipe


def boil(model: Model, loss: ExamplesLoss, rate: float = 0.5, steps: int = 1) -> Recipe:
    r"""BOIL (Oh, Yoo, Kim and Yun 2021, arXiv 2008.08882): MAML of the body alone.

    $$\min_{\phi} \; \mathbb{E}\, L_\text{query}(\theta_K, \phi_\text{head}), \qquad
      \theta_0 = \phi_\text{body}, \quad
      \theta_{t+1} = \theta_t - \alpha \nabla_\theta L_\text{support}(\theta_t, \phi_\text{head})$$

    so that the representation has to change, where `anil` reuses it. `model` keeps its parameters
    as `{"body", "head"}`; both are meta-learned. `rate` is α, `steps` is K.
    """
    return partly_adapted(model, loss, lambda params: params["body"], rate, steps)
