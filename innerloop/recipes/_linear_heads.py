"""Recipes whose head is a linear map, computed on learned features and differentiated there."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation import Adaptation
from innerloop.heads import ConvexHead, RidgeHead, logistic, squared_hinge
from innerloop.heads.base import Features
from innerloop.models import Model
from innerloop.precision import default_float
from innerloop.recipes.base import (
    ExamplesLoss,
    Recipe,
    frozen_parts,
    learned_head,
    model_features,
)


def _with_linear_head(
    features: Model,
    loss: ExamplesLoss,
    head: Callable[[Features, Callable[[PyTree], Scalar]], Adaptation],
    strength: float,
    scale: float,
) -> Recipe:
    r"""Predictions $e^a\, f_\phi(x)\, W + b$, with W by `head(features, strength)`.

    Meta-parameters: `{"features", "log_strength", "log_scale", "offset"}`, the logarithm of the
    regularisation, a and b, both scalars.
    """
    embed = model_features(features, lambda meta: meta["features"])

    def predict(params, meta, batch, key):
        scores = embed(meta, batch, key) @ params
        return jnp.exp(meta["log_scale"]) * scores + meta["offset"]

    def init_meta(key: PRNGKeyArray) -> PyTree:
        dtype = default_float()
        return {
            "features": features.init(key),
            "log_strength": jnp.asarray(np.log(strength), dtype),
            "log_scale": jnp.asarray(np.log(scale), dtype),
            "offset": jnp.zeros((), dtype),
        }

    learned = lambda meta: jnp.exp(meta["log_strength"])
    frozen = frozen_parts(init_meta, features=features)
    return learned_head(head(embed, learned), init_meta, predict, loss, frozen)


def r2d2(
    features: Model,
    loss: ExamplesLoss,
    ways: int | None = None,
    strength: float = 1.0,
    scale: float = 1.0,
) -> Recipe:
    r"""R2D2 (Bertinetto, Henriques, Torr and Vedaldi 2019, arXiv 1805.08136).

    $$\text{prediction}(x) = e^a\, f_\phi(x)\, W + b, \qquad
      W = \Phi^\top (\Phi \Phi^\top + \lambda I)^{-1} Y, \quad \Phi = f_\phi(\text{support})$$

    φ, $\log \lambda$, a and b are meta-learned; Y has a row of the identity for each class.

    Departs from the paper: there is no column of ones beside the features, and the features are
    those of the last block only (the paper joins those of the last two). λ is learned and starts
    from 1; the authors' code has 50 and divides rows and labels by the root of their number. The
    scale of that code starts from 10 on Omniglot.

    Args:
        features: The network f, `(rows, ...) -> (rows, width)`.
        loss: The loss of the predictions.
        ways: The number of classes of a task; None for regression to real targets.
        strength: The initial value of λ.
        scale: The initial value of $e^a$.
    """
    head = lambda embed, learned: RidgeHead(embed, learned, ways)
    return _with_linear_head(features, loss, head, strength, scale)


def logistic_head(
    features: Model, loss: ExamplesLoss, ways: int, strength: float = 1.0, scale: float = 1.0
) -> Recipe:
    r"""A logistic regression learns each task (LR-D2: Bertinetto et al. 2019, arXiv 1805.08136).

    $$\text{logits}(x) = e^a\, f_\phi(x)\, W + b, \qquad
      W = \arg\min_W \sum_i \ell_\text{logistic}(f_\phi(x_i) W, y_i) + \tfrac{\lambda}{2} \|W\|^2$$

    φ, $\log \lambda$, a and b are meta-learned.

    Departs from the paper: the regression is multinomial for any number of classes, and is solved
    to convergence and differentiated there. The paper unrolls a few Newton steps, with one class
    against the rest.

    Args:
        features: The network f, `(rows, ...) -> (rows, width)`.
        loss: The loss of the predictions.
        ways: The number of classes of a task.
        strength: The initial value of λ.
        scale: The initial value of $e^a$.
    """
    head = lambda embed, learned: ConvexHead(embed, learned, logistic, ways)
    return _with_linear_head(features, loss, head, strength, scale)


def svm_head(
    features: Model, loss: ExamplesLoss, ways: int, strength: float = 10.0, scale: float = 1.0
) -> Recipe:
    r"""Support vector machines learn each task (MetaOptNet: Lee et al. 2019, arXiv 1904.03758).

    $$\text{logits}(x) = e^a\, f_\phi(x)\, W + b, \qquad
      W = \arg\min_W \sum_{i, k} \tfrac12 \max(0, 1 - t_{ik} f_\phi(x_i) W_k)^2
        + \tfrac{\lambda}{2} \|W\|^2$$

    with $t_{ik} = 1$ for the row's class and -1 for the others. φ, $\log \lambda$, a and b are
    meta-learned.

    Departs from the paper: the hinges are squared and the primal problem is solved, with one class
    against the rest, whereas the paper solves the dual of Crammer and Singer's machine. λ is
    learned and starts from 10, which is the paper's fixed C = 0.1.

    Args:
        features: The network f, `(rows, ...) -> (rows, width)`.
        loss: The loss of the predictions.
        ways: The number of classes of a task.
        strength: The initial value of λ.
        scale: The initial value of $e^a$.
    """
    head = lambda embed, learned: ConvexHead(embed, learned, squared_hinge, ways)
    return _with_linear_head(features, loss, head, strength, scale)
