"""A loop that differentiates only the last inner steps."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from innerloop.adaptation import Adaptation, InnerStep, Loop
from innerloop.adaptation.constant import constant
from innerloop.arguments import at_least, flag, instance
from innerloop.checks import is_inexact
from innerloop.fidelity import ESTIMATE, Fidelity, combined
from innerloop.gradients.loops import StoreAll, concatenate, store_all
from innerloop.problem import Problem


class Last(Loop):
    r"""Differentiates the last k of K inner steps (Shaban et al. 2019, arXiv 1810.10667).

    The steps before them are constants, and their derivative in the initial state $s_0$ is taken to
    be the identity: at step K − k, every floating-point leaf of the state becomes

    $$s \leftarrow \operatorname{stop}(s) + \bigl(s_0 - \operatorname{stop}(s_0)\bigr),$$

    so that a MAML initialisation still gets a gradient. With k = 0 and gradient descent, the
    gradient is that of FOMAML. The losses before step K − k (with `step_weights`) are taken at the
    parameters of such states too.

    Fidelity: biased for k < K; the bias shrinks exponentially with k where the last steps contract.
    The gradient has no second derivative. Memory: that of k inner steps in the loop `of`.

    Args:
        k: How many steps are differentiated, at least 0. For k >= K the loop is `of`.
        identity: Whether to take the derivative of the skipped steps to be the identity. If False,
            it is zero, as in the paper: the dependence on meta before step K − k gets no gradient.
        of: The loop over the last k steps.

    Raises:
        StructureError: If `k` is negative, or `of` is not a loop.
    """

    k: int = at_least(0, such_as=5)
    identity: bool = flag(default=True)
    of: Loop = instance(
        Loop, what="a loop over inner steps", such_as="Segments(1)", default=StoreAll()
    )

    def __call__(self, step: InnerStep, state: PyTree, steps: int) -> tuple[PyTree, Any]:
        """See `Loop`."""
        start, skipped = state, max(steps - self.k, 0)
        if skipped == 0:
            return self.of(step, start, steps)
        bridge = lambda state: self._bridge(state, start)

        def skip(state: PyTree, t: Any):
            state, info = constant(step.advance)(state, t)
            return state, (info, step.observe(bridge(state), t + 1))

        state, outputs = store_all(skip, jax.lax.stop_gradient(start), skipped)
        state = bridge(state)
        if self.k:
            state, rest = self.of(step.after(skipped), state, self.k)
            outputs = concatenate(outputs, rest)
        return state, outputs

    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """Biased; that of `of` if all steps are differentiated."""
        of = self.of.fidelity(adaptation, problem)
        if self.k >= (adaptation.steps or 0):
            return combined([Fidelity("exact", "Every inner step is differentiated."), of])
        bridge = "taken as the identity" if self.identity else "dropped"
        sentence = (
            f"All but the last {self.k} inner steps are constants; what they pass on to the "
            f"initial state is {bridge}."
        )
        if self.k == 0:  # `of` is not used
            return Fidelity("biased", sentence, ESTIMATE, takes=1)
        return combined([Fidelity("biased", sentence, ESTIMATE), of])

    def _bridge(self, state: PyTree, start: PyTree) -> PyTree:
        def leaf(now, first):
            if not self.identity or not is_inexact(now):
                return now
            link = first - jax.lax.stop_gradient(first)
            return now + jnp.where(jnp.isfinite(first), link, 0)  # inf - inf is NaN, not zero

        return jax.tree.map(leaf, jax.lax.stop_gradient(state), start)
