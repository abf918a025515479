"""Families of optimization tasks: a problem, its random parts, and its batch size."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation import Adaptation, GradientDescent, MiniBatches
from innerloop.adaptation.gradient_descent import MetaOptimizer
from innerloop.arguments import checked, interval, positive
from innerloop.errors import StructureError
from innerloop.models import ExamplesLoss, Model, supervised_loss
from innerloop.models.base import MODEL
from innerloop.precision import default_float
from innerloop.problem import Episode, Problem
from innerloop.tasks.base import OneByOne, TaskDistribution


class Family(NamedTuple):
    """Optimization tasks that share everything but their random parts.

    The fixed parts (an architecture, a data set) are in the problem. The random parts are drawn for
    each task: the data in the episode, the initialisation from the task's key. The problem reads no
    meta-parameters, which belong to the optimizer.

    Args:
        name: The name of the family.
        problem: `init` draws the parameters, `inner_loss` is minimised, and `outer_loss` is the
            same loss on the query set.
        tasks: The distribution of the episodes.
        batch: Rows of the support set that a step sees; None for all of them.
    """

    name: str
    problem: Problem
    tasks: TaskDistribution
    batch: int | None = None

    def adaptation(
        self, optimizer: optax.GradientTransformation | MetaOptimizer, steps: int
    ) -> Adaptation:
        """`steps` steps of an optimizer, learned or not, on mini-batches if the family has them.

        Raises:
            StructureError: See `GradientDescent` and `MiniBatches`.
        """
        descent = GradientDescent(optimizer, steps)
        return descent if self.batch is None else MiniBatches(descent, self.batch)

    def params(self, key: PRNGKeyArray) -> PyTree:
        """The parameters of one task, as an example for `LearnedOptimizer.init`."""
        episodes = self.tasks.sample(key, 1)
        support = jax.tree.map(lambda leaf: leaf[0], episodes.support)
        init = self.problem.init
        assert init is not None
        return init(None, support, key)


@checked(factor=positive(such_as=2.0))
def rescaled(family: Family, factor: float) -> Family:
    r"""The same tasks in other units: parameters $\theta / c$, of which the loss reads c times.

    Gradients become c times larger and the right steps c times smaller, so an optimizer cannot rely
    on the size of parameters and gradients. As an augmentation: Metz et al. 2022 and Moudgil et al.
    2025, "Celo" (arXiv 2501.12670).

    Args:
        family: Any family.
        factor: c, above 0.

    Raises:
        StructureError: If `factor` is not positive and finite.
    """
    init, inner, outer = family.problem.init, family.problem.inner_loss, family.problem.outer_loss
    assert init is not None and inner is not None
    times = lambda tree, factor: jax.tree.map(lambda leaf: factor * leaf, tree)
    problem = Problem(
        lambda meta, support, key: times(init(meta, support, key), 1 / factor),
        lambda params, meta, batch, key: inner(times(params, factor), meta, batch, key),
        lambda params, meta, batch, key: outer(times(params, factor), meta, batch, key),
        family.problem.step_weights,
    )
    return family._replace(name=f"{family.name}-times-{factor:g}", problem=problem)


@checked(model=MODEL, scale=interval(above=0, point=True))
def supervised_family(
    name: str,
    model: Model,
    loss: ExamplesLoss,
    tasks: TaskDistribution,
    batch: int | None = None,
    scale: tuple[float, float] = (1.0, 1.0),
) -> Family:
    """Training `model` by `loss` on episodes of `Examples`.

    The outer loss is the same loss on the query set: with `TableTasks` it is a validation loss.

    Args:
        name: The name of the family.
        model: The network.
        loss: The loss of the predictions.
        tasks: The distribution of the episodes.
        batch: Rows per inner step; None for the whole support set.
        scale: The range of a factor on the initial parameters, which each task draws log-uniformly.

    Raises:
        StructureError: If the range is empty or not positive.
    """
    low, high = scale

    def init(meta: PyTree, support: PyTree, key: PRNGKeyArray) -> PyTree:
        params_key, scale_key = jax.random.split(key)
        params = model.init(params_key)
        if low == high == 1:
            return params
        power = jax.random.uniform(scale_key, minval=math.log(low), maxval=math.log(high))
        return jax.tree.map(lambda leaf: jnp.exp(power).astype(leaf.dtype) * leaf, params)

    judged = supervised_loss(model, loss)
    return Family(name, Problem(init, judged, judged), tasks, batch)


class Quadratics(OneByOne):
    r"""Episodes `{"hessian": Q diag(λ) Qᵀ, "centre": c}`, the same as support and query.

    Q is a random orthogonal matrix, $c \sim N(0, I)$. `spectrum` is λ.
    """

    spectrum: tuple[float, ...] = eqx.field(static=True)

    def sample_one(self, key: PRNGKeyArray) -> Episode:
        """One task."""
        basis_key, centre_key = jax.random.split(key)
        size, dtype = len(self.spectrum), default_float()
        basis, _ = jnp.linalg.qr(jax.random.normal(basis_key, (size, size), dtype))
        hessian = (basis * jnp.asarray(self.spectrum, dtype)[None, :]) @ basis.T
        task = {"hessian": hessian, "centre": jax.random.normal(centre_key, (size,), dtype)}
        return Episode(task, task)


def quadratic_family(
    spectrum: Sequence[float] | np.ndarray, noise: float = 0.0, name: str = "quadratic"
) -> Family:
    r"""Quadratics with these eigenvalues, in a random basis around a random centre.

    $$L(\theta) = \tfrac12 (\theta - c)^\top Q\, \text{diag}(\lambda)\, Q^\top (\theta - c), \qquad
      \theta_0, c \sim N(0, I)$$

    Args:
        spectrum: λ, at least one eigenvalue, none of them negative.
        noise: σ. Each inner step sees $L(\theta) + \sigma\, \xi^\top (\theta - c)$ with its own
            $\xi \sim N(0, I)$, a stochastic gradient. The outer loss is L.
        name: The name of the family.

    Raises:
        StructureError: If the spectrum is empty, negative or infinite.
    """
    values = np.asarray(spectrum, float)
    if values.ndim != 1 or not values.size or not np.all(np.isfinite(values) & (values >= 0)):
        raise StructureError(
            "a spectrum is a list of eigenvalues",
            got=f"spectrum={spectrum!r}",
            expected="at least one number, none negative, all finite",
            write="quadratic_family(np.logspace(-2, 0, 20))",
        )

    def init(meta: PyTree, support: PyTree, key: PRNGKeyArray) -> PyTree:
        return jax.random.normal(key, support["centre"].shape, support["centre"].dtype)

    def value(params: PyTree, task: PyTree) -> Scalar:
        distance = params - task["centre"]
        return distance @ task["hessian"] @ distance / 2

    def inner_loss(params: PyTree, meta: PyTree, batch: PyTree, key: PRNGKeyArray) -> Scalar:
        if noise == 0:
            return value(params, batch)
        force = noise * jax.random.normal(key, params.shape, params.dtype)
        return value(params, batch) + force @ (params - batch["centre"])

    outer_loss = lambda params, meta, batch, key: value(params, batch)
    return Family(name, Problem(init, inner_loss, outer_loss), Quadratics(tuple(values.tolist())))
