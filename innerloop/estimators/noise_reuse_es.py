"""Evolution strategies that keep one perturbation for a whole run, one window at a time."""

from jaxtyping import PyTree

from innerloop.estimators.particles import CarriedPairs
from innerloop.estimators.window import choose
from innerloop.gradients.base import Fidelity


class NoiseReuseES(CarriedPairs):
    r"""Noise-reuse evolution strategies, NRES (Li et al. 2023, arXiv 2304.12180).

    Each pair of particles keeps the perturbation $\epsilon$ that its run began with, and its inner
    states:

    $$\nabla_\phi \approx \frac{1}{2 n \sigma^2} \sum_{i=1}^{n}
      \bigl[L_k(\phi + \epsilon_i) - L_k(\phi - \epsilon_i)\bigr]\, \epsilon_i,
      \qquad \epsilon_i \sim \mathcal{N}(0, \sigma^2 I)$$

    with $L_k$ the weighted losses of window k. Over a whole run it sums to the estimate of
    `EvolutionStrategies`. The value is the mean loss of the particles.

    Fidelity: unbiased for the meta-objective smoothed by a Gaussian, as long as meta does not
    change; a change of meta during a run affects only the windows after it. Variance: mostly lower
    than that of `PersistentES`, because the noise does not add up, where all losses of a run depend
    on meta in a similar way; it falls as 1/n and with the number of runs. Memory: `2 n` inner
    states and n perturbations per run. No derivative but the inner gradient is computed.

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
            f"The gradient of the meta-objective smoothed by a Gaussian of width {self.sigma}, "
            f"estimated from {self.pairs} antithetic pairs per run.",
        )

    def perturb(self, held: PyTree, drawn: PyTree, begins) -> tuple[PyTree, PyTree]:
        """The perturbation of the run's first window, in every window."""
        kept = choose(begins, drawn, held)
        return kept, kept
