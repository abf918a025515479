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
    `strength` and `scale` are what λ and $e^a$ begin with. Without `ways` it is a regression to
    real targets.

    Departs from the paper: no column of ones beside the features, and features of the last block
    alone, where the paper joins those of the last two; λ begins with 1 and is learned, where the
    authors' code has 50 and divides rows and labels by the root of their number. Its scale begins
    with 10 on Omniglot.
    """
    return with_linear_head(
        features, loss, lambda embed, learned: RidgeHead(embed, learned, ways), strength, scale
    )
