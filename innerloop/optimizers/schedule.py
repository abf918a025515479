"""A learned schedule of the learning rate."""

import math

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.arguments import at_least, positive
from innerloop.optimizers.base import Direction, LearnedOptimizer, part_of, scale_by_scheduled_rates
from innerloop.precision import default_float


class LearnedSchedule(LearnedOptimizer):
    r"""A learning rate that is a learned function of the step.

    $$u_t = -e^{\rho(t)}\, d(g_t)$$

    where ρ is linear between `knots` values at equal distances, the first at step 0 and the last at
    step `horizon - 1`. Later steps use the last value. The meta-parameters are `{"log_rates":
    (knots,)}`, so the rate is positive and may fall by orders of magnitude.

    Args:
        horizon: The number of steps that the schedule spans, at least 2.
        knots: The number of learned values, at least 2.
        direction: The direction d, by default the gradient itself (SGD); see
            `LearnedRates`.
        rate: The rate of all steps before meta-training.

    Raises:
        StructureError: If there are fewer than two knots or steps, or the rate is not positive.
    """

    horizon: int = at_least(2, static=True, default=100)
    knots: int = at_least(2, static=True, default=5)
    direction: Direction = eqx.field(static=True, default=optax.identity)
    rate: float = positive(static=True, default=0.01)

    def init(self, key: PRNGKeyArray, params: PyTree[Array]) -> PyTree[Array]:
        """`{"log_rates": (knots,)}`, all the same; the key is not used."""
        return {"log_rates": jnp.full(self.knots, math.log(self.rate), default_float())}

    def __call__(self, meta: PyTree) -> optax.GradientTransformation:
        values = part_of(self, meta, "log_rates")
        at = jnp.linspace(0, self.horizon - 1, self.knots, dtype=values.dtype)

        def rate(step: Array) -> Array:
            return jnp.exp(jnp.interp(step.astype(values.dtype), at, values))

        return optax.chain(self.direction(), scale_by_scheduled_rates(rate))
