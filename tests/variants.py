"""The table: every adaptation and every meta-gradient. A new variant joins the laws by one line."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from oracle import (
    Quadratic,
    adam,
    complex_step,
    momentum,
    quadratic_noise,
    quadratic_outer,
    sgd,
    trajectory,
)

import innerloop as il

ROWS, TASKS = 4, 5


def quadratic_problem(step_weights=None) -> il.Problem:
    """Least squares with learned start, scale and decay; noise by the step's key and the rows'."""

    def noise(batch, key, dtype):
        return quadratic_noise(key, dtype) + jnp.mean(quadratic_noise(batch["salt"], dtype), axis=0)

    def fit(params, batch):
        inputs = batch["inputs"].astype(params.dtype)
        return jnp.mean((inputs @ params - batch["targets"].astype(params.dtype)) ** 2) / 2

    def inner_loss(params, meta, batch, key):
        penalty = jnp.exp(meta["decay"]) * jnp.sum(params**2) / 2
        loss = jnp.exp(meta["scale"]) * fit(params, batch) + penalty
        return loss + noise(batch, key, params.dtype) @ params, batch["index"]

    def outer_loss(params, meta, batch, key):
        loss = fit(params, batch) + noise(batch, key, params.dtype) @ params
        return loss + jnp.sum(meta["start"] ** 2) / 20, {"params": params, "rows": batch["index"]}

    return il.Problem(
        lambda meta, support, key: meta["start"], inner_loss, outer_loss, step_weights
    )


def quadratic_meta(dtype=None) -> dict[str, jax.Array]:
    """Meta-parameters; rates and decays are logarithms."""
    meta = {
        "start": np.array([0.5, -1.0, 2.0]),
        "rate": np.log(0.1),
        "rates": np.log([0.05, 0.1, 0.2]),
        "scale": np.array(0.3),
        "decay": np.array(-2.0),
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), meta)


def quadratic_episodes(seed=0, tasks=TASKS) -> il.Episode:
    """Tasks whose rows hold floats, integers and keys."""

    rng = np.random.default_rng(seed)

    def rows(key):
        return {
            "inputs": jnp.asarray(rng.normal(size=(tasks, ROWS, 3))),
            "targets": jnp.asarray(rng.normal(size=(tasks, ROWS))),
            "index": jnp.asarray(np.tile(np.arange(ROWS), (tasks, 1))),
            "salt": jax.random.split(key, (tasks, ROWS)),
        }

    support, query = jax.random.split(jax.random.key(seed))
    return il.Episode(rows(support), rows(query))


def _numpy_rows(batch) -> Quadratic:
    salt = np.array(quadratic_noise(batch["salt"]))
    return Quadratic(np.array(batch["inputs"]), np.array(batch["targets"]), salt)


def _take(rows: Quadratic, index) -> Quadratic:
    return Quadratic(*(field[np.array(index)] for field in rows))


class Variant(NamedTuple):
    """An adaptation with a problem it solves, and its oracle."""

    name: str
    problem: il.Problem
    adaptation: il.Adaptation
    reference: Callable[..., tuple[float, dict[str, np.ndarray]]]
    meta: Callable[..., Any] = quadratic_meta
    """reference(meta, episode, key, held) -> (loss, gradient) of one task, in NumPy; with
    `held` every inner gradient is a constant."""


def descent_reference(update, steps, weights=None, batched=False):
    """The oracle of an optimizer on the quadratic problem."""

    def reference(meta, episode, key, held):
        meta = {name: np.array(leaf) for name, leaf in meta.items()}
        adapt_key, outer_key, _ = jax.random.split(key, 3)
        step_keys = [jax.random.fold_in(adapt_key, t + 1) for t in range(steps)]
        support, query = _numpy_rows(episode.support), _numpy_rows(episode.query)
        rows_at = [support] * steps
        if batched:  # the documented draw: the step's key splits into (draw, step)
            draws = [jax.random.split(step_key) for step_key in step_keys]
            order = [jax.random.permutation(draw, ROWS)[:batched] for draw, _ in draws]
            rows_at = [_take(support, index) for index in order]
            step_keys = [step_key for _, step_key in draws]
        noises = [np.array(quadratic_noise(step_key)) for step_key in step_keys]
        outer_noise = np.array(quadratic_noise(outer_key))
        scale = np.eye(steps + 1)[-1] if weights is None else np.array(weights(steps))
        _, gradients = trajectory(update, steps, meta, rows_at.__getitem__, noises)
        constants = gradients if held else None

        def loss(meta):
            thetas, _ = trajectory(update, steps, meta, rows_at.__getitem__, noises, constants)
            return sum(
                w * quadratic_outer(theta, meta, query, outer_noise)
                for w, theta in zip(scale, thetas, strict=True)
            )

        return float(loss(meta)), complex_step(loss, meta)

    return reference


def _procedure_fn(meta, support, key):
    dtype = meta["start"].dtype
    inputs, targets = support["inputs"].astype(dtype), support["targets"].astype(dtype)
    gram = inputs.T @ inputs + jnp.exp(meta["decay"]) * jnp.eye(3, dtype=dtype)
    offset = inputs.T @ targets + quadratic_noise(key, dtype)
    return meta["start"] + jnp.linalg.solve(gram, offset)


def _procedure_reference(meta, episode, key, held):
    meta = {name: np.array(leaf) for name, leaf in meta.items()}
    adapt_key, outer_key, _ = jax.random.split(key, 3)
    noise = np.array(quadratic_noise(jax.random.fold_in(adapt_key, 0)))
    outer_noise = np.array(quadratic_noise(outer_key))
    support, query = _numpy_rows(episode.support), _numpy_rows(episode.query)

    def loss(meta):
        gram = support.inputs.T @ support.inputs + np.exp(meta["decay"]) * np.eye(3)
        theta = meta["start"] + np.linalg.solve(gram, support.inputs.T @ support.targets + noise)
        return quadratic_outer(theta, meta, query, outer_noise)

    return float(loss(meta)), complex_step(loss, meta)


def _rate(meta):
    return jnp.exp(meta["rate"])


def _weights(steps):
    return np.linspace(0.1, 1.0, steps + 1)


def _per_parameter(meta):
    return optax.stateless(
        lambda gradient, params: jax.tree.map(lambda g: -jnp.exp(meta["rates"]) * g, gradient)
    )


def _descent(name, optimizer, update, steps, weights=None):
    problem = quadratic_problem(weights)
    adaptation = il.GradientDescent(optimizer, steps)
    return Variant(name, problem, adaptation, descent_reference(update, steps, weights))


def _adam(meta):
    return optax.adam(_rate(meta), eps_root=1e-8)


_SGD = sgd(lambda meta: np.exp(meta["rate"]))

ADAPTATIONS = [
    _descent("sgd-0", lambda meta: optax.sgd(_rate(meta)), _SGD, 0),
    _descent("sgd-1", lambda meta: optax.sgd(_rate(meta)), _SGD, 1),
    _descent("sgd-12-scanned", lambda meta: optax.sgd(_rate(meta)), _SGD, 12),
    _descent("sgd-fixed-rate", optax.sgd(0.1), sgd(lambda meta: 0.1), 3),
    _descent("sgd-per-parameter", _per_parameter, sgd(lambda meta: np.exp(meta["rates"])), 3),
    _descent("momentum", lambda meta: optax.sgd(_rate(meta), 0.9), momentum(0.9), 5),
    _descent("adam", _adam, adam(), 4),
    _descent("multi-step-loss", lambda meta: optax.sgd(_rate(meta)), _SGD, 3, _weights),
    _descent("multi-step-loss-scanned", lambda meta: optax.sgd(_rate(meta)), _SGD, 9, _weights),
    Variant(
        "mini-batches",
        quadratic_problem(),
        il.MiniBatches(il.GradientDescent(lambda meta: optax.sgd(_rate(meta)), 4), 2),
        descent_reference(_SGD, 4, batched=2),
    ),
    Variant(
        "procedure",
        il.Problem(None, None, quadratic_problem().outer_loss),
        il.Procedure(_procedure_fn),
        _procedure_reference,
    ),
]


class Estimator(NamedTuple):
    """A meta-gradient and the gradient that its formula predicts.

    - `held`: whether the prediction holds every inner gradient constant
    """

    name: str
    gradient: il.MetaGradient
    held: bool


GRADIENTS = [
    Estimator("unroll", il.Unroll(), held=False),
    Estimator("first-order", il.FirstOrder(), held=True),
]
