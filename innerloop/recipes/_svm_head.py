"""Support vector machines on learned features, differentiated at their optimum."""

from innerloop.heads import ConvexHead, squared_hinge
from innerloop.models import Model
from innerloop.recipes.base import ExamplesLoss, Recipe
from innerloop.recipes.linear import with_linear_head


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
    return with_linear_head(features, loss, head, strength, scale)
