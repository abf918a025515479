"""Named normalisation policies, which say what the statistics of a batch are taken over.

A policy decides whether a prediction depends on the other rows of its batch. That changes what a
few-shot accuracy means (Bronskill et al. 2020, "TaskNorm"), so a policy has a name, and the name is
part of every result. There is no training mode and no running average: a policy does the same in
the inner loop, the outer loss and at test time, which is what makes its gradient well defined.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from innerloop.masks import masked_mean
from innerloop.precision import at_least_float32, default_float

EPSILON = 1e-3
"""Added to every variance: the value of the TensorFlow layer that MAML's authors used. It also
bounds the derivatives where the variance is zero, as it is on blank images."""

Parameters = dict[str, Array]


class Normalisation(NamedTuple):
    """A named normalisation policy.

    Every policy ends by adding a shift per channel, so the layer before it needs no bias: one
    that a subtracted mean cancels would be a parameter without a gradient.

    Args:
        name: The name of the policy, which is written into results.
        init: `channels -> params`, arrays of shape (channels,).
        apply: `(params, x, mask) -> y`, both `(rows, ..., channels)`; `mask` is `(rows,)`, False
            where a row is padding, or None.
    """

    name: str
    init: Callable[[int], Parameters]
    apply: Callable[
        [Parameters, Float[Array, "rows ... channels"], Bool[Array, " rows"] | None],
        Float[Array, "rows ... channels"],
    ]


def scale_and_shift(channels: int) -> Parameters:
    """Ones and zeros per channel, which change nothing."""
    dtype = default_float()
    return {"scale": jnp.ones(channels, dtype), "shift": jnp.zeros(channels, dtype)}


def _shift(channels: int) -> Parameters:
    return {"shift": jnp.zeros(channels, default_float())}


def _transductive(params: Parameters, x: Array, mask: Array | None) -> Array:
    axes = tuple(range(x.ndim - 1))
    mean = lambda values: _per_channel(masked_mean(values, mask, axes), x.ndim)
    return _normalise(params, x, mean)


def _per_example(params: Parameters, x: Array, mask: Array | None) -> Array:
    axes = tuple(range(1, x.ndim))
    return _normalise(params, x, lambda values: jnp.mean(values, axis=axes, keepdims=True))


def _none(params: Parameters, x: Array, mask: Array | None) -> Array:
    return x + _per_channel(params["shift"], x.ndim)


def _normalise(params: Parameters, x: Array, mean: Callable[[Array], Array]) -> Array:
    """`(x - mean) / sqrt(variance + EPSILON) * scale + shift`, statistics in float32 at least.

    Two passes: the mean of squares minus the square of the mean cancels to negative variances.
    """
    wide = at_least_float32(x)
    centred = wide - mean(wide)
    inverse_deviation = lax.rsqrt(mean(jnp.square(centred)) + EPSILON)
    scale = _per_channel(params["scale"].astype(wide.dtype), x.ndim)
    shift = _per_channel(params["shift"].astype(wide.dtype), x.ndim)
    return (centred * (inverse_deviation * scale) + shift).astype(x.dtype)


def _per_channel(values: Float[Array, " channels"], rank: int) -> Float[Array, "... channels"]:
    return values.reshape((1,) * (rank - 1) + values.shape)


transductive = Normalisation("transductive", scale_and_shift, _transductive)
r"""Batch statistics of the very rows at hand, per channel, in training and test alike:

$$y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta,\qquad
  \mu, \sigma^2 \text{ over the rows that count and all positions.}$$

Every prediction depends on the other rows of its batch: a query set tells the network about its
own distribution. This is MAML's protocol (Finn et al. 2017). Two departures from the authors'
code: there $\gamma$ does not exist, and $\beta$ is meta-learned but not adapted; here both are
parameters like any other.
"""

per_example = Normalisation("per_example", scale_and_shift, _per_example)
"""Statistics of each row alone, over positions and channels: layer normalisation of the whole
image, which is group normalisation with one group (Wu and He 2018); scale and shift per channel.
Predictions do not depend on the other rows.
"""

none = Normalisation("none", _shift, _none)
"""No statistics: a shift per channel, which is the bias of the layer before."""
