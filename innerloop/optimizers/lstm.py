"""The coordinate-wise recurrent optimizer."""

import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from innerloop.arguments import at_least, number
from innerloop.models.layers import Dense, dense, dense_init
from innerloop.optimizers.base import LearnedOptimizer, require_like
from innerloop.optimizers.per_array import per_array

SMALLEST = 10.0
"""p: gradients below e^-p are told by their value and not by their logarithm."""


class CoordinateLSTM(LearnedOptimizer):
    r"""A recurrent network for each number of the parameters, all with the same weights.

    $$u = \lambda\, w \cdot h^{(L)}, \qquad h^{(l)}, c^{(l)} = \text{LSTM}_l(h^{(l-1)}; h^{(l)},
      c^{(l)}), \qquad h^{(0)} = \begin{cases} (\log|g| / p,\; \text{sign}(g)) & |g| \ge e^{-p} \\
      (-1,\; e^p g) & \text{otherwise} \end{cases}$$

    with p = 10. The meta-parameters are `{"cells": [dense layer of the four gates, ...], "head":
    w}`, 5,141 numbers by default, whatever is optimised. The state holds `2 · layers · width`
    numbers for each parameter.

    Source: Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent"
    (arXiv 1606.04474), which drops the derivative of the inner gradient: `FirstOrder` here, whereas
    `Unroll` is exact. The forget gate's bias begins at 1.

    Args:
        width: The width of the LSTM.
        layers: The number of layers of the LSTM.
        scale: λ, which the paper leaves open; 0.01 as in the authors' code.

    Raises:
        StructureError: If `width` or `layers` is below 1, or the meta-parameters are those of
            another network.
    """

    width: int = at_least(1, static=True, default=20)
    layers: int = at_least(1, static=True, default=2)
    scale: float = number(static=True, default=0.01)

    def init(self, key: PRNGKeyArray, params: PyTree[Array]) -> PyTree[Array]:
        """The weights, which do not depend on `params`."""
        *keys, head_key = jax.random.split(key, self.layers + 1)
        sizes = [2] + [self.width] * (self.layers - 1)
        cells = [self._cell(key, size) for key, size in zip(keys, sizes, strict=True)]
        return {"cells": cells, "head": dense_init(head_key, self.width, 1)}

    def __call__(self, meta: PyTree) -> optax.GradientTransformation:
        require_like(self, jax.eval_shape(self.init, jax.random.key(0), None), meta)
        dtype = meta["head"]["bias"].dtype

        def init(param: Array) -> list[tuple[Array, Array]]:
            zeros = jnp.zeros((param.size, self.width), dtype)
            return [(zeros, zeros)] * self.layers

        def update(gradient: Array, memory: list[tuple[Array, Array]], param: Array, steps: Array):
            x = logarithmic(gradient.reshape(-1).astype(dtype))
            after = []
            for cell, state in zip(meta["cells"], memory, strict=True):
                after.append(lstm_step(cell, x, *state))
                x = after[-1][0]
            move = self.scale * dense(meta["head"], x)
            return move.reshape(param.shape), after

        return per_array(init, update)

    def _cell(self, key: PRNGKeyArray, inputs: int) -> Dense:
        cell = dense_init(key, inputs + self.width, 4 * self.width)
        forget = jnp.arange(4 * self.width, dtype=jnp.int32) // self.width == 1
        return {**cell, "bias": jnp.where(forget, 1, cell["bias"])}


def lstm_step(
    cell: Dense,
    x: Float[Array, "rows inputs"],
    hidden: Float[Array, "rows width"],
    carry: Float[Array, "rows width"],
) -> tuple[Float[Array, "rows width"], Float[Array, "rows width"]]:
    """Hidden state and carry after one input; the gates are (input, forget, candidate, output)."""
    gates = jnp.split(dense(cell, jnp.concatenate([x, hidden], axis=1)), 4, axis=1)
    enter, forget, candidate, leave = gates
    carry = jax.nn.sigmoid(forget) * carry + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
    return jax.nn.sigmoid(leave) * jnp.tanh(carry), carry


def logarithmic(gradient: Float[Array, " numbers"]) -> Float[Array, "numbers 2"]:
    """Represents a gradient of any order of magnitude by two numbers of order 1."""
    size, large = jnp.abs(gradient), jnp.abs(gradient) >= math.exp(-SMALLEST)
    # The branch not taken is given a 1, so that its derivative is no NaN.
    logarithm = jnp.log(jnp.where(large, size, 1)) / SMALLEST
    first = jnp.where(large, logarithm, -1)
    second = jnp.where(large, jnp.sign(gradient), math.exp(SMALLEST) * gradient)
    return jnp.stack([first, second], axis=1)
