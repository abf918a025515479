"""The problem that the laws are tested on, and its oracles: what each adaptation makes of it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from oracle import (
    Quadratic,
    Task,
    quadratic_gradient,
    quadratic_noise,
    quadratic_outer,
    trajectory,
)

import innerloop as il

ROWS, TASKS = 4, 5


def quadratic_problem(step_weights=None) -> il.Problem:
    """Least squares with learned start, scale and decay; noise by the step's key and the rows'."""

    def noise(batch, key, dtype):
        salt = quadratic_noise(batch.inputs["salt"], dtype)
        return quadratic_noise(key, dtype) + jnp.mean(salt, axis=0)

    def fit(params, batch):
        inputs = batch.inputs["x"].astype(params.dtype)
        return jnp.mean((inputs @ params - batch.targets.astype(params.dtype)) ** 2) / 2

    def inner_loss(params, meta, batch, key):
        penalty = jnp.exp(meta["decay"]) * jnp.sum(params**2) / 2
        loss = jnp.exp(meta["scale"]) * fit(params, batch) + penalty
        return loss + noise(batch, key, params.dtype) @ params, batch.inputs["index"]

    def outer_loss(params, meta, batch, key):
        loss = fit(params, batch) + noise(batch, key, params.dtype) @ params
        metrics = {"params": params, "rows": batch.inputs["index"]}
        return loss + jnp.sum(meta["start"] ** 2) / 20, metrics

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
        inputs = {
            "x": jnp.asarray(rng.normal(size=(tasks, ROWS, 3))),
            "index": jnp.asarray(np.tile(np.arange(ROWS), (tasks, 1))),
            "salt": jax.random.split(key, (tasks, ROWS)),
        }
        return il.Examples(inputs, jnp.asarray(rng.normal(size=(tasks, ROWS))))

    support, query = jax.random.split(jax.random.key(seed))
    return il.Episode(rows(support), rows(query))


def _numpy_rows(batch) -> Quadratic:
    salt = np.array(quadratic_noise(batch.inputs["salt"]))
    return Quadratic(np.array(batch.inputs["x"]), np.array(batch.targets), salt)


def _take(rows: Quadratic, index) -> Quadratic:
    return Quadratic(*(field[np.array(index)] for field in rows))


def _numpy(meta):
    return {name: np.array(leaf) for name, leaf in meta.items()}


def _outer_of(episode, key):
    query, noise = _numpy_rows(episode.query), np.array(quadratic_noise(key))
    return lambda theta, meta: quadratic_outer(theta, meta, query, noise)


def descent_reference(update, steps, weights=None, batched=False):
    """The oracle of an optimizer on the quadratic problem."""

    def reference(meta, episode, key):
        meta = _numpy(meta)
        adapt_key, outer_key, own_key = jax.random.split(key, 3)
        step_keys = [jax.random.fold_in(adapt_key, t + 1) for t in range(max(steps, 1))]
        support, last_key = _numpy_rows(episode.support), step_keys[-1]
        rows_at = [support] * steps
        if batched:  # the documented draw: the step's key splits into (draw, step)
            draws = [jax.random.split(step_key) for step_key in step_keys]
            order = [jax.random.permutation(draw, ROWS)[:batched] for draw, _ in draws]
            rows_at = [_take(support, index) for index in order]
            step_keys = [step_key for _, step_key in draws]
        noises = [np.array(quadratic_noise(step_key)) for step_key in step_keys]
        outer = _outer_of(episode, outer_key)
        scale = np.eye(steps + 1)[-1] if weights is None else np.array(weights(steps))
        follow = partial(trajectory, update, steps, lambda meta: meta["start"])
        frozen = follow(meta, rows_at.__getitem__, noises)

        def loss(meta, **changes):
            thetas, _, _ = follow(meta, rows_at.__getitem__, noises, frozen, **changes)
            return sum(w * outer(theta, meta) for w, theta in zip(scale, thetas, strict=True))

        noise = np.array(quadratic_noise(last_key))
        stationarity = lambda theta, meta: quadratic_gradient(theta, meta, support, noise)
        return Task(loss, frozen[0][-1], stationarity, outer, own_key)

    return reference


def minimum_reference(meta, episode, key):
    """The oracle of the minimum itself, by solving the normal equations."""
    adapt_key, outer_key, own_key = jax.random.split(key, 3)
    noise = np.array(quadratic_noise(jax.random.fold_in(adapt_key, 1)))
    support, outer = _numpy_rows(episode.support), _outer_of(episode, outer_key)

    def minimum(meta):
        at = lambda theta: quadratic_gradient(theta, meta, support, noise)
        offset = at(np.zeros(3))
        return np.linalg.solve(np.stack([at(unit) - offset for unit in np.eye(3)], 1), -offset)

    stationarity = lambda theta, meta: quadratic_gradient(theta, meta, support, noise)
    loss = lambda meta, **changes: outer(minimum(meta), meta)
    return Task(loss, minimum(_numpy(meta)), stationarity, outer, own_key)


def procedure(meta, support, key):
    """Ridge regression around the learned start, in closed form."""
    dtype = meta["start"].dtype
    inputs, targets = support.inputs["x"].astype(dtype), support.targets.astype(dtype)
    gram = inputs.T @ inputs + jnp.exp(meta["decay"]) * jnp.eye(3, dtype=dtype)
    offset = inputs.T @ targets + quadratic_noise(key, dtype)
    return meta["start"] + jnp.linalg.solve(gram, offset)


def procedure_reference(meta, episode, key):
    """The oracle of `procedure`."""
    adapt_key, outer_key, own_key = jax.random.split(key, 3)
    noise = np.array(quadratic_noise(jax.random.fold_in(adapt_key, 0)))
    support, outer = _numpy_rows(episode.support), _outer_of(episode, outer_key)

    def loss(meta, **changes):
        gram = support.inputs.T @ support.inputs + np.exp(meta["decay"]) * np.eye(3)
        offset = support.inputs.T @ support.targets + noise
        return outer(meta["start"] + np.linalg.solve(gram, offset), meta)

    return Task(loss, None, None, outer, own_key)


KEY = jax.random.key(3)
LEARN = il.GradientDescent(lambda meta: optax.sgd(jnp.exp(meta["rate"])), 4)


def episode():
    """The first task."""
    return jax.tree.map(lambda leaf: leaf[0], quadratic_episodes())


def objective(gradient, problem=None, adaptation=LEARN):
    """The loss of one task by an estimator, `(meta, episode=the first) -> scalar`."""
    f = il.meta_objective(problem or quadratic_problem(), adaptation, gradient)
    return lambda meta, task=None: f(meta, task or episode(), KEY)[0]


def assert_close(got, expected, rtol=1e-10, atol=1e-12):
    """Leaf by leaf."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), got, expected)
