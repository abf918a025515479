"""Pretraining: as the baseline without meta-learning, and as the start of any recipe."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import Procedure
from innerloop.arguments import checked
from innerloop.checks import adapter_call
from innerloop.errors import StructureError
from innerloop.learner import Learner
from innerloop.models import ExamplesLoss, Model, linear_head
from innerloop.models.base import MODEL
from innerloop.models.supervised import network, stateless
from innerloop.problem import subset
from innerloop.recipes._maml import maml
from innerloop.recipes._partly_adapted import partly_adapted
from innerloop.recipes.base import InitMeta, Recipe, learned_head
from innerloop.trees import leaf_shapes


@checked(model=MODEL)
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


@checked(features=MODEL)
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

    (arXiv 1904.04232). It is meta-trained on tasks whose labels number all `classes`
    (`LabelledRows`), and learns tasks of `ways` classes at test (`recipe.tested`).

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

    new_tasks = dataclasses.replace(tuned.problem, init=new_head)
    tested = Learner(new_tasks, tuned.adaptation, tuned.predict)
    return _pretrained(whole, loss)._replace(predict=tuned.predict, tested=tested)


def _pretrained(model: Model, loss: ExamplesLoss) -> Recipe:
    """One network for all tasks, with nothing adapted."""
    unchanged = Procedure(lambda meta, support, key: meta)
    predict = network(stateless(model, "pretraining")).outputs
    return learned_head(unchanged, model.init, predict, loss, model.frozen)


def pretrained(
    recipe: Recipe, weights: PyTree, into: Callable[[PyTree], PyTree] = lambda meta: meta
) -> Recipe:
    """The same recipe, with pretrained weights as the initial values of a part of meta.

    The rest of meta is what the recipe's own `init_meta` makes of the key:

    ```python
    recipe = il.recipes.pretrained(recipe, body, into=lambda meta: meta["body"])
    ```

    Args:
        recipe: Any recipe.
        weights: A pytree of arrays, NumPy's or JAX's, of the part's structure, shapes and dtypes.
        into: Selects the part, or a tuple of parts, as in `subset`; all of meta unless given.

    Raises:
        StructureError: Here and not in training, if the weights do not fit (the error names the
            leaves) or `into` selects nothing.
    """
    return recipe._replace(init_meta=started_from(recipe.init_meta, weights, into))


def started_from(
    init_meta: InitMeta, weights: PyTree, into: Callable[[PyTree], PyTree] = lambda meta: meta
) -> InitMeta:
    """Like `pretrained`, but for `init_meta` alone."""
    # Not jnp.asarray, which would silently make float32 of float64.
    array = lambda leaf: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    weights = jax.tree.map(array, weights)
    like = jax.eval_shape(init_meta, jax.eval_shape(lambda: jax.random.key(0)))
    part, _ = subset(like, into)
    expected, got = leaf_shapes(part), leaf_shapes(weights)
    different = [name for name in expected | got if expected.get(name) != got.get(name)]
    if different or jax.tree.structure(part) != jax.tree.structure(weights):
        shown = lambda of: ", ".join(f"{name}: {of.get(name, 'nothing')}" for name in different)
        call = adapter_call(weights)
        is_module = call is not None and call != adapter_call(part)
        raise StructureError(
            "the pretrained weights do not fit the part that they are put into",
            got=shown(got) or str(jax.tree.structure(weights)),
            expected=shown(expected) or str(jax.tree.structure(part)),
            write=f"{call}.init(jax.random.key(0))" if is_module else None,
        )

    def started(key: PRNGKeyArray) -> PyTree:
        _, merge = subset(init_meta(key), into)
        return merge(jax.tree.map(jnp.asarray, weights))

    return started
