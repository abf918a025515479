"""What a recipe is: the parts of a named algorithm, put together."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation import Adaptation
from innerloop.gradients import MetaGradient
from innerloop.models import Model
from innerloop.problem import Examples, Problem, ProblemMixture


class Recipe(NamedTuple):
    """A named algorithm as its parts; replace any of them with `recipe._replace(...)`.

    - `init_meta`: `key -> meta`, the meta-parameters before meta-training
    """

    problem: Problem | ProblemMixture
    adaptation: Adaptation | tuple[Adaptation, ...]
    gradient: MetaGradient
    init_meta: Callable[[PRNGKeyArray], PyTree]


ExamplesLoss = Callable[[PyTree, Examples], tuple[Scalar, dict]]
"""`(predictions, examples) -> (loss, metrics)`, such as `cross_entropy`."""


def supervised_loss(model: Model, loss: ExamplesLoss) -> Callable:
    """The loss of a model on `Examples`, with the signature that a `Problem` wants."""

    def model_loss(params: PyTree, meta: PyTree, batch: Examples, key: PRNGKeyArray):
        return loss(model.apply(params, batch.inputs, key, batch.mask), batch)

    return model_loss
