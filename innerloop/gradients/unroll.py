"""The exact meta-gradient: differentiate the inner loop as it ran."""

from innerloop.adaptation import Adaptation, InnerGradient, Loop
from innerloop.gradients.base import Fidelity, MetaGradient, TaskObjective, objective_after_run
from innerloop.gradients.checkpoint import Binomial, Segments, as_checkpoint
from innerloop.gradients.inner import exact_inner_gradient, named
from innerloop.gradients.mixed_mode import mixed_mode_inner_gradient
from innerloop.problem import Problem


class Unroll(MetaGradient):
    r"""Reverse-mode differentiation through every inner step (MAML: Finn et al. 2017).

    For K steps of gradient descent with rate α from $\theta_0 = \phi$,

    $$\nabla_\phi L_\text{outer}(\theta_K) =
      \Bigl[\prod_{t=0}^{K-1} \bigl(I - \alpha\, \nabla^2 L_\text{inner}(\theta_t)\bigr)\Bigr]
      \nabla L_\text{outer}(\theta_K),$$

    by Hessian-vector products; no Hessian is formed.

    - `checkpoint`: what is kept between the forward and the backward pass; the rest is computed
      again. None keeps every intermediate value. n keeps every n-th inner state (1: every state),
      as `Segments(n)` does, which has more settings. `Binomial(slots)` keeps a fixed number of
      states, for K in the thousands.
    - `mixed_mode`: differentiate the inner gradient by one forward-mode pass instead of a second
      reverse pass (MixFlow-MG: Kemaev et al. 2025, arXiv 2505.00793), so that no intermediate value
      of the inner backward pass is kept.

    The gradient is the same up to rounding, whatever the settings.

    Fidelity: exact. Memory: every intermediate value of K inner steps; with `checkpoint`, K/n
    inner states and the intermediate values of n steps, or `slots` states and those of one step.
    `checkpoint=1, mixed_mode=True` is the right first try where memory is short.

    Second derivatives are exact too, with `Binomial` by `jax.hessian` alone. Forward mode straight
    over it (`jax.jvp`, `jax.jacfwd`) needs `Unroll()` or `Unroll(checkpoint=n)`. What is not
    supported raises in JAX. Mixed mode takes second derivatives for symmetric, which they are
    unless the inner loss has a custom rule that is not its derivative (as straight-through
    estimators have).

    Raises `StructureError` for a `checkpoint` that is none of the above.
    """

    checkpoint: int | Segments | Binomial | None = None
    mixed_mode: bool = False

    def __check_init__(self):
        as_checkpoint(self.checkpoint)

    def fidelity(self, adaptation: Adaptation) -> Fidelity:
        """Exact after any adaptation."""
        return Fidelity("exact", "Nothing is dropped: the inner loop is differentiated as it ran.")

    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """The meta-objective, differentiable through every inner step."""
        return objective_after_run(problem, adaptation, self.inner_gradient, self.loop)

    @property
    def inner_gradient(self) -> InnerGradient:
        """What an adaptation is handed."""
        return named(mixed_mode_inner_gradient if self.mixed_mode else exact_inner_gradient)

    @property
    def loop(self) -> Loop:
        """How the inner steps are run."""
        return as_checkpoint(self.checkpoint).loop
