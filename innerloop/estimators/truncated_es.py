"""Evolution strategies within a window: what came before it is taken as given."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.estimators.horizons import as_tuple
from innerloop.estimators.online_windows import WindowResult
from innerloop.estimators.particles import AntitheticPairs
from innerloop.estimators.window import Window
from innerloop.gradients.base import Fidelity


class TruncatedES(AntitheticPairs):
    r"""Antithetic evolution strategies over one window of a long inner run (Metz et al. 2019).

    With $\theta_s$ the parameters at which the window begins, the same for all particles,

    $$\nabla_\phi \approx \frac{1}{2 n \sigma^2} \sum_{i=1}^{n}
      \bigl[L_k(\theta_s, \phi + \epsilon_i) - L_k(\theta_s, \phi - \epsilon_i)\bigr]\, \epsilon_i,
      \qquad \epsilon_i \sim \mathcal{N}(0, \sigma^2 I)$$

    (arXiv 1810.10180). The run goes on, and the value is taken, by $\phi$ itself.

    Fidelity: biased in the same way as `TruncatedUnroll`, whose gradient it smooths. Variance:
    lower than that of estimators that look beyond the window. Memory: one inner state per run. No
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
        """Unbiased for the smoothed objective where the window is the whole run."""
        smoothed = f"smoothed by a Gaussian of width {self.sigma}"
        if all(length == self.window for length in as_tuple(self.horizon)):
            return Fidelity("unbiased", f"The gradient of the meta-objective {smoothed}.")
        return Fidelity(
            "biased",
            f"The gradient of each window's losses {smoothed}; what meta-parameters did to the "
            "state at which it begins is dropped.",
        )

    def estimate(self, window: Window, meta: PyTree, key: PRNGKeyArray) -> WindowResult:
        """Losses of every pair, credited to its perturbation, and the run itself."""
        state = window.run.state
        both = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (2, *leaf.shape)), state)

        def pair(key: PRNGKeyArray):
            noise = self.drawn(key, meta)
            followed = self.follow(window, meta, both, noise)
            return followed.loss, noise, followed.finite

        losses, noise, finite = self.each_pair(pair, jax.random.split(key, self.pairs))
        _, gradient = self.gradient(losses, noise)
        centre = window.follow(meta, state)
        diverged = jnp.sum(~finite, dtype=jnp.int32) + jnp.where(centre.finite, 0, 1)
        return WindowResult(centre, gradient, diverged)
