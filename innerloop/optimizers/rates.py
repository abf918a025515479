"""Learned learning rates: one for all parameters, one for each array, one for each number."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.arguments import positive
from innerloop.optimizers.base import Direction, LearnedOptimizer, part_of, scale_by_rates
from innerloop.precision import default_float


class LearnedRates(LearnedOptimizer):
    r"""Learned learning rates, positive by construction.

    $$u = -e^\rho \odot d(g)$$

    The meta-parameters are `{"log_rates": ρ}`; subclasses say how many rates there are.

    Args:
        direction: The direction d, by default the gradient itself (SGD). `functools.partial(
            optax.scale_by_adam, eps_root=1e-16)` gives Adam, whose second derivative at a zero
            gradient is infinite without `eps_root`.
        rate: $e^\rho$ before meta-training.

    Raises:
        StructureError: If the rate is not positive and finite, and while tracing if the rates do
            not fit the parameters.
    """

    direction: Direction = eqx.field(static=True, default=optax.identity)
    rate: float = positive(static=True, default=0.01)

    def __call__(self, meta: PyTree) -> optax.GradientTransformation:
        rates = jax.tree.map(jnp.exp, part_of(self, meta, "log_rates"))
        return optax.chain(self.direction(), scale_by_rates(rates))


class ScalarRate(LearnedRates):
    """One learned rate for all parameters: ρ is a scalar. Arguments: see `LearnedRates`."""

    def init(self, key: PRNGKeyArray, params: PyTree[Array]) -> PyTree[Array]:
        """`{"log_rates": scalar}`; the key is not used."""
        return {"log_rates": jnp.full((), math.log(self.rate), default_float())}


class LayerRates(LearnedRates):
    """A learned rate for each array of the parameters: ρ is a tree like the parameters, of scalars.

    Arguments: see `LearnedRates`.
    """

    def init(self, key: PRNGKeyArray, params: PyTree[Array]) -> PyTree[Array]:
        """`{"log_rates": a scalar for each array}`; the key is not used."""
        start = math.log(self.rate)
        return {"log_rates": jax.tree.map(lambda leaf: jnp.full((), start, leaf.dtype), params)}


class ParameterRates(LearnedRates):
    """A learned rate for each number of the parameters: ρ is a tree of the parameters' shapes.

    With SGD it is the optimizer of Meta-SGD (Li et al. 2017, arXiv 1707.09835), except that the
    rates are positive. Arguments: see `LearnedRates`.
    """

    def init(self, key: PRNGKeyArray, params: PyTree[Array]) -> PyTree[Array]:
        """`{"log_rates": a tree like params}`; the key is not used."""
        start = math.log(self.rate)
        return {"log_rates": jax.tree.map(lambda leaf: jnp.full_like(leaf, start), params)}
