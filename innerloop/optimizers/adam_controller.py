"""Adam with a controller: a network sets rate, decays and weight decay of each array."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Scalar

from innerloop.arguments import at_least, positive
from innerloop.models import Model, mlp
from innerloop.optimizers.base import LearnedOptimizer, network_of
from innerloop.optimizers.per_array import Given, of_all_arrays
from innerloop.optimizers.small_mlp import LECUN

EPSILON = 1e-16
"""Added to squares before a root or a logarithm, whose derivatives are infinite at zero."""

FIRST, SECOND, DECAY = 0.9, 0.99, 0.01
"""β₁, β₂ and λ where the network's output is zero."""

ANNEALED = 0.1
"""What is left of the nominal rate at the end of a run."""

WARM = (3.0, 10.0, 30.0)
"""Steps in which a feature of the beginning of a run falls to 1/e."""

ALIGNED = 0.9
"""Decay of the moving average of the alignment."""

SMALL = 0.01
"""Added to a root mean square before its logarithm, because many arrays start from zero."""

OWN, SHARED = 7, 10
"""Features of each array, and of the run."""

LOGITS = tuple(math.log(beta / (1 - beta)) for beta in (FIRST, SECOND))


class Memory(NamedTuple):
    """The memory of one array.

    Args:
        first: The moving average of g.
        second: The moving average of g².
        weights: The sums of the weights in the two averages.
        aligned: The moving average of the alignment of g with the average before it.
    """

    first: Array
    second: Array
    weights: Float[Array, "2"]
    aligned: Scalar


class AdamController(LearnedOptimizer):
    r"""Adam whose rate, decays and weight decay a network sets, at each step for each array.

    $$m \leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
      v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \qquad
      u = -\alpha \left(s \frac{\hat m}{\sqrt{\hat v + 10^{-16}}} + \lambda\, \theta\right)$$

    $$\alpha = \alpha_0\, 10^{-\min(t/T, 1)} e^{o_1}, \quad
      \beta_1 = \sigma(\sigma^{-1}(0.9) + o_2), \quad
      \beta_2 = \sigma(\sigma^{-1}(0.99) + o_3), \quad \lambda = 0.01\, e^{o_4}, \qquad
      o = \text{MLP}(x)$$

    where $\hat m$ and $\hat v$ are divided by the sum of the weights in their averages. The scale s
    is the root mean square of initial parameters with these shapes by Glorot and Bengio 2010
    (variance 2/(inputs + outputs)). All axes but the last two count as the window of a convolution,
    and so does the first axis of stacked blocks; arrays with fewer than two axes do not count, and
    s = 1 if there are no others. With this scale one rate fits quadratics and networks. Unlike that
    of Adafactor (Shazeer and Stern 2018, arXiv 1804.04235), the scale does not depend on the size
    of the parameters: with Adafactor's, a network that starts twice as large would take steps twice
    as large.

    Seven of the features x belong to an array and its averages before the step:

    - the decimal logarithms of 0.01 plus the root mean square of θ/s, of s g, of g over that of
      $\hat v^{1/2}$, and of $\hat m$ over that of $\hat v^{1/2}$
    - the moving average of the cosine between g and m
    - the number of axes (at most 2), and the logarithm of the size of the array

    Ten of them belong to the run:

    - twice the share of the horizon that is over, and $e^{-t/\tau}$ for three τ
    - the means of the third to fifth feature over all arrays
    - the logarithm of the count of numbers, and twice that of the count of arrays
    - three times the first feature for all arrays together that determine s (0 if there are none),
      which tells a network that starts large from one that starts small

    A constant is subtracted from six of the features to bring them near zero: −2 (s g), 1 (axes),
    2 (size), 1 (share), 2.5 (numbers), 1 (arrays). The last layer starts from zero, so before
    meta-training the optimizer is AdamW with β₂ = 0.99, a weight decay of 0.01 and a rate that
    falls from α₀ s to a tenth of it. With a constant rate, gradients through whole runs of networks
    explode, and training would have to learn to anneal from gradients without information.

    Source: a network per array that sets the hyperparameters of a rule written by hand, as in
    Daniel et al. 2016, "Learning step size controllers for robust neural network training", and
    Wichrowska et al. 2017 (arXiv 1703.04813), with Adam for the nominal rule (Harrison et al. 2022,
    arXiv 2209.11208).

    Args:
        horizon: T, the number of steps of a run; after them the share of the horizon that is over
            stays 1.
        width: The width of the two hidden layers.
        rate: α₀, the rate before meta-training.

    Raises:
        StructureError: If `horizon` or `width` is below 1, the rate is not positive, or the
            meta-parameters are those of another network.
    """

    horizon: int = at_least(1, static=True, default=100)
    width: int = at_least(1, static=True, default=16)
    rate: float = positive(static=True, default=0.3)

    def init(self, key: PRNGKeyArray, params: PyTree[Array]) -> PyTree[Array]:
        """The network's parameters, which do not depend on `params`."""
        network = self._network().init(key)
        head = jax.tree.map(jnp.zeros_like, network["head"])
        return {**network, "head": head}

    def __call__(self, meta: PyTree) -> optax.GradientTransformation:
        network = network_of(self, self._network(), meta)
        dtype = meta["head"]["bias"].dtype  # that of all it remembers, as of the network

        def init(param: Array) -> Memory:
            zeros = jnp.zeros_like(param)
            return Memory(zeros, zeros, jnp.zeros(2, dtype), jnp.zeros((), dtype))

        def update(given: Given, steps: Array) -> list[tuple[Array, Memory]]:
            if not given:
                return []
            size = _size([param.shape for *_, param in given])
            own = jnp.stack([_features(*each, size) for each in given])
            steps = steps.astype(dtype)
            shared = self._shared(own, given, steps, size)
            nominal = self.rate * ANNEALED ** jnp.minimum(steps / self.horizon, 1)
            outputs = network(jnp.concatenate([own, jnp.tile(shared, (len(given), 1))], axis=1))
            return [
                _moved(output, *each, size, nominal)
                for output, each in zip(outputs, given, strict=True)
            ]

        return of_all_arrays(init, update, dtype)

    def _network(self) -> Model:
        return mlp([OWN + SHARED, self.width, self.width, 4], jnp.tanh, weights=LECUN)

    def _shared(self, own: Array, given: Given, steps: Scalar, size: float) -> Array:
        over = jnp.minimum(steps / self.horizon, 1)
        warm = jnp.exp(-steps / jnp.asarray(WARM, own.dtype))
        numbers = sum(param.size for *_, param in given)
        sizes = [math.log10(max(numbers, 1)) - 2.5, 2 * math.log10(len(given)) - 1]
        means = jnp.mean(own[:, 2:5], axis=0)
        matrices = [param for *_, param in given if _counts(param.shape)]
        gain = 3 * _log_size(matrices, size) if matrices else jnp.zeros((), own.dtype)
        return jnp.concatenate(
            [2 * over[None] - 1, warm, means, jnp.asarray(sizes, own.dtype), gain[None]]
        )


