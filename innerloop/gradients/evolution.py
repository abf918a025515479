"""The meta-gradient by evolution strategies, from values of the meta-objective alone."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation import Adaptation
from innerloop.arguments import at_least, optional, positive
from innerloop.fidelity import ESTIMATE, Fidelity
from innerloop.gradients.base import Aux, MetaGradient, TaskObjective, run_task
from innerloop.gradients.surrogate import known_gradient
from innerloop.problem import Episode, Problem, task_keys
from innerloop.trees import add, cast_like, differ, drawn_like, widened


class EvolutionStrategies(MetaGradient):
    r"""Antithetic Gaussian smoothing of the meta-objective L (Salimans et al. 2017).

    $$\nabla_\phi \approx \frac{1}{2 n \sigma} \sum_{i=1}^{n}
      \bigl[L(\phi + \sigma \epsilon_i) - L(\phi - \sigma \epsilon_i)\bigr]\, \epsilon_i,
      \qquad \epsilon_i \sim \mathcal{N}(0, I)$$

    (arXiv 1703.03864). All pairs of a task use the same adaptation keys (common random numbers);
    pair i uses the key `fold_in(task_keys(key).gradient, i)`. The value is L(φ) itself.

    Fidelity: unbiased for the smoothed objective $\mathbb{E}_\epsilon L(\phi + \sigma\epsilon)$.
    Memory: that of `2 chunk` forward passes, for any K. The estimate needs no derivative other than
    the inner gradient, and works after any adaptation.

    If σ is below the precision of the meta-parameters, the estimate is NaN and not zero.

    Args:
        pairs: The number of pairs n >= 1. The variance falls as 1/n and grows with the number of
            meta-parameters.
        sigma: The standard deviation σ > 0, in the units of the meta-parameters.
        chunk: How many pairs are computed at a time; None for all at once.

    Raises:
        StructureError: If `pairs` or `chunk` is below 1, or σ is not positive.
        GradientError: If differentiated twice or in anything but meta.
    """

    pairs: int = at_least(1, such_as=64)
    sigma: float = positive(such_as=0.01)
    chunk: int | None = optional(at_least(1, such_as=8))

    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """Unbiased for the smoothed objective."""
        return Fidelity(
            "unbiased",
            f"The gradient of the meta-objective smoothed by a Gaussian of width {self.sigma}, "
            f"estimated from {self.pairs} antithetic pairs.",
            ESTIMATE,
            takes=0,
            draws=True,
        )

    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """The meta-objective's value, with the estimate as its gradient."""

        def objective(meta: PyTree, episode: Episode, key: PRNGKeyArray) -> tuple[Scalar, Aux]:
            fixed = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, meta))
            outcome = lambda meta: run_task(problem, adaptation, meta, episode, key)

            def pair(i: Array) -> list[Array]:
                noise = drawn_like(jax.random.fold_in(task_keys(key).gradient, i), fixed)
                plus, minus = (add(fixed, noise, sign * self.sigma) for sign in (1, -1))
                rise = widened(outcome(plus).loss) - widened(outcome(minus).loss)
                # A perturbation below the precision of meta changes neither meta nor the loss,
                # which does not mean that the slope is zero.
                rise = jnp.where(differ(plus, minus), rise, jnp.nan)
                slope = rise / (2 * self.sigma * self.pairs)
                return [slope.astype(draw.dtype) * draw for draw in jax.tree.leaves(widened(noise))]

            total = sum_in_chunks(pair, self.pairs, self.chunk)
            gradient = cast_like(total, jax.tree.leaves(fixed))
            loss, aux, _ = outcome(fixed)
            return known_gradient("EvolutionStrategies()", loss, gradient, meta), aux

        return objective


def sum_in_chunks(term, count: int, chunk: int | None):
    """The sum of `term(i)` over i = 0 ... count - 1, `chunk` at a time, in float32 at least."""
    size = min(chunk or count, count)
    whole, rest = divmod(count, size)

    def block(first, size):
        terms = jax.vmap(term)(first + jnp.arange(size, dtype=jnp.int32))
        return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), widened(terms))

    total = block(jnp.int32(0), size)
    if whole > 1:
        starts = size * jnp.arange(1, whole, dtype=jnp.int32)
        add = lambda total, first: (jax.tree.map(jnp.add, total, block(first, size)), None)
        total, _ = jax.lax.scan(add, total, starts)
    if rest:
        total = jax.tree.map(jnp.add, total, block(jnp.int32(whole * size), rest))
    return total
