"""Persistent evolution strategies: unbiased over the whole run, one window at a time."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from innerloop.estimators.particles import CarriedPairs
from innerloop.gradients.base import Fidelity


class PersistentES(CarriedPairs):
    r"""Persistent evolution strategies, PES (Vicol, Metz & Sohl-Dickstein 2021, arXiv 2112.13835).

    Each pair of particles draws a new perturbation $\epsilon_k$ in each window k and keeps its
    inner states, so that a loss depends on all perturbations of its run so far:

    $$\nabla_\phi \approx \frac{1}{2 n \sigma^2} \sum_{i=1}^{n}
      \bigl[L_k(\phi + \epsilon_{i,0} \dots \phi + \epsilon_{i,k})
      - L_k(\phi - \epsilon_{i,0} \dots \phi - \epsilon_{i,k})\bigr]
      \sum_{j \le k} \epsilon_{i,j}, \qquad \epsilon \sim \mathcal{N}(0, \sigma^2 I)$$

    with $L_k$ the weighted losses of window k. The value is the mean loss of the particles.

    Fidelity: unbiased for the meta-objective smoothed by independent noise in every window, as long
    as meta does not change; a change of meta during a run affects only the windows after it.
    Variance: grows with the number of windows in a run, since the noise adds up, and falls as 1/n
    and with the number of runs. Memory: `2 n` inner states and n perturbations per run. No
    derivative but the inner gradient is computed.

    Args:
        problem: What is optimised.
        adaptation: How one task is learned; its own number of steps is not used.
        tasks: A task distribution.
        window: Inner steps per outer step.
        horizon: Inner steps of a run, or a tuple of numbers of steps that each run draws one from.
        batch: The number of inner runs.
        pairs: n, antithetic pairs per run, which learn the same task with the same keys.
        sigma: σ > 0, in the units of the meta-parameters.
        pairs_at_once: Pairs of a run that are computed at a time; None for all at once.
        clip: The largest value that an outer loss counts with, also a loss that is not finite; None
            for no limit.
        chunk: Runs that are computed at a time; None for all at once.
        schedule: As in `WholeTasks`.

    Raises:
        StructureError: A horizon is not a whole number of windows, or an argument is out of range.
        GradientError: The adaptation has no steps to stop between.
    """

    def fidelity(self) -> Fidelity:
        """Unbiased for the smoothed objective."""
        return Fidelity(
            "unbiased",
            f"The gradient of the meta-objective smoothed by a Gaussian of width {self.sigma} in "
            f"each window, estimated from {self.pairs} antithetic pairs per run.",
        )

    def perturb(self, held: PyTree, drawn: PyTree, begins) -> tuple[PyTree, PyTree]:
        """A new perturbation; losses are credited to the sum of all perturbations so far."""
        added = lambda held, drawn: drawn + jnp.where(begins, 0, held)
        return drawn, jax.tree.map(added, held, drawn)
