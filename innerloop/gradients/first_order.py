"""The first-order meta-gradient: every inner gradient is a constant."""

from innerloop.adaptation import Adaptation
from innerloop.gradients.base import Fidelity, MetaGradient, TaskObjective, objective_after_run
from innerloop.gradients.inner import stopped_inner_gradient
from innerloop.gradients.loops import store_all
from innerloop.problem import Problem


class FirstOrder(MetaGradient):
    r"""Differentiates the updates, but not the inner gradients in them (FOMAML: Finn et al. 2017).

    With $g_t$ the inner gradient held constant, $\theta_{t+1} = \theta_t + u(g_t, \theta_t, \phi)$.
    For gradient descent from $\theta_0 = \phi$ this leaves
    $\nabla_\phi \approx \nabla L_\text{outer}(\theta_K)$; what `meta` does outside the inner
    gradient (an initialisation, a learned rate, a weight decay) is still differentiated. What it
    does inside the inner loss is not, nor is the `value` that is given to the optimizer.

    Fidelity: biased, by the dropped second derivatives; exact where there are no inner steps.
    Memory: as a plain forward pass.
    """

    def fidelity(self, adaptation: Adaptation) -> Fidelity:
        """Exact without inner steps, biased with them."""
        if adaptation.steps == 0:
            return Fidelity("exact", "There is no inner gradient to drop.")
        return Fidelity(
            "biased",
            "Every inner gradient is held constant: its derivatives with respect to parameters and "
            "meta-parameters are dropped.",
        )

    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """The meta-objective, with constants for inner gradients."""
        return objective_after_run(problem, adaptation, stopped_inner_gradient, store_all)
