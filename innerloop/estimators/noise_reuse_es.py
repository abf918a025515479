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

    - `window`, `horizon`: inner steps per outer step and per run
    - `pairs`, `sigma`, `chunk`: n, σ, and how many pairs are computed at a time
    - `clip`: the most that an outer loss counts, also one that is not finite

    Fidelity: unbiased for the meta-objective smoothed by a Gaussian, while meta stands still; a
    change of meta during a run acts on what follows it. Variance: mostly lower than that of
    `PersistentES`, since noise does not add up, where the losses of a run depend on meta alike; it
    falls as 1/n and with the number of runs. Memory: `2 n` inner states and n perturbations per
    run; no derivative but the inner gradient is computed.

    Raises `StructureError` unless every horizon is a whole number of windows.
    """

    def fidelity(self) -> Fidelity:
        """Unbiased for the smoothed objective."""
        return Fidelity(
            "unbiased",
            f"The gradient of the meta-objective smoothed by a Gaussian of width {self.sigma}, "
            f"estimated from {self.pairs} antithetic pairs per run.",
        )

    def perturb(self, held: PyTree, drawn: PyTree, begins) -> tuple[PyTree, PyTree]:
        """The perturbation of the run's first window, in all of them."""
        kept = choose(begins, drawn, held)
        return kept, kept
