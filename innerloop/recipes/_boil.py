"""BOIL: only the body is adapted, and the head does not change."""

from innerloop.models import Model
from innerloop.recipes._anil import partly_adapted
from innerloop.recipes.base import ExamplesLoss, Recipe


def boil(model: Model, loss: ExamplesLoss, rate: float = 0.5, steps: int = 1) -> Recipe:
    r"""BOIL (Oh, Yoo, Kim and Yun 2021, arXiv 2008.08882): MAML of the body only.

    $$\min_{\phi} \; \mathbb{E}\, L_\text{query}(\theta_K, \phi_\text{head}), \qquad
      \theta_0 = \phi_\text{body}, \quad
      \theta_{t+1} = \theta_t - \alpha \nabla_\theta L_\text{support}(\theta_t, \phi_\text{head})$$

    so the representation has to change, whereas `anil` reuses it. Body and head are meta-learned.

    Args:
        model: The network, with parameters `{"body", "head"}`.
        loss: The loss of the predictions.
        rate: α, the inner learning rate.
        steps: K, the number of inner steps.
    """
    return partly_adapted(model, loss, lambda params: params["body"], rate, steps)
