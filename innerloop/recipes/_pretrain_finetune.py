"""The baseline without meta-learning: train one network on everything, then fine-tune it."""

import jax
import jax.numpy as jnp

from innerloop.adaptation import Procedure
from innerloop.learner import Learner
from innerloop.models import Model, linear_head
from innerloop.problem import Problem
from innerloop.recipes._maml import maml
from innerloop.recipes._partly_adapted import partly_adapted
from innerloop.recipes.base import ExamplesLoss, Recipe, learned_head, model_predictions


def pretrain_finetune(
    model: Model, loss: ExamplesLoss, rate: float = 0.01, steps: int = 10
) -> Recipe:
    r"""Pretraining on all tasks at once, then gradient descent (Finn et al. 2017, section 5.1).

    $$\min_\phi \; \mathbb{E}\, L_\text{query}(\phi), \qquad \text{at test:} \quad \theta_0 = \phi,
      \; \theta_{t+1} = \theta_t - \alpha \nabla L_\text{support}(\theta_t)$$

    For regression: no parameter is adapted during training, and all are adapted at test. If a label
    means another class in every task, see `pretrain_classifier`.

    Args:
        model: The network.
        loss: The loss of the predictions.
        rate: α, the inner learning rate.
        steps: K, the number of inner steps.
    """
    tuned = maml(model, loss, rate, steps)
    return _pretrained(model, loss)._replace(tested=tuned.learner)


def pretrain_classifier(
    features: Model,
    width: int,
    classes: int,
    ways: int,
    loss: ExamplesLoss,
    rate: float = 0.1,
    steps: int = 100,
) -> Recipe:
    r"""Pretraining of a classifier of all training classes, then a new head for each task (the
    baseline of Chen et al. 2019, "A closer look at few-shot classification").

    $$\min_{\phi, W} \; \mathbb{E}\, \ell(f_\phi(x) W, y), \qquad \text{at test:} \quad
      W'_{t+1} = W'_t - \alpha \nabla_{W'} \frac1n \sum_i \ell(f_\phi(x_i) W'_t, y_i), \; W'_0 = 0$$

    (arXiv 1904.04232). It is meta-trained on tasks whose labels say which of all `classes` an image
    is (`LabelledImages`), and learns tasks of `ways` classes at test (`recipe.tested`).

    Departs from the paper: the new head starts from zero, and gradient descent on the whole support
    set trains it without momentum and weight decay, at a rate of our choice.

    Args:
        features: The network f, `(rows, ...) -> (rows, width)`.
        width: The number of features.
        classes: The number of all training classes.
        ways: The number of classes of a task.
        loss: The loss of the predictions.
        rate: α, the inner learning rate.
        steps: K, the number of inner steps, 100 in the paper.
    """
    whole = linear_head(features, width, classes)
    tuned = partly_adapted(whole, loss, lambda params: params["head"], rate, steps)

    def new_head(meta, support, key):
        outputs = lambda leaf: (*leaf.shape[:-1], ways)
        return jax.tree.map(lambda leaf: jnp.zeros(outputs(leaf), leaf.dtype), meta["head"])

    new_tasks = Problem(new_head, tuned.problem.inner_loss, tuned.problem.outer_loss)  # pyright: ignore[reportAttributeAccessIssue]
    tested = Learner(new_tasks, tuned.adaptation, tuned.predict)
    return _pretrained(whole, loss)._replace(predict=tuned.predict, tested=tested)


def _pretrained(model: Model, loss: ExamplesLoss) -> Recipe:
    """One network for all tasks, with nothing adapted."""
    unchanged = Procedure(lambda meta, support, key: meta)
    return learned_head(unchanged, model.init, model_predictions(model), loss)