def _moved(
    output: Array, gradient: Array, memory: Memory, param: Array, size: float, nominal: Scalar
) -> tuple[Array, Memory]:
    rate = nominal * jnp.exp(output[0])
    logits = output[1:3] + jnp.asarray(LOGITS, output.dtype)
    betas, new = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)  # 1 - β may round to zero
    first = betas[0] * memory.first + new[0] * gradient
    second = betas[1] * memory.second + new[1] * jnp.square(gradient)
    weights = betas * memory.weights + new
    aligned = ALIGNED * memory.aligned + (1 - ALIGNED) * _cosine(gradient, memory.first)
    direction = first / weights[0] * jax.lax.rsqrt(second / weights[1] + EPSILON)
    move = -rate * (size * direction + DECAY * jnp.exp(output[3]) * param)
    return move, Memory(first, second, weights, aligned)


def _counts(shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and math.prod(shape) > 0


def _size(shapes: list[tuple[int, ...]]) -> float:
    """The root mean square of what Glorot and Bengio begin with in all arrays of two axes or more,
    or 1 where there are none; axes before the last two are those of a convolution's window.
    """
    matrices = [shape for shape in shapes if _counts(shape)]
    variance = lambda shape: 2 / (math.prod(shape[:-2]) * (shape[-2] + shape[-1]))
    squares = sum(math.prod(shape) * variance(shape) for shape in matrices)
    return math.sqrt(squares / sum(map(math.prod, matrices))) if matrices else 1.0


def _features(gradient: Array, memory: Memory, param: Array, size: float) -> Float[Array, "own"]:
    """Of the state before the step; ratios are zero before the first."""
    begun = memory.weights[0] > 0
    weights = jnp.where(begun, memory.weights, 1)
    first, second = _log_rms(memory.first / weights[0]), _log_mean(memory.second / weights[1]) / 2
    now = _log_rms(gradient)
    return jnp.stack(
        [
            _log_size([param], size),
            now + math.log10(size) + 2,
            jnp.where(begun, now - second, 0),
            jnp.where(begun, first - second, 0),
            memory.aligned,
            jnp.asarray(min(param.ndim, 2) - 1, param.dtype),
            jnp.asarray(math.log10(max(param.size, 1)) - 2, param.dtype),
        ]
    )


def _log_size(arrays: list[Array], size: float) -> Scalar:
    """log10 of the root mean square of all their numbers over `size`."""
    squares = sum(jnp.sum(jnp.square(array)) for array in arrays)
    mean = squares / max(sum(array.size for array in arrays), 1)
    return jnp.log10(jnp.sqrt(mean + EPSILON) / size + SMALL)


def _log_mean(values: Array) -> Scalar:
    return jnp.log10(jnp.sum(values) / max(values.size, 1) + EPSILON)


def _log_rms(values: Array) -> Scalar:
    return _log_mean(jnp.square(values)) / 2


def _cosine(one: Array, other: Array) -> Scalar:
    length = lambda array: jnp.sqrt(jnp.sum(jnp.square(array)) + EPSILON)
    return jnp.sum(one * other) / (length(one) * length(other))
