"""The update rule of Celo2: a tiny network with a normalised output and one learned rate."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from innerloop.arguments import at_least, positive
from innerloop.models import Model, mlp
from innerloop.optimizers.base import LearnedOptimizer, network_of, part_of
from innerloop.optimizers.per_array import EPSILON, averaged, averages, normalised, per_array
from innerloop.optimizers.small_mlp import LECUN, ROOT
from innerloop.precision import default_float

DECAYS = (0.9, 0.99, 0.999)
"""Of the moving averages of the gradient, and of the factored second moments."""

SECOND_DECAYS = (0.95,)
"""Of the moving averages of the squared gradient."""

CLIP = 0.1
"""Largest value of the clipped gradient, which is a feature."""

TINY = 1e-30
"""Added to squared gradients in factored second moments (Shazeer and Stern 2018)."""

FEATURES = 30


class Memory(NamedTuple):
    """Moving averages of one matrix: of g, of g², and of the means of g² over rows and columns."""

    first: Float[Array, "decays *batch rows columns"]
    second: Float[Array, "second_decays *batch rows columns"]
    rows: Float[Array, "decays *batch rows 1"]
    columns: Float[Array, "decays *batch 1 columns"]


class Celo2(LearnedOptimizer):
    r"""A network over momentum, second-moment and Adafactor features; its output has unit size.

    $$u = -e^\rho\, \frac{d}{\text{rms}(d)}, \qquad d = \text{MLP}(x)$$

    x holds 30 features of one number of a matrix, each divided by its root mean square over the
    matrix: g, g clipped to ±0.1, the parameter, m, v, $v^{-1/2}$, $m v^{-1/2}$, $g v^{-1/2}$ with m
    at three and v at one time scale, and of second moments r, c factored into rows and columns at
    three time scales: r, c, $r^{-1/2}$, $c^{-1/2}$, and g and m over the root of the factored
    moment. Vectors have no rows and columns: the features of r and c alone are zero for them, and
    the factored moment is their own.

    The meta-parameters are `{"network": ..., "log_rate": ρ}`, the network a `mlp` with relu and two
    hidden layers. With a width of 4 they are 150, with the released optimizer's 8, 330.

    Source: Moudgil, Knyazev and Belilovsky 2026, "Celo2: Towards learned optimization free lunch"
    (arXiv 2602.19142), its base form, without orthogonalisation or another optimizer for vectors;
    decays and features as in the authors' code. Departs from it: outputs that it does not use are
    left out; vectors have the features of m over the root of the moment too; rows and columns are
    the last two axes, not the longest two; gradients are not clipped to ±1000; and the rate, which
    the authors tune for each task, is learned. A schedule or weight decay is chained after it, as
    after any optax transformation.

    Args:
        width: The width of the hidden layers.
        rate: $e^\rho$ before meta-training: the root mean square of each update.

    Raises:
        StructureError: If `width` is below 1, the rate is not positive, or the meta-parameters have
            another structure.
    """

    width: int = at_least(1, static=True, default=4)
    rate: float = positive(static=True, default=0.001)

    def init(self, key: PRNGKeyArray, params: PyTree[Array]) -> PyTree[Array]:
        """The network's parameters and the rate, which do not depend on `params`."""
        rate = jnp.full((), math.log(self.rate), default_float())
        return {"network": self._network().init(key), "log_rate": rate}

    def __call__(self, meta: PyTree) -> optax.GradientTransformation:
        weights, rate = part_of(self, meta, "network", "log_rate")
        network = network_of(self, self._network(), weights)

        def init(param: Array) -> Memory:
            return Memory(*map(averages, _moments(_matrix(param)), _DECAYS))

        def update(gradient: Array, memory: Memory, param: Array, steps: Array):
            matrix, gradient = _matrix(param), _matrix(gradient)
            memory = Memory(*map(averaged, memory, _moments(gradient), _DECAYS))
            features = normalised(_features(gradient, matrix, memory, param.ndim > 1), (-2, -1))
            rows = features.reshape(FEATURES, -1).T
            direction = network(rows).reshape(matrix.shape)
            move = -jnp.exp(rate) * normalised(direction, (-2, -1))
            return move.reshape(param.shape), memory

        return per_array(init, update)

    def _network(self) -> Model:
        return mlp([FEATURES, self.width, self.width, 1], weights=LECUN)


def _matrix(array: Array) -> Array:
    """A scalar or a vector as one row; arrays with two axes or more are unchanged."""
    return array if array.ndim > 1 else array.reshape(1, -1)


def _moments(gradient: Array) -> tuple[Array, ...]:
    """What the averages of `Memory` are taken of, in its order."""
    square = jnp.square(gradient)
    mean = lambda axis: jnp.mean(square + TINY, axis=axis, keepdims=True)
    return gradient, square, mean(-1), mean(-2)


_DECAYS = (DECAYS, SECOND_DECAYS, DECAYS, DECAYS)
"""Of the averages of `Memory`, in its order."""


def _features(
    gradient: Array, param: Array, memory: Memory, factored: bool
) -> Float[Array, "features *batch rows columns"]:
    first, second, rows, columns = memory
    root = jax.lax.rsqrt(second + ROOT)
    mean = jnp.mean(rows, axis=-2, keepdims=True)
    inverse = jax.lax.rsqrt(rows / (mean + EPSILON) * columns + EPSILON)
    roots = [jax.lax.rsqrt(moment + ROOT) for moment in (rows, columns)]
    alone = [jnp.broadcast_to(moment, first.shape) for moment in (rows, columns, *roots)]
    return jnp.concatenate(
        [
            jnp.stack([gradient, jnp.clip(gradient, -CLIP, CLIP), param]),
            *(first, second, root, first * root, gradient[None] * root),
            *(gradient[None] * inverse, first * inverse),
            *(alone if factored else [jnp.zeros_like(first)] * len(alone)),
        ]
    )
