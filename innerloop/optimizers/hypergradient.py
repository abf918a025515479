"""Hypergradient descent: gradient descent on the learning rate while it is used."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.arguments import positive
from innerloop.optimizers.base import Direction, LearnedOptimizer, part_of
from innerloop.precision import default_float


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
