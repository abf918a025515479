"""Differentiation through the inner loop, by an inner gradient and a loop."""

from innerloop.adaptation import Adaptation, InnerRule, Loop, Origin
from innerloop.arguments import instance
from innerloop.fidelity import ESTIMATE, Fidelity, combined, undefined
from innerloop.gradients.base import (
    MetaGradient,
    TaskObjective,
    held_state,
    objective_after_run,
)
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

    by Hessian-vector products; no Hessian is formed. Two arguments choose how this is computed, and
    every inner gradient works with every loop:

    | inner gradient | |
    |---|---|
    | `Exact()` | differentiated by a second reverse pass |
    | `MixedMode()` | differentiated by forward over reverse: the same gradient, less memory |
    | `HoldConstant(where)` | not differentiated: the first-order meta-gradient |
    | `Bound(norm, of)` | the cotangent that it passes back is shortened to a norm |

    | loop | |
    |---|---|
    | `StoreAll()` | keeps every intermediate value |
    | `Segments(length)` | keeps the state after every `length` steps, and repeats the steps |
    | `Binomial(slots)` | keeps a fixed number of states, for K in the thousands |
    | `Last(k, of)` | differentiates only the last k steps |

    If memory is short, try `Unroll(MixedMode(), Segments(1))` first. `FirstOrder`, `Truncated` and
    `Bounded` are named settings.

    Fidelity: exact, unless an argument drops something. Memory: every intermediate value of K inner
    steps, unless an argument keeps less.

    The second derivatives of an exact setting are exact too; only `MixedMode` in `Binomial` has
    none. A biased setting gives a derivative in meta alone and no second derivative, because the
    others would be wrong. `jax.jvp` of the objective itself does not exist with `MixedMode` and
    `Binomial`; JAX raises an error.

    Args:
        inner: How the inner gradient is differentiated in the backward pass.
        loop: How the inner steps are kept and differentiated.

    Raises:
        StructureError: If `inner` is not an inner gradient or `loop` is not a loop.
        GradientError: While it is differentiated, if a biased setting is differentiated twice or in
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
        """The combined fidelities of inner gradient and loop; undefined after a solver."""
        none = after_steps(adaptation)
        if none is not None:
            return none
        slots = [slot.fidelity(adaptation, problem) for slot in (self.inner, self.loop)]
        both = combined([*slots, held_state(problem)])
        if self.inner.task_by_task and both.kind != "exact":
            # The gradient is computed before the objective is differentiated, so every mode works.
            return both._replace(derivatives=ESTIMATE)
        if not any(slot.derivatives.forward for slot in slots):
            # Differentiated twice, a loop without forward mode needs forward mode of its steps.
            return both._replace(derivatives=both.derivatives._replace(second=False))
        return both

    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """The meta-objective, differentiable as inner gradient and loop define."""
        whole = objective_after_run(problem, adaptation, self.inner, self.loop)
        if self.fidelity(adaptation, problem).kind == "exact":
            return whole
        whole = in_meta_alone(gradient_name(self), whole)
        return own_gradient(gradient_name(self), whole) if self.inner.task_by_task else whole


def after_steps(adaptation: Adaptation) -> Fidelity | None:
    """The fidelity, undefined, of a gradient through a solver's steps; None without a solver."""
    if adaptation.origin is not Origin.SOLVER:
        return None
    return undefined(
        "The path of a solver that runs to convergence is not differentiated.",
        write="Implicit(), which differentiates the solution",
    )
