"""Between the exact meta-gradient and the first-order one: second derivatives that count less."""

import jax
import jax.numpy as jnp

from innerloop.adaptation import Adaptation, InnerGradient
from innerloop.checks import describe, is_floating
from innerloop.errors import StructureError
from innerloop.gradients.base import Fidelity, MetaGradient, TaskObjective, objective_after_run
from innerloop.gradients.inner import stopped_inner_gradient
from innerloop.gradients.unroll import Unroll
from innerloop.problem import Loss, Problem


class Damped(MetaGradient):
    r"""`Unroll` with the derivatives of every inner gradient multiplied by η.

    With $g_t$ the inner gradient and u the update, the backward pass through a step is

    $$\bar\theta_t = \bigl(1 + \partial_\theta u + \eta\, \partial_g u\,
      \nabla^2_\theta L_\text{inner}\bigr)^\top \bar\theta_{t+1}$$

    and so is what meta does inside the inner gradient, and what either does to the `value` that the
    optimizer is given. η = 1 is `Unroll()`, η = 0
    `FirstOrder()`. Learned optimizers come to train at the edge of stability, where the exact
    product over the steps grows without bound and says nothing (Metz et al. 2019, arXiv
    1810.10180). With η < 1 the backward pass is stable up to rates 1/η times as large as the
    forward pass.

    - `curvature`: η, from 0 to 1
    - `unroll`: how the inner loop is differentiated, with `checkpoint` and `mixed_mode`

    Fidelity: biased for η < 1, towards larger rates. Memory and time: those of `unroll`.

    Raises `StructureError` for a curvature outside [0, 1].
    """

    curvature: float
    unroll: Unroll = Unroll()

    def __check_init__(self):
        if not isinstance(self.curvature, int | float) or not 0 <= self.curvature <= 1:
            raise StructureError(
                "the share of the curvature is a number from 0 to 1",
                got=f"curvature={self.curvature!r}",
                expected="a float: 1.0 is exact, 0.0 first-order",
                write="Damped(curvature=0.9)",
            )
        if not isinstance(self.unroll, Unroll):
            raise StructureError(
                "the inner loop is differentiated by Unroll",
                got=f"unroll={describe(self.unroll)}",
                expected="Unroll, with the settings that suit the loop",
                write="Damped(curvature=0.9, unroll=Unroll(mixed_mode=True))",
            )

    def fidelity(self, adaptation: Adaptation) -> Fidelity:
        """Exact without inner steps, or with all of the curvature."""
        if self.curvature == 1 or adaptation.steps == 0:
            return self.unroll.fidelity(adaptation)
        return Fidelity(
            "biased",
            f"The derivatives of every inner gradient count {self.curvature} times.",
        )

    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """The meta-objective, with less of the inner gradients' derivatives."""
        if self.curvature == 0:
            inner_gradient = stopped_inner_gradient
        elif self.curvature == 1:
            inner_gradient = self.unroll.inner_gradient
        else:
            inner_gradient = _damped(self.unroll.inner_gradient, self.curvature)
        return objective_after_run(problem, adaptation, inner_gradient, self.unroll.loop)


def _damped(inner_gradient: InnerGradient, share: float) -> InnerGradient:
    def leaf(value):
        if not is_floating(value):
            return value
        constant = jax.lax.stop_gradient(value)
        live = jnp.asarray(share, value.dtype) * (value - constant)
        return jnp.where(jnp.isfinite(constant), constant + live, constant)

    def operator(loss: Loss):
        gradient = inner_gradient(loss)
        return lambda *args: jax.tree.map(leaf, gradient(*args))

    return operator
