"""ANIL and BOIL: only the head is adapted, or only the body."""

from collections.abc import Callable

import optax
from jaxtyping import PyTree

from innerloop.adaptation import GradientDescent
from innerloop.models import Model
from innerloop.problem import subset
from innerloop.recipes.base import ExamplesLoss, Recipe, learned_start


def anil(model: Model, loss: ExamplesLoss, rate: float = 0.1, steps: int = 5) -> Recipe:
    r"""ANIL (Raghu, Raghu, Bengio and Vinyals 2020, arXiv 1909.09157): MAML of the head only.

    $$\min_{\phi} \; \mathbb{E}\, L_\text{query}(\theta_K, \phi_\text{body}), \qquad
      \theta_0 = \phi_\text{head}, \quad
      \theta_{t+1} = \theta_t - \alpha \nabla_\theta L_\text{support}(\theta_t, \phi_\text{body})$$

    Body and head are meta-learned. The defaults are those of MAML's 20-way Omniglot, whose settings
    the paper uses.

    Args:
        model: The network, with parameters `{"body", "head"}`.
        loss: The loss of the predictions.
        rate: α, the inner learning rate.
        steps: K, the number of inner steps.
    """
    return partly_adapted(model, loss, lambda params: params["head"], rate, steps)


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


def partly_adapted(
    model: Model, loss: ExamplesLoss, where: Callable[[PyTree], PyTree], rate: float, steps: int
) -> Recipe:
    """MAML in which only the part of the parameters that `where` selects is adapted."""

    def predict(params, meta, batch, key):
        _, merge = subset(meta, where)
        return model.apply(merge(params), batch.inputs, key, batch.mask)

    start = lambda meta, support, key: subset(meta, where)[0]
    learn = GradientDescent(optax.sgd(rate), steps)
    return learned_start(start, learn, model.init, predict, loss)
