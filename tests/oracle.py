"""The meta-objective once more, in NumPy and without JAX, differentiated by complex steps.

The derivative of an analytic f at x is Im f(x + ih) / h, exact to machine precision for h = 1e-30
(Squire and Trapp 1998). It shares nothing with the library: no tracing, no autodiff, no optax.
Only the keys come from JAX, by the documented key rules.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

STEP = 1e-30
NOISE = 0.1


class Quadratic(NamedTuple):
    """One task of the quadratic problem, as NumPy arrays."""

    inputs: np.ndarray
    targets: np.ndarray
    salt: np.ndarray  # noise drawn from the keys that the rows carry


def quadratic_noise(key, dtype=jnp.float64):
    """The linear perturbation that a key (or each of an array of keys) puts on a loss.

    It is read off the key's own random bits, in float64 whatever the dtype: a generator's code
    would be most of what the laws compile.
    """
    bits = jax.random.key_data(key).astype(jnp.float64) / 2.0**31 - 1
    first, second = bits[..., 0], bits[..., 1]
    return (NOISE * jnp.stack([first, second, first * second], axis=-1)).astype(dtype)


def quadratic_gradient(theta, meta, rows: Quadratic, noise):
    """Gradient of the inner loss below with respect to theta, by hand."""
    residual = rows.inputs @ theta - rows.targets
    fit = np.exp(meta["scale"]) * rows.inputs.T @ residual / len(rows.targets)
    return fit + np.exp(meta["decay"]) * theta + noise + rows.salt.mean(axis=0)


def quadratic_outer(theta, meta, rows: Quadratic, noise):
    """Outer loss: mean squared error, a term linear in theta, a penalty that reads meta alone."""
    residual = rows.inputs @ theta - rows.targets
    linear = (noise + rows.salt.mean(axis=0)) @ theta
    return (residual**2).mean() / 2 + linear + (meta["start"] ** 2).sum() / 20


def sgd(rate: Callable) -> Callable:
    """Update rule theta - rate(meta) * gradient."""

    def update(t, theta, state, gradient, meta):
        return theta - rate(meta) * gradient, state

    return update


def momentum(decay: float) -> Callable:
    """Heavy ball, as optax.sgd writes it."""

    def update(t, theta, state, gradient, meta):
        state = gradient + (0 if state is None else decay * state)
        return theta - np.exp(meta["rate"]) * state, state

    return update


def adam(name="rate", b1=0.9, b2=0.999, eps=1e-8, eps_root=1e-8) -> Callable:
    """Adam with bias correction and eps inside the root (Kingma and Ba 2015)."""

    def update(t, theta, state, gradient, meta):
        m, v = (0, 0) if state is None else state
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        mhat, vhat = m / (1 - b1 ** (t + 1)), v / (1 - b2 ** (t + 1))
        return theta - np.exp(meta[name]) * mhat / (np.sqrt(vhat + eps_root) + eps), (m, v)

    return update


class Task(NamedTuple):
    """One task in NumPy: what the formulas of the meta-gradients are made of.

    - `loss`: `(meta, hold, last, seen) -> float`, the meta-objective. With `hold`, the inner
      gradients of the steps where `hold(t)` are constants; with `last`, only so many steps are
      live; with `seen`, the inner gradient of step t is taken at `seen(t, theta, constant theta)`.
    - `theta`: the adapted parameters
    - `stationarity`: `(theta, meta) -> gradient` of the inner loss on the full support
    - `outer`: `(theta, meta) -> float`
    - `key`: the meta-gradient's own
    """

    loss: Callable
    theta: np.ndarray
    stationarity: Callable
    outer: Callable
    key: jax.Array


def trajectory(
    update, steps, start, meta, rows_at, noises, frozen=None, hold=None, last=None, seen=None
):
    """theta_0 ... theta_K, the optimizer's states and the gradients used.

    - `frozen`: the trajectory at the true meta, which the constants are taken from
    """
    theta, state = start(meta), None
    thetas, states, gradients = [theta], [state], []
    for t in range(steps):
        point = theta if seen is None else seen(t, theta, frozen[0][t])
        gradient = quadratic_gradient(point, meta, rows_at(t), noises[t])
        if hold is not None:
            gradient = frozen[2][t] if hold(t) else gradient
        theta, state = update(t, theta, state, gradient, meta)
        if last is not None and t + 1 <= steps - last:  # the identity bridge from the start
            theta = frozen[0][t + 1] + (start(meta) - frozen[0][0])
            state = frozen[1][t + 1]
        thetas.append(theta)
        states.append(state)
        gradients.append(gradient)
    return thetas, states, gradients


def complex_step(function: Callable, meta: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gradient of a real analytic function of a dict of arrays."""
    gradient = {}
    for name, value in meta.items():
        leaf = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            shifted = {k: v.astype(complex) for k, v in meta.items()}
            shifted[name][index] += 1j * STEP
            leaf[index] = function(shifted).imag / STEP
        gradient[name] = leaf
    return gradient
