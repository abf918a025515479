"""A bound on what each inner gradient sends back."""

from typing import Any, ClassVar

import jax
from jaxtyping import PyTree

from innerloop.adaptation import Adaptation, InnerGradient, InnerRule
from innerloop.arguments import instance, positive
from innerloop.fidelity import ESTIMATE, Fidelity, combined
from innerloop.gradients.inner import Exact
from innerloop.problem import Loss, Problem
from innerloop.trees import shorten


class Bound(InnerRule):
    r"""Another inner gradient, where what goes back through it is shortened to a norm of c.

    With $g_t$ the inner gradient and u the update, the backward pass through a step is

    $$\bar\theta_t = (1 + \partial_\theta u)^\top \bar\theta_{t+1} + b \min\Bigl(1,
      \frac{c}{\lVert b \rVert}\Bigr), \qquad
      b = \nabla^2_\theta L_\text{inner}\, (\partial_g u)^\top \bar\theta_{t+1}$$

    (where the optimizer is given the `value`, b has its part too). Where u reads g alone,
    $\bar\theta$ grows by at most c per step; what an optimizer's state sends back, and what an
    update that reads θ sends back, is left as it is. The exact product over the steps may grow by a
    factor at each, and the gradient of a run at the edge of stability then says nothing (Metz et
    al. 2019, arXiv 1810.10180). What the last steps do to the loss is kept as it is, while
    `Clipped`, which shortens the sum over all steps, would make it as small as the rest is large.
    To bound the derivatives in each step of the backward pass is Graves 2013, "Generating
    sequences with recurrent neural networks" (arXiv 1308.0850).

    The norm is that of one task: the gradient of each task is taken by itself. It is a derivative
    in meta alone, and has no second derivative.

    Fidelity: biased where a step is shortened, against what early steps do to late ones; exact
    where none is. Small c is not `HoldConstant`: what meta does inside an inner gradient is kept.
    Memory and time: as with `of`.

    Args:
        norm: c > 0, in the units of the derivative of the outer loss in the parameters
        of: the inner gradient that is bounded

    Raises:
        StructureError: the norm is not positive and finite, or `of` is no inner gradient.
    """

    norm: float = positive()
    of: InnerRule = instance(
        InnerRule, what="an inner gradient", such_as="MixedMode()", default=Exact()
    )
    task_by_task: ClassVar[bool] = True

    def at(self, t: Any) -> InnerGradient:
        """See `InnerRule`."""
        inner_gradient = self.of.at(t)

        @jax.custom_vjp
        def bound(params: PyTree):
            return params

        bound.defvjp(lambda params: (params, None), lambda _, back: (shorten(back, self.norm),))

        def operator(loss: Loss):
            gradient = inner_gradient(loss)
            return lambda params, *given: gradient(bound(params), *given)

        return operator

    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """Exact without inner steps."""
        of = self.of.fidelity(adaptation, problem)
        if adaptation.steps == 0:
            return of
        sentence = (
            f"What goes back through an inner gradient is shortened to a norm of {self.norm}."
        )
        return combined([Fidelity("biased", sentence, ESTIMATE), of])
