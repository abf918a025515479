"""An inner gradient whose backward pass is bounded."""

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
    r"""Another inner gradient, with the cotangent that it passes back shortened to a norm of c.

    With $g_t$ the inner gradient and u the update, the backward pass through a step is

    $$\bar\theta_t = (1 + \partial_\theta u)^\top \bar\theta_{t+1} + b \min\Bigl(1,
      \frac{c}{\lVert b \rVert}\Bigr), \qquad
      b = \nabla^2_\theta L_\text{inner}\, (\partial_g u)^\top \bar\theta_{t+1}$$

    (if the optimizer receives the `value`, b includes the derivative through it). If u reads g
    alone, $\bar\theta$ grows by at most c per step. Cotangents that come from the optimizer's
    state, or from an update that reads θ, are left unchanged. The exact product over the steps may
    grow by a factor at each step; the gradient of a run at the edge of stability is then
    uninformative (Metz et al. 2019, arXiv 1810.10180). The effect of the last steps on the loss is
    kept as it is, whereas `Clipped`, which shortens the sum over all steps, would scale it down
    with the rest. Graves 2013, "Generating sequences with recurrent neural networks"
    (arXiv 1308.0850), bounds the derivatives at each step of the backward pass.

    The norm is that of one task: the gradient of each task is computed separately. It is a
    derivative in meta alone and has no second derivative.

    Fidelity: biased if a step is shortened, in the effect of early steps on later ones; exact if
    none is. A small c is not equivalent to `HoldConstant`: the dependence of an inner gradient on
    meta is kept. Memory and time: those of `of`.

    Args:
        norm: The largest norm c > 0, in the units of the derivative of the outer loss in the
            parameters.
        of: The inner gradient that is bounded.

    Raises:
        StructureError: If the norm is not positive and finite, or `of` is not an inner gradient.
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
        """Biased, combined with the fidelity of `of`; that of `of` alone without inner steps."""
        of = self.of.fidelity(adaptation, problem)
        if adaptation.steps == 0:
            return of
        sentence = (
            f"What goes back through an inner gradient is shortened to a norm of {self.norm}."
        )
        return combined([Fidelity("biased", sentence, ESTIMATE), of])
