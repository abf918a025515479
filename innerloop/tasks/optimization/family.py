"""Families of optimization tasks: a problem, its random parts, and its batch size."""

from typing import NamedTuple

import jax
import optax
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import Adaptation, GradientDescent, MiniBatches
from innerloop.adaptation.gradient_descent import MetaOptimizer
from innerloop.arguments import checked, positive
from innerloop.problem import Problem
from innerloop.tasks.base import TaskDistribution


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
