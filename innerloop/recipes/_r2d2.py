"""R2D2: ridge regression on learned features, differentiated through its closed form."""

from innerloop.heads import RidgeHead
from innerloop.models import Model
from innerloop.recipes.base import ExamplesLoss, Recipe
from innerloop.recipes.linear import with_linear_head


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
    return with_linear_head(features, loss, head, strength, scale)
