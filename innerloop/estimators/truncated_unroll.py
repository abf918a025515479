"""Truncated backpropagation: differentiate one window, take what came before as given."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import Adaptation
from innerloop.checks import describe
from innerloop.errors import StructureError
from innerloop.estimators.horizons import Horizon, as_tuple
from innerloop.estimators.online_windows import Estimate, OnlineGradient
from innerloop.estimators.window import Window
from innerloop.fidelity import Fidelity, combined
from innerloop.gradients.last import Last
from innerloop.gradients.names import gradient_name
from innerloop.gradients.reach import detached, reached_leaves, watch_reach
from innerloop.gradients.unroll import Unroll
from innerloop.trees import leaf_names


class TruncatedUnroll(OnlineGradient):
    r"""Reverse mode through one window of a long inner run (Williams & Peng 1990: TBPTT).

    With $\theta_s$ the parameters at which the window begins, taken as a constant,

    $$\nabla_\phi \approx \nabla_\phi \sum_{t=s+1}^{s+W}
      w_t\, L_\text{outer}(\theta_t(\theta_s, \phi)).$$

    - `window`: W, the steps that are differentiated; `horizon`: steps of a whole run
    - `overlap`: with o > 0, a window goes back o steps behind the losses that are its own, so that
      each loss but those of the first window is differentiated through at least o + 1 steps.
      Windows advance by W − o.
    - `unroll`: how the window is differentiated, such as `Unroll(MixedMode(), Segments(1))`
    - `clip`: the most that an outer loss counts; beyond it the gradient is zero

    Fidelity: biased, by what a meta-parameter does through the steps before the window; it may be
    wrong in sign. Exact with W = T, where it is `unroll` itself. Memory: as `unroll` over W steps.

    Raises `StructureError` unless every horizon is a whole number of windows, and `DetachedError`
    where no meta-parameter reaches the loss.
    """

    window: int
    horizon: Horizon
    overlap: int = 0
    unroll: Unroll = Unroll()
    clip: float | None = eqx.field(default=None, kw_only=True)

    def __check_init__(self):
        if not isinstance(self.unroll, Unroll):
            raise StructureError(
                "a window is differentiated by Unroll",
                got=f"unroll={describe(self.unroll)}",
                expected="Unroll, with the settings that suit the window",
                write="TruncatedUnroll(window=20, horizon=200, unroll=Unroll(loop=Segments(1)))",
            )
        if isinstance(self.unroll.loop, Last):
            raise StructureError(
                "a window of which only the last steps are differentiated is a shorter window",
                got=f"unroll={gradient_name(self.unroll)}",
                expected="a loop that differentiates every step of the window",
                write=f"TruncatedUnroll(window={self.unroll.loop.k or 1}, horizon=...)",
            )

    def fidelity(self, adaptation: Adaptation) -> Fidelity:
        """Exact where the window is the whole run."""
        if all(length == self.window for length in as_tuple(self.horizon)):
            return self.unroll.fidelity(adaptation)
        truncated = Fidelity(
            "biased",
            f"The state at which each window of {self.window} steps begins is a constant: what "
            "meta-parameters did to it is dropped.",
        )
        return combined([truncated, self.unroll.fidelity(adaptation)])

    def start(self, state: PyTree, meta: PyTree) -> PyTree:
        """The inner state."""
        return state

    def estimate(self, window: Window, meta: PyTree, state: PyTree, key: PRNGKeyArray) -> Estimate:
        """Loss and gradient of the window."""
        mark, unreached = watch_reach(meta)

        def loss(meta: PyTree):
            result = window.follow(mark(meta), state, self.unroll.inner, self.unroll.loop)
            return result.loss, result

        (_, result), gradient = jax.value_and_grad(loss, has_aux=True)(meta)
        leaves = reached_leaves(gradient, unreached())
        if all(leaf is None for leaf in leaves):
            raise detached(", ".join(leaf_names(meta)))
        return Estimate(
            loss=result.loss,
            gradient=leaves,
            state=result.state,
            metrics=result.metrics,
            info=result.info,
            diverged=jnp.where(result.finite, 0, 1).astype(jnp.int32),
            alive=result.finite,
        )
