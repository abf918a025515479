"""The exact meta-gradient, but for a bound on what each inner gradient sends back."""

import jax
from jaxtyping import PyTree

from innerloop.adaptation import Adaptation, InnerGradient
from innerloop.checks import check_positive, describe
from innerloop.errors import StructureError
from innerloop.gradients.base import Fidelity, MetaGradient, TaskObjective, objective_after_run
from innerloop.gradients.surrogate import own_gradient
from innerloop.gradients.unroll import Unroll
from innerloop.problem import Loss, Problem
from innerloop.trees import shorten


class Bounded(MetaGradient):
    r"""`Unroll`, where what goes back through an inner gradient is shortened to a norm of c.

    With $g_t$ the inner gradient and u the update, the backward pass through a step is

    $$\bar\theta_t = (1 + \partial_\theta u)^\top \bar\theta_{t+1} + b \min\Bigl(1,
      \frac{c}{\lVert b \rVert}\Bigr), \qquad
      b = \nabla^2_\theta L_\text{inner}\, (\partial_g u)^\top \bar\theta_{t+1}$$

    (where the optimizer is given the `value`, b has its part too). Where u reads g alone,
    $\bar\theta$ grows by at most c per step; an optimizer with a state, or one that reads θ, has
    ways of its own, which are left as they are. The exact product over the steps may grow by a
    factor at each, and the gradient of a run at the edge of stability then says nothing (Metz et
    al. 2019, arXiv 1810.10180). What the last steps do to the loss is kept as it
    is, while `Clipped`, which shortens the sum over all steps, would make it as small as the rest
    is large. To bound the derivatives in each step of the backward pass is Graves 2013, "Generating
    sequences with recurrent neural networks" (arXiv 1308.0850).

    - `norm`: c > 0, in the units of the derivative of the outer loss in the parameters
    - `unroll`: how the inner loop is differentiated, with `checkpoint` and `mixed_mode`

    Fidelity: biased where a step is shortened, against what early steps do to late ones; exact
    where none is. Small c is not `FirstOrder`: what meta does inside an inner gradient is kept.
    Memory and time: those of `unroll`.

    Raises `StructureError` for a norm that is not positive and finite, `DetachedError` where no
    meta-parameter reaches the loss, `GradientError` when differentiated twice or in anything but
    meta.
    """

    norm: float
    unroll: Unroll = Unroll()

    def __check_init__(self):
        what = "what goes back through a step is shortened to a positive norm"
        check_positive("norm", self.norm, what, write="Bounded(norm=1.0)")
        if not isinstance(self.unroll, Unroll):
            raise StructureError(
                "the inner loop is differentiated by Unroll",
                got=f"unroll={describe(self.unroll)}",
                expected="Unroll, with the settings that suit the loop",
                write="Bounded(norm=1.0, unroll=Unroll(mixed_mode=True))",
            )

    def fidelity(self, adaptation: Adaptation) -> Fidelity:
        """Exact without inner steps."""
        if adaptation.steps == 0:
            return self.unroll.fidelity(adaptation)
        return Fidelity(
            "biased",
            f"What goes back through an inner gradient is shortened to a norm of {self.norm}.",
        )

    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """The meta-objective, with a bound at each step of its backward pass."""
        inner_gradient = _bounded(self.unroll.inner_gradient, self.norm)
        whole = objective_after_run(problem, adaptation, inner_gradient, self.unroll.loop)
        return own_gradient("Bounded()", whole)


def _bounded(inner_gradient: InnerGradient, norm: float) -> InnerGradient:
    @jax.custom_vjp
    def bound(params: PyTree):
        return params

    bound.defvjp(lambda params: (params, None), lambda _, back: (shorten(back, norm),))

    def operator(loss: Loss):
        gradient = inner_gradient(loss)
        return lambda params, *given: gradient(bound(params), *given)

    return operator
