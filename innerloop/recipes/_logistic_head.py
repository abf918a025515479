"""Logistic regression on learned features, differentiated at its optimum."""

from innerloop.heads import ConvexHead, logistic
from innerloop.models import Model
from innerloop.recipes.base import ExamplesLoss, Recipe
from innerloop.recipes.linear import with_linear_head


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
    return with_linear_head(features, loss, head, strength, scale)
