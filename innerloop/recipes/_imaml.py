"""iMAML: an initialisation that pulls, differentiated at the optimum."""

import lineax as lx

from innerloop.gradients import Implicit, proximal
from innerloop.models import Model
from innerloop.recipes._maml import maml
from innerloop.recipes.base import ExamplesLoss, Recipe


def imaml(
    model: Model,
    loss: ExamplesLoss,
    rate: float = 0.1,
    steps: int = 16,
    strength: float = 2.0,
    solver_steps: int = 5,
    damping: float = 22.0,
) -> Recipe:
    r"""Implicit MAML (Rajeswaran, Finn, Kakade and Levine 2019, arXiv 1909.04630).

    $$\min_\phi \; \mathbb{E}\, L_\text{query}(\theta^*), \qquad
      \theta^* = \arg\min_\theta L_\text{support}(\theta) + \tfrac{\lambda}{2} \|\theta - \phi\|^2$$

    K steps of gradient descent compute θ*, and `solver_steps` steps of conjugate gradients compute
    the meta-gradient. The default K, λ and number of solver steps are those of the paper's 5-way
    Omniglot; the default α is that of the authors' code.

    Departs from that code: every step includes the proximal term, at test too. The code takes all
    but one step on the support loss only, and has no proximal term at test.

    The meta-gradient is $\lambda (H + (\lambda + d) I)^{-1} \nabla L_\text{query}(\theta^*)$, where
    H is the Hessian of the support loss and d the `damping`. The paper's formula has d = 0. After K
    steps H still has negative eigenvalues, and conjugate gradients break down (NaN, on Omniglot in
    the first outer step). The authors' code solves with $2 I + H / (\lambda + 10)$, which up to a
    factor is d = 22 for λ = 2. With this damping the direction is close to the first-order one.

    The solver stops early by design, so it does not raise; `aux.diagnostics` holds its residual.

    Args:
        model: The network.
        loss: The loss of the predictions.
        rate: α, the inner learning rate.
        steps: K, the number of inner steps.
        strength: λ, the strength of the proximal term.
        solver_steps: The number of steps of conjugate gradients.
        damping: d, which is added to λ in the linear system.
    """
    recipe = maml(model, loss, rate, steps)
    solver = lx.CG(rtol=1e-6, atol=1e-6, max_steps=solver_steps)
    return recipe._replace(
        problem=proximal(recipe.problem, strength),  # pyright: ignore[reportArgumentType]
        gradient=Implicit(solver, damping=damping, throw=False),
    )
