"""MAML and its relatives: gradient descent on a task from a learned initialisation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from innerloop.adaptation import GradientDescent, MiniBatches
from innerloop.arguments import at_least, checked
from innerloop.estimators import Estimator, Phases, WholeTasks
from innerloop.gradients import FirstOrder, Implicit, Reptile, proximal
from innerloop.learner import Learner
from innerloop.models import ExamplesLoss, Model
from innerloop.optimizers import scale_by_rates, scale_by_scheduled_rates
from innerloop.problem import Problem
from innerloop.recipes.base import Recipe, learned_network


def maml(
    model: Model,
    loss: ExamplesLoss,
    rate: float = 0.01,
    steps: int = 1,
    step_weights: Callable[[int], Any] | None = None,
) -> Recipe:
    r"""MAML (Finn, Abbeel and Levine 2017, arXiv 1703.03400).

    $$\min_\phi \; \mathbb{E}\, L_\text{query}(\theta_K), \qquad \theta_0 = \phi, \quad
      \theta_{t+1} = \theta_t - \alpha \nabla L_\text{support}(\theta_t)$$

    with the exact, second-order meta-gradient. The default rate and number of steps are those of
    the paper's sinusoids; for its 5-way Omniglot they are 0.4 and 1.

    Args:
        model: The network.
        loss: The loss of the predictions.
        rate: α, the inner learning rate.
        steps: K, the number of inner steps.
        step_weights: Weights of the query losses after each step, as in `Problem`.
    """
    return learned_network(model, GradientDescent(optax.sgd(rate), steps), loss, step_weights)


def fomaml(
    model: Model,
    loss: ExamplesLoss,
    rate: float = 0.01,
    steps: int = 1,
    step_weights: Callable[[int], Any] | None = None,
) -> Recipe:
    """First-order MAML (Finn et al. 2017, section 5.2): every inner gradient is a constant.

    For the arguments, see `maml`.
    """
    return maml(model, loss, rate, steps, step_weights)._replace(gradient=FirstOrder())


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


def reptile(
    model: Model,
    loss: ExamplesLoss,
    rate: float = 1e-3,
    steps: int = 5,
    rows: int | None = None,
    test_steps: int = 50,
) -> Recipe:
    r"""Reptile (Nichol, Achiam and Schulman 2018, arXiv 1803.02999).

    $$\phi \leftarrow \phi + \epsilon \, \mathbb{E}\,(\theta_K - \phi), \qquad \theta_0 = \phi$$

    with K steps of Adam without momentum (β₁ = 0) at the rate α, each on `rows` rows of the support
    set, or on all of it. New tasks are learned by `test_steps` steps on the whole support set. The
    defaults are those of the paper's Omniglot, which trains with 10 rows on 10 shots. The query set
    affects the value only. The paper's outer step is `optax.sgd` with ε falling linearly from 1
    to 0.

    Reptile learns to generalise only if the steps on a task use different rows. With one shot in
    training, they hardly differ: train with more shots than at test.

    Departs from the paper: Adam's state starts anew with each task.

    Args:
        model: The network.
        loss: The loss of the predictions.
        rate: α, the inner learning rate.
        steps: K, the number of inner steps.
        rows: Rows of the support set that each step sees; None for all.
        test_steps: The number of steps on a new task.
    """
    adam = optax.adam(rate, b1=0)
    learn = GradientDescent(adam, steps)
    recipe = maml(model, loss)
    return recipe._replace(
        adaptation=learn if rows is None else MiniBatches(learn, rows),
        gradient=Reptile(),
        tested=Learner(recipe.problem, GradientDescent(adam, test_steps), recipe.predict),
    )


def meta_sgd(model: Model, loss: ExamplesLoss, rate: float = 0.05, steps: int = 1) -> Recipe:
    r"""Meta-SGD (Li, Zhou, Chen and Li 2017, arXiv 1707.09835).

    $$\theta_{t+1} = \theta_t - \alpha \odot \nabla L_\text{support}(\theta_t), \qquad
      \theta_0 = \phi$$

    φ and α, which has the shape of φ, are both meta-learned: `{"start", "rates"}`. Rates may become
    negative.

    Departs from the paper: all rates start from one value, and not from random ones in
    [0.005, 0.1]; the default is about the middle of that range.

    Args:
        model: The network.
        loss: The loss of the predictions.
        rate: The initial value of all rates α.
        steps: K, the number of inner steps.
    """

    def init_meta(key: PRNGKeyArray) -> PyTree:
        start = model.init(key)
        return {"start": start, "rates": jax.tree.map(lambda x: jnp.full_like(x, rate), start)}

    learn = GradientDescent(lambda meta: scale_by_rates(meta["rates"]), steps)
    return learned_network(model, learn, loss, init_meta=init_meta)


def annealed_weights(
    steps: int, outer_step: Int[Array, ""], over: int
) -> Float[Array, " steps_plus_one"]:
    """Weights of the outer losses after 0 ... K steps: from equal ones to the last step alone.

    The weight of step 0 is zero. The others change linearly until the outer step `over`.
    """
    early = jnp.maximum(0, 1 - outer_step / max(over, 1)) / steps
    return jnp.full(steps + 1, early).at[0].set(0).at[-1].set(1 - (steps - 1) * early)


@checked(steps=at_least(1, such_as=5), annealed_over=at_least(0), first_order_until=at_least(0))
def maml_plus_plus(
    model: Model,
    loss: ExamplesLoss,
    rate: float = 0.1,
    steps: int = 5,
    annealed_over: int = 5000,
    first_order_until: int = 0,
) -> Recipe:
    r"""MAML++ (Antoniou, Edwards and Storkey 2019, arXiv 1810.09502).

    $$\min_{\phi, \alpha} \; \mathbb{E} \sum_t w_t L_\text{query}(\theta_t), \qquad
      \theta_{t+1}^l = \theta_t^l - \alpha_t^l \nabla_l L_\text{support}(\theta_t), \quad
      \theta_0 = \phi$$

    The rates $\alpha_t^l$, one for each step and each array of the parameters, are meta-learned
    with φ: `{"start", "rates"}`. Steps beyond K use the rates of the last step.

    Departs from the paper: there are no batch statistics or biases of each step (the normalisation
    is the model's policy). The paper's cosine schedule belongs to the outer optimizer.

    Args:
        model: The network.
        loss: The loss of the predictions.
        rate: The initial value of all inner rates.
        steps: K, the number of inner steps.
        annealed_over: Outer steps in which the weights $w_1 \dots w_K$ move from equal ones to the
            last alone (multi-step loss); 0 for the last alone. The authors' Omniglot has 5,000 of
            50,000.
        first_order_until: Outer steps at the beginning that hold inner gradients constant
            (derivative-order annealing). The authors' Omniglot has none.
    """
    learn = GradientDescent(lambda meta: _of_each_step(meta["rates"]), steps)

    def init_meta(key: PRNGKeyArray) -> PyTree:
        start = model.init(key)
        rates = jax.tree.map(lambda leaf: jnp.full(steps, rate, leaf.dtype), start)
        return {"start": start, "rates": rates}

    recipe = learned_network(model, learn, loss, init_meta=init_meta)

    def schedule(outer_step: Int[Array, ""]) -> tuple[Problem, GradientDescent]:
        weights: Any = lambda steps: annealed_weights(steps, outer_step, annealed_over)
        return dataclasses.replace(recipe.problem, step_weights=weights), learn

    def first_order_first(whole: WholeTasks) -> Estimator:
        first = dataclasses.replace(whole, gradient=FirstOrder())
        return Phases(first, whole, until=first_order_until)

    recipe = recipe._replace(schedule=schedule) if annealed_over else recipe
    return recipe._replace(follow=first_order_first) if first_order_until else recipe


def _of_each_step(rates: PyTree) -> optax.GradientTransformation:
    """Scales each array's update by its rate of this step; later steps use the last rate."""
    at = lambda step: jax.tree.map(lambda rate: rate[jnp.minimum(step, len(rate) - 1)], rates)
    return scale_by_scheduled_rates(at)
