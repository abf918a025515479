"""Sinusoid regression, the smallest few-shot problem."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from innerloop.arguments import at_least, interval
from innerloop.problem import Episode, Examples
from innerloop.tasks.base import OneByOne


class SinusoidTasks(OneByOne):
    r"""Regression to a sine wave of unknown amplitude and phase.

    $$y = A \sin(x - p), \qquad A \sim U(\text{amplitude}), \; p \sim U(\text{phase}), \;
      x \sim U(\text{inputs})$$

    One amplitude and one phase per task; no noise. Support and query are `Examples` with inputs
    `(rows, 1)` and targets `(rows, 1)` in JAX's default floating-point type.

    Source: Finn, Abbeel and Levine 2017, section 5.1; the sign of the phase is that of the authors'
    code (github.com/cbfinn/maml, `data_generator.py`).

    Args:
        shots: Rows of the support set.
        queries: Rows of the query set.
        amplitude: `(low, high)`, the range of A.
        phase: `(low, high)`, the range of p in radians.
        inputs: `(low, high)`, the range of x.

    Raises:
        StructureError: If `shots` or `queries` is below 1, or a range is empty or not finite.
    """

    shots: int = at_least(1, such_as=10, static=True)
    queries: int = at_least(1, such_as=10, static=True)
    amplitude: tuple[float, float] = interval(static=True, default=(0.1, 5.0))
    phase: tuple[float, float] = interval(static=True, default=(0.0, math.pi))
    inputs: tuple[float, float] = interval(static=True, default=(-5.0, 5.0))

    def sample_one(self, key: PRNGKeyArray) -> Episode:
        """One task."""
        amplitude_key, phase_key, support_key, query_key = jax.random.split(key, 4)
        amplitude = _uniform(amplitude_key, (), self.amplitude)
        phase = _uniform(phase_key, (), self.phase)

        def examples(key: PRNGKeyArray, rows: int) -> Examples:
            inputs = _uniform(key, (rows, 1), self.inputs)
            return Examples(inputs, amplitude * jnp.sin(inputs - phase))

        return Episode(examples(support_key, self.shots), examples(query_key, self.queries))


def _uniform(key: PRNGKeyArray, shape: tuple[int, ...], bounds: tuple[float, float]) -> jax.Array:
    low, high = bounds
    return jax.random.uniform(key, shape, minval=low, maxval=high)
