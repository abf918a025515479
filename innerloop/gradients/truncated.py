"""The truncated meta-gradient: only the last inner steps are differentiated."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from innerloop.adaptation import Adaptation, InnerStep
from innerloop.adaptation.constant import constant
from innerloop.checks import check_count, is_floating
from innerloop.gradients.base import Fidelity, MetaGradient, TaskObjective, objective_after_run
from innerloop.gradients.inner import exact_inner_gradient
from innerloop.gradients.loops import concatenate, store_all
from innerloop.problem import Problem


class Truncated(MetaGradient):
    r"""Differentiates the last k of K inner steps (Shaban et al. 2019, arXiv 1810.10667).

    The steps before them are constants, and what they pass on to the initial state $s_0$ is taken
    as the identity: at step K − k every floating-point leaf of the state becomes

    $$s \leftarrow \operatorname{stop}(s) + \bigl(s_0 - \operatorname{stop}(s_0)\bigr),$$

    so that a MAML initialisation still gets a gradient. With k = 0 and gradient descent that is
    FOMAML's.

    - `last`: k >= 0. For k >= K it equals `Unroll()`.
    - `identity`: False cuts the bridge, as in the paper: what meta does before step K − k gets no
      gradient at all.

    Losses before step K − k (of `step_weights`) see the bridged state too.

    Fidelity: biased for k < K; the bias falls off as the skipped steps contract. Memory: every
    intermediate value of k inner steps.

    Raises `StructureError` for a negative k.
    """

    last: int
    identity: bool = True

    def __check_init__(self):
        check_count("last", self.last, 0, write="Truncated(last=5)")

    def fidelity(self, adaptation: Adaptation) -> Fidelity:
        """Exact where all steps are differentiated."""
        if self.last >= (adaptation.steps or 0):
            return Fidelity("exact", "Every inner step is differentiated.")
        bridge = "taken as the identity" if self.identity else "dropped"
        return Fidelity(
            "biased",
            f"All but the last {self.last} inner steps are constants; what they pass on to the "
            f"initial state is {bridge}.",
        )

    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """The meta-objective, differentiable through the last inner steps."""
        return objective_after_run(problem, adaptation, exact_inner_gradient, self._loop)

    def _loop(self, step: InnerStep, start: PyTree, steps: int) -> tuple[PyTree, Any]:
        skipped = max(steps - self.last, 0)
        if skipped == 0:
            return store_all(step, start, steps)
        bridge = lambda state: self._bridge(state, start)

        def skip(state: PyTree, t: Any):
            state, info = constant(step.advance)(state, t)
            return state, (info, step.observe(bridge(state), t + 1))

        state, outputs = store_all(skip, jax.lax.stop_gradient(start), skipped)
        state = bridge(state)
        if self.last:
            state, rest = store_all(step, state, self.last, np.int32(skipped))
            outputs = concatenate(outputs, rest)
        return state, outputs

    def _bridge(self, state: PyTree, start: PyTree) -> PyTree:
        def leaf(now, first):
            if not self.identity or not is_floating(now):
                return now
            link = first - jax.lax.stop_gradient(first)
            return now + jnp.where(jnp.isfinite(first), link, 0)  # inf - inf is not zero

        return jax.tree.map(leaf, jax.lax.stop_gradient(state), start)
