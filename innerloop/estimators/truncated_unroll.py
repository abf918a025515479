"""Truncated backpropagation: differentiate one window, take what came before as given."""

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.arguments import at_least, instance
from innerloop.errors import StructureError
from innerloop.estimators.horizons import as_tuple
from innerloop.estimators.online_windows import OnlineWindows, WindowResult
from innerloop.estimators.window import Window
from innerloop.fidelity import Fidelity, combined
from innerloop.gradients.last import Last
from innerloop.gradients.names import gradient_name
from innerloop.gradients.reach import reached_leaves, watched_value_and_grad
from innerloop.gradients.unroll import Unroll


class TruncatedUnroll(OnlineWindows):
    r"""Reverse mode through one window of a long inner run (Williams & Peng 1990: TBPTT).

    With $\theta_s$ the parameters at which the window begins, taken as a constant,

    $$\nabla_\phi \approx \nabla_\phi \sum_{t=s+1}^{s+W}
      w_t\, L_\text{outer}(\theta_t(\theta_s, \phi)).$$

    Fidelity: biased, because the effect of a meta-parameter through the steps before the window is
    dropped; the sign may be wrong. With W = T it is that of `unroll`. Memory: as `unroll` over W
    steps.

    Args:
        problem: What is optimised.
        adaptation: How one task is learned; its own number of steps is not used.
        tasks: A task distribution.
        window: W, the inner steps that are differentiated.
        horizon: Inner steps of a run, or a tuple of numbers of steps that each run draws one from.
        batch: The number of inner runs.
        overlap: With o > 0, a window goes back o steps behind the losses that are its own, so that
            each loss but those of the first window is differentiated through at least o + 1 steps.
            Windows advance by W - o.
        unroll: How a window is differentiated.
        clip: The largest value that an outer loss counts with; beyond it the gradient is zero.
        chunk: Runs that are computed at a time; None for all at once.
        schedule: As in `WholeTasks`.

    Raises:
        StructureError: A horizon is not a whole number of windows, or an argument is out of range.
        GradientError: The adaptation has no steps to stop between.
    """

    overlap: int = at_least(0, default=0)  # pyright: ignore[reportIncompatibleMethodOverride]
    unroll: Unroll = instance(
        Unroll, what="an Unroll", such_as="Unroll(loop=Segments(1))", default=Unroll()
    )

    def __check_init__(self):
        if isinstance(self.unroll.loop, Last):
            raise StructureError(
                "a window of which only the last steps are differentiated is a shorter window",
                got=f"unroll={gradient_name(self.unroll)}",
                expected="a loop that differentiates every step of the window",
                write="TruncatedUnroll(..., unroll=Unroll())",
            )

    def fidelity(self) -> Fidelity:
        """Exact where the window is the whole run."""
        if all(length == self.window for length in as_tuple(self.horizon)):
            return self.unroll.fidelity(self.adaptation, self.problem)
        truncated = Fidelity(
            "biased",
            f"The state at which each window of {self.window} steps begins is a constant: what "
            "meta-parameters did to it is dropped.",
        )
        return combined([truncated, self.unroll.fidelity(self.adaptation, self.problem)])

    def estimate(self, window: Window, meta: PyTree, key: PRNGKeyArray) -> WindowResult:
        """Loss and gradient of the window."""

        def loss(meta: PyTree):
            state = window.run.state
            followed = window.follow(meta, state, self.unroll.inner, self.unroll.loop)
            return followed.loss, followed

        (_, followed), gradient, unreached = watched_value_and_grad(loss, meta)
        diverged = (~followed.finite).astype(jnp.int32)
        return WindowResult(followed, reached_leaves(gradient, unreached), diverged)
