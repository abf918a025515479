"""The exact meta-gradient: differentiate the inner loop as it ran."""

from innerloop.adaptation import Adaptation
from innerloop.gradients.base import Fidelity, MetaGradient, TaskObjective, objective_after_run
from innerloop.gradients.inner import exact_inner_gradient
from innerloop.gradients.loops import store_all
from innerloop.problem import Problem


class Unroll(MetaGradient):
    r"""Reverse-mode differentiation through every inner step (MAML: Finn et al. 2017).

    For K steps of gradient descent with rate α from $\theta_0 = \phi$,

    $$\nabla_\phi L_\text{outer}(\theta_K) =
      \Bigl[\prod_{t=0}^{K-1} \bigl(I - \alpha\, \nabla^2 L_\text{inner}(\theta_t)\bigr)\Bigr]
      \nabla L_\text{outer}(\theta_K),$$

    by Hessian-vector products; no Hessian is formed.

    Fidelity: exact. Memory: every intermediate value of the K inner steps.
    """

    def fidelity(self, adaptation: Adaptation) -> Fidelity:
        """Exact after any adaptation."""
        return Fidelity("exact", "Nothing is dropped: the inner loop is differentiated as it ran.")

    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """The meta-objective, differentiable through every inner step."""
        return objective_after_run(problem, adaptation, exact_inner_gradient, store_all)
