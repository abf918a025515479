"""A small network that computes the update of each parameter from its features."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from innerloop.arguments import at_least, between, each, number
from innerloop.models import Model, mlp
from innerloop.optimizers.base import LearnedOptimizer, network_of
from innerloop.optimizers.per_array import averaged, averages, normalised, per_array

TIME_SCALES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
"""Steps at which a feature of the step number changes sign (Metz et al. 2020)."""

ROOT = 1e-8
"""Added to second moments before their root."""

DECAY = between(0, 1, below=True)
LECUN = jax.nn.initializers.lecun_normal()


class SmallMLP(LearnedOptimizer):
    r"""A network of one size for all parameters, applied to each number of them.

    $$u = -\lambda_1\, d\, e^{\lambda_2 s}, \qquad (d, s) = \text{MLP}(x)$$

    x holds, of one parameter: its gradient g, its value, moving averages m of g for each of
    `decays`, $v^{-1/2}$, $g\, v^{-1/2}$ and $m\, v^{-1/2}$ with moving averages v of g² for each of
    `second_decays`, each divided by its root mean square over the array; and
    $\tanh(t / \tau - 1)$ for eleven time scales τ from 1 to 100,000 steps.

    The meta-parameters are the network's, a `mlp` with relu and two hidden layers of `width`; there
    are 2,082 of them by default, whatever is optimised.

    Source: the small MLP of Metz et al. 2020, "Tasks, stability, architecture, and compute"
    (arXiv 2009.11243), and 2022, "Practical tradeoffs between memory, compute, and performance in
    learned optimizers" (arXiv 2203.11860). Departs from them: second moments at two time scales, as
    a quotient with every average, and no Adafactor features.

    Args:
        width: The width of the hidden layers.
        decays: The decays of the moving averages of g, in [0, 1).
        second_decays: The decays of the moving averages of g², in [0, 1).
        step: λ₁, which scales the update.
        magnitude: λ₂, which scales the exponent.

    Raises:
        StructureError: If `width` is below 1, a decay is outside [0, 1), or the meta-parameters are
            those of another network.
    """

    width: int = at_least(1, static=True, default=32)
    decays: tuple[float, ...] = each(DECAY, static=True, default=(0.5, 0.9, 0.99, 0.999))
    second_decays: tuple[float, ...] = each(DECAY, static=True, default=(0.9, 0.999))
    step: float = number(static=True, default=0.001)
    magnitude: float = number(static=True, default=0.001)

    def init(self, key: PRNGKeyArray, params: PyTree[Array]) -> PyTree[Array]:
        """The network's parameters, which do not depend on `params`."""
        return self._network().init(key)

    def __call__(self, meta: PyTree) -> optax.GradientTransformation:
        network = network_of(self, self._network(), meta)

        def init(param: Array) -> tuple[Array, Array]:
            return averages(param, self.decays), averages(param, self.second_decays)

        def update(gradient: Array, memory: tuple[Array, Array], param: Array, steps: Array):
            first = averaged(memory[0], gradient, self.decays)
            second = averaged(memory[1], jnp.square(gradient), self.second_decays)
            rows = self._features(gradient, param, first, second, steps)
            direction, size = network(rows).T
            move = -self.step * direction * jnp.exp(self.magnitude * size)
            return move.reshape(param.shape), (first, second)

        return per_array(init, update)

    def _network(self) -> Model:
        first, second = len(self.decays), len(self.second_decays)
        inputs = 2 + first + (2 + first) * second + len(TIME_SCALES)
        return mlp([inputs, self.width, self.width, 2], weights=LECUN)

    def _features(
        self, gradient: Array, param: Array, first: Array, second: Array, steps: Array
    ) -> Float[Array, "numbers features"]:
        root = jax.lax.rsqrt(second + ROOT)
        quotients = (first[:, None] * root[None]).reshape(-1, *param.shape)
        own = jnp.concatenate(
            [gradient[None], param[None], first, root, gradient[None] * root, quotients]
        )
        own = own.reshape(len(own), -1)
        time = jnp.tanh(steps / jnp.asarray(TIME_SCALES, param.dtype) - 1)
        time = jnp.broadcast_to(time[:, None], (len(time), own.shape[1]))
        return jnp.concatenate([normalised(own, (1,)), time]).T
