"""The first-order meta-gradient: every inner gradient is a constant."""

from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from innerloop.adaptation import Adaptation, InnerStep
from innerloop.checks import check_signature
from innerloop.gradients.base import Fidelity, MetaGradient, TaskObjective, objective_after_run
from innerloop.gradients.inner import partly_stopped_inner_gradient, stopped_inner_gradient
from innerloop.gradients.loops import store_all
from innerloop.problem import Problem


class FirstOrder(MetaGradient):
    r"""Differentiates the updates, but not the inner gradients in them (FOMAML: Finn et al. 2017).

    With $g_t$ the inner gradient held constant, $\theta_{t+1} = \theta_t + u(g_t, \theta_t, \phi)$.
    For gradient descent from $\theta_0 = \phi$ this leaves
    $\nabla_\phi \approx \nabla L_\text{outer}(\theta_K)$; what `meta` does outside the inner
    gradient (an initialisation, a learned rate, a weight decay) is still differentiated. What it
    does inside the inner loss is not, nor is the `value` that is given to the optimizer.

    - `where`: `(t, params) -> bool, or a prefix tree of params with booleans`: hold constant only
      the gradients of these steps or leaves. The others are differentiated exactly, at the price of
      `Unroll`. t may be traced. (Steps: derivative-order annealing within the loop; leaves: exact
      for the head, first-order for the body.)

    Fidelity: biased, by the dropped second derivatives; exact where there are no inner steps.
    Memory: as a plain forward pass, plus the K inner gradients where an update reads meta (as a
    learned rate does); with `where`, as `Unroll()`.

    Raises `StructureError` while tracing where `where` gives anything but booleans.
    """

    where: Callable[[Any, PyTree], PyTree] | None = None

    def __check_init__(self):
        check_signature("where", self.where, ("t", "params"))

    def fidelity(self, adaptation: Adaptation) -> Fidelity:
        """Exact without inner steps, biased with them."""
        if adaptation.steps == 0:
            return Fidelity("exact", "There is no inner gradient to drop.")
        which = (
            "Every inner gradient" if self.where is None else "An inner gradient chosen by where"
        )
        return Fidelity(
            "biased",
            f"{which} is held constant: its derivatives with respect to parameters and "
            "meta-parameters are dropped.",
        )

    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """The meta-objective, with constants for inner gradients."""
        loop = store_all if self.where is None else self._hold_where
        return objective_after_run(problem, adaptation, stopped_inner_gradient, loop)

    def _hold_where(self, step: InnerStep, state: PyTree, steps: int) -> tuple[PyTree, Any]:
        def partly(state: PyTree, t: Any):
            held = lambda params: self.where(t, params)  # pyright: ignore[reportOptionalCall]
            return step(state, t, inner_gradient=partly_stopped_inner_gradient(held))

        return store_all(partly, state, steps)
