"""Learned learning rates: for all parameters, each array, each number, each step, or by descent."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.arguments import at_least, positive
from innerloop.optimizers.base import (
    Direction,
    LearnedOptimizer,
    part_of,
    scale_by_rates,
    scale_by_scheduled_rates,
)
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
        rate = lambda step: jnp.exp(jnp.interp(step.astype(values.dtype), at, values))
        return optax.chain(self.direction(), scale_by_scheduled_rates(rate))


class HypergradientState(NamedTuple):
    """The rate α_t, the direction of the last update, and the direction's own state."""

    rate: Array
    last: PyTree
    direction: Any


class Hypergradient(LearnedOptimizer):
    r"""A learning rate that follows its own gradient from step to step.

    $$\alpha_t = \alpha_{t-1} + \beta\, \langle g_t, d_{t-1} \rangle, \qquad
      u_t = -\alpha_t\, d_t, \qquad d_t = d(g_1 \dots g_t)$$

    since $-\langle g_t, d_{t-1} \rangle$ is the derivative of the loss at step t in the rate of the
    step before. With the gradient itself as direction it is SGD-HD, with momentum SGDN-HD, with
    Adam's Adam-HD. The meta-parameters are `{"log_rate": log α₀, "log_hyper_rate": log β}`: both
    are learned, where the paper chooses them. α_t itself may become negative, as in the paper.

    Source: Baydin et al. 2018, "Online learning rate adaptation with hypergradient descent"
    (arXiv 1703.04782).

    Args:
        direction: The direction d, by default the gradient itself (SGD); see
            `LearnedRates`.
        rate: α₀ before meta-training.
        hyper_rate: β before meta-training.

    Raises:
        StructureError: If a rate is not positive and finite, or the meta-parameters have another
            structure.
    """

    direction: Direction = eqx.field(static=True, default=optax.identity)
    rate: float = positive(static=True, default=0.01)
    hyper_rate: float = positive(static=True, default=1e-4)

    def init(self, key: PRNGKeyArray, params: PyTree[Array]) -> PyTree[Array]:
        """`{"log_rate": scalar, "log_hyper_rate": scalar}`; the key is not used."""
        scalar = lambda rate: jnp.full((), math.log(rate), default_float())
        return {"log_rate": scalar(self.rate), "log_hyper_rate": scalar(self.hyper_rate)}

    def __call__(self, meta: PyTree) -> optax.GradientTransformation:
        start, hyper = (jnp.exp(leaf) for leaf in part_of(self, meta, "log_rate", "log_hyper_rate"))
        direction = self.direction()

        def init(params: PyTree) -> HypergradientState:
            zeros = jax.tree.map(jnp.zeros_like, params)
            return HypergradientState(start, zeros, direction.init(params))

        def update(updates: PyTree, state: Any, params: PyTree = None):
            products = jax.tree.map(lambda g, d: jnp.sum(g * d), updates, state.last)
            product = sum(leaf.astype(start.dtype) for leaf in jax.tree.leaves(products))
            rate = state.rate + hyper * product
            now, inner = direction.update(updates, state.direction, params)
            moves = jax.tree.map(lambda d: -rate.astype(d.dtype) * d, now)
            return moves, HypergradientState(rate, now, inner)

        return optax.GradientTransformation(init, update)
