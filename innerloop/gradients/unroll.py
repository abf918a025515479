"""Differentiation through the inner loop: an inner gradient and a loop."""

from innerloop.adaptation import Adaptation, InnerRule, Loop, Origin
from innerloop.arguments import instance
from innerloop.fidelity import ESTIMATE, Fidelity, combined, undefined
from innerloop.gradients.base import MetaGradient, TaskObjective, objective_after_run
from innerloop.gradients.inner import Exact
from innerloop.gradients.loops import StoreAll
from innerloop.gradients.names import gradient_name
from innerloop.gradients.surrogate import in_meta_alone, own_gradient
from innerloop.problem import Problem


class Unroll(MetaGradient):
    r"""Reverse-mode differentiation through the inner steps (MAML: Finn et al. 2017).

    For K steps of gradient descent with rate α from $\theta_0 = \phi$,

    $$\nabla_\phi L_\text{outer}(\theta_K) =
      \Bigl[\prod_{t=0}^{K-1} \bigl(I - \alpha\, \nabla^2 L_\text{inner}(\theta_t)\bigr)\Bigr]
      \nabla L_\text{outer}(\theta_K),$$

    by Hessian-vector products; no Hessian is formed. Two slots say how, and every inner gradient
    goes with every loop:

    | inner gradient | |
    |---|---|
    | `Exact()` | differentiated by a second reverse pass |
    | `MixedMode()` | differentiated by forward over reverse: the same gradient, less memory |
    | `HoldConstant(where)` | not differentiated: the first-order meta-gradient |
    | `Bound(norm, of)` | what goes back through it is shortened to a norm |

    | loop | |
    |---|---|
    | `StoreAll()` | keeps every intermediate value |
    | `Segments(length)` | keeps the state after every so many steps, and takes the steps again |
    | `Binomial(slots)` | keeps a fixed number of states, for K in the thousands |
    | `Last(k, of)` | differentiates the last k steps alone |

    `Unroll(MixedMode(), Segments(1))` is the right first try where memory is short. `FirstOrder`,
    `Truncated` and `Bounded` are named settings.

    Fidelity: exact, unless a slot drops something. Memory: every intermediate value of K inner
    steps, unless a slot keeps less.

    The second derivatives of an exact setting are exact, too; only `MixedMode` in `Binomial` has
    none. A biased setting gives a derivative
    in meta alone, and no second derivative: they would be wrong. `jax.jvp` straight over the
    objective does not exist with `MixedMode` and `Binomial`, and JAX says so.

    Args:
        inner: what the inner gradient is for the backward pass
        loop: how the inner steps are kept and differentiated

    Raises:
        StructureError: a slot is given anything else.
        GradientError: while it is differentiated: a biased setting is differentiated twice, or in
            anything but meta.
    """

    inner: InnerRule = instance(
        InnerRule,
        what="an inner gradient, such as Exact(), MixedMode(), HoldConstant() or Bound(norm)",
        such_as="MixedMode()",
        default=Exact(),
    )
    loop: Loop = instance(
        Loop,
        what="a loop, such as StoreAll(), Segments(), Binomial(slots) or Last(k)",
        such_as="Segments(1)",
        default=StoreAll(),
    )

    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """The fidelities of both slots combined. There is none after a solver."""
        none = after_steps(adaptation)
        if none is not None:
            return none
        slots = [slot.fidelity(adaptation, problem) for slot in (self.inner, self.loop)]
        both = combined(slots)
        if self.inner.task_by_task and both.kind != "exact":
            # The gradient is taken before the objective is differentiated, in whatever mode.
            return both._replace(derivatives=ESTIMATE)
        if not any(slot.derivatives.forward for slot in slots):
            # A loop without forward mode leaves its steps to it when it is differentiated twice.
            return both._replace(derivatives=both.derivatives._replace(second=False))
        return both

    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """The meta-objective, differentiable as the two slots say."""
        whole = objective_after_run(problem, adaptation, self.inner, self.loop)
        if self.fidelity(adaptation, problem).kind == "exact":
            return whole
        whole = in_meta_alone(gradient_name(self), whole)
        return own_gradient(gradient_name(self), whole) if self.inner.task_by_task else whole


def after_steps(adaptation: Adaptation) -> Fidelity | None:
    """The fidelity of a gradient by way of the inner steps, where there is none; None elsewhere."""
    if adaptation.origin is not Origin.SOLVER:
        return None
    return undefined(
        "The way of a solver that runs to convergence is not differentiated.",
        "Implicit(), which differentiates the solution",
    )
