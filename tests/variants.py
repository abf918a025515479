"""The table: every adaptation and every meta-gradient. A new variant joins the laws by one line."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import optimistix as optx
from oracle import (
    Quadratic,
    Task,
    adam,
    complex_step,
    momentum,
    quadratic_gradient,
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
    """An adaptation with a problem it solves, and its oracle.

    - `reference`: (meta, episode, key) -> `Task`, in NumPy
    - `float64_only`: it does not run in lower precision
    """

    name: str
    problem: il.Problem
    adaptation: il.Adaptation
    reference: Callable[..., Task]
    float64_only: bool = False


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

        def loss(meta, hold=None, last=None):
            thetas, _, _ = follow(meta, rows_at.__getitem__, noises, frozen, hold, last)
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
    loss = lambda meta, hold=None, last=None: outer(minimum(meta), meta)
    return Task(loss, minimum(_numpy(meta)), stationarity, outer, own_key)


def _procedure_fn(meta, support, key):
    dtype = meta["start"].dtype
    inputs, targets = support["inputs"].astype(dtype), support["targets"].astype(dtype)
    gram = inputs.T @ inputs + jnp.exp(meta["decay"]) * jnp.eye(3, dtype=dtype)
    offset = inputs.T @ targets + quadratic_noise(key, dtype)
    return meta["start"] + jnp.linalg.solve(gram, offset)


def _procedure_reference(meta, episode, key):
    adapt_key, outer_key, own_key = jax.random.split(key, 3)
    noise = np.array(quadratic_noise(jax.random.fold_in(adapt_key, 0)))
    support, outer = _numpy_rows(episode.support), _outer_of(episode, outer_key)

    def loss(meta, hold=None, last=None):
        gram = support.inputs.T @ support.inputs + np.exp(meta["decay"]) * np.eye(3)
        offset = support.inputs.T @ support.targets + noise
        return outer(meta["start"] + np.linalg.solve(gram, offset), meta)

    return Task(loss, None, None, outer, own_key)


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
        float64_only=True,  # LAPACK knows no bfloat16
    ),
    Variant(
        "minimise",
        quadratic_problem(),
        # No line search, whose end would depend on how the loss is rounded.
        il.Minimise(optx.GradientDescent(0.1, rtol=1e-13, atol=1e-13), max_steps=4000),
        minimum_reference,
        float64_only=True,  # the solver's tolerance
    ),
]


class Estimator(NamedTuple):
    """A meta-gradient and the gradient that its formula predicts.

    - `predict`: (task, meta) -> gradient, in NumPy
    - `draws`: whether it draws random numbers of its own, which differ between dtypes
    - `reads_outer`: whether the outer loss has a part in it
    - `float64_only`: its solver's tolerance, or LAPACK, asks for it
    """

    name: str
    gradient: il.MetaGradient
    predict: Callable[[Task, dict], dict]
    draws: bool = False
    reads_outer: bool = True
    float64_only: bool = False


def exact(task, meta):
    return complex_step(task.loss, meta)


def held(hold):
    return lambda task, meta: complex_step(lambda meta: task.loss(meta, hold=hold), meta)


def last(steps):
    return lambda task, meta: complex_step(lambda meta: task.loss(meta, last=steps), meta)


def _implicit(solve):
    """d/dmeta outer - (dF/dmeta)^T v, with H^T v = d/dtheta outer."""

    def predict(task, meta):
        at = lambda theta: task.stationarity(theta, meta)
        hessian = np.stack([at(task.theta + unit) - at(task.theta) for unit in np.eye(3)], axis=1)
        slope = complex_step(lambda m: task.outer(m["theta"], meta), {"theta": task.theta})
        v = solve(hessian, slope["theta"])
        pulled = lambda m: task.outer(task.theta, m) - v @ task.stationarity(task.theta, m)
        return complex_step(pulled, meta)

    return predict


def _neumann(terms, rate):
    def solve(hessian, slope):
        power = np.eye(3) - rate * hessian
        return rate * sum(np.linalg.matrix_power(power, j) for j in range(terms)) @ slope

    return solve


def _reptile(task, meta):
    zeros = {name: np.zeros_like(leaf) for name, leaf in meta.items()}
    return zeros | {"start": meta["start"] - task.theta}


def _flat(tree):
    return np.concatenate([np.ravel(tree[name]) for name in sorted(tree)])


def _unflat(flat, meta):
    ends = np.cumsum([meta[name].size for name in sorted(meta)])
    parts = np.split(flat, ends[:-1])
    return {
        name: part.reshape(meta[name].shape) for name, part in zip(sorted(meta), parts, strict=True)
    }


def _projected(vectors):
    """The orthogonal projection onto the span of `vectors`."""
    rows = np.stack([_flat(_take_row(vectors, i)) for i in range(len(vectors["rate"]))])
    onto = rows.T @ np.linalg.solve(rows @ rows.T, rows)
    return lambda task, meta: _unflat(onto @ _flat(exact(task, meta)), meta)


def _take_row(tree, i):
    return {name: np.array(leaf)[i] for name, leaf in tree.items()}


def _draws(task, meta, sample, count):
    """The documented draw: fold_in(estimator key, i), split over the leaves."""
    for i in range(count):
        keys = jax.random.split(jax.random.fold_in(task.key, i), len(meta))
        leaves = zip(sorted(meta), keys, strict=True)
        yield _flat({n: np.array(sample(k, meta[n].shape, jnp.float64)) for n, k in leaves})


def _random_directions(count):
    def predict(task, meta):
        gradient = _flat(exact(task, meta))
        drawn = _draws(task, meta, jax.random.rademacher, count)
        return _unflat(sum((v @ gradient) * v for v in drawn) / count, meta)

    return predict


def _evolution(pairs, sigma):
    def predict(task, meta):
        at = lambda flat: task.loss(_unflat(flat, meta))
        centre, total = _flat(meta), 0
        for e in _draws(task, meta, jax.random.normal, pairs):
            total += (at(centre + sigma * e) - at(centre - sigma * e)) * e / (2 * sigma * pairs)
        return _unflat(total, meta)

    return predict


def _basis():
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda leaf: rng.normal(size=(3, *leaf.shape)), quadratic_meta())


BASIS = _basis()
_FIRST_TWO = il.FirstOrder(lambda t, params: t < 2)
_FIRST_LEAF = il.FirstOrder(lambda t, params: True)

GRADIENTS = [
    Estimator("unroll", il.Unroll(), exact),
    Estimator("checkpoint-1", il.Unroll(checkpoint=1), exact),
    Estimator("checkpoint-5", il.Unroll(checkpoint=5), exact),
    Estimator("segments", il.Unroll(checkpoint=il.Segments()), exact),
    Estimator("binomial-2", il.Unroll(checkpoint=il.Binomial(2)), exact),
    Estimator("mixed-mode", il.Unroll(mixed_mode=True), exact),
    Estimator("mixed-mode-checkpoint", il.Unroll(checkpoint=1, mixed_mode=True), exact),
    Estimator("mixed-mode-binomial", il.Unroll(il.Binomial(3), mixed_mode=True), exact),
    Estimator("kept-gradients", il.Unroll(il.Segments(2, keep_inner_gradients=True), True), exact),
    Estimator("offload", il.Unroll(il.Segments(2, True, offload=True), mixed_mode=True), exact),
    Estimator("forward-mode", il.ForwardMode(), exact),
    Estimator("forward-mode-chunks", il.ForwardMode(chunk=2), exact),
    Estimator("forward-mode-basis", il.ForwardMode(il.Basis(BASIS)), _projected(BASIS)),
    Estimator(
        "forward-mode-random",
        il.ForwardMode(il.RandomDirections(3)),
        _random_directions(3),
        draws=True,
    ),
    Estimator("first-order", il.FirstOrder(), held(lambda t: True)),
    Estimator("first-order-everywhere", _FIRST_LEAF, held(lambda t: True)),
    Estimator("first-order-steps", _FIRST_TWO, held(lambda t: t < 2)),
    Estimator("truncated-0", il.Truncated(0), last(0)),
    Estimator("truncated-2", il.Truncated(2), last(2)),
    Estimator("truncated-all", il.Truncated(99), exact),
    Estimator("reptile", il.Reptile(), _reptile, reads_outer=False),
    Estimator("evolution", il.EvolutionStrategies(3, 0.1), _evolution(3, 0.1), draws=True),
    Estimator("evolution-chunks", il.EvolutionStrategies(3, 0.1, 2), _evolution(3, 0.1), True),
    Estimator(
        "implicit",
        il.Implicit(lx.CG(1e-13, 1e-13)),
        _implicit(np.linalg.solve),
        float64_only=True,
    ),
    Estimator(
        "implicit-damped",
        il.Implicit(lx.LU(), damping=0.5),
        _implicit(lambda h, g: np.linalg.solve(h + 0.5 * np.eye(3), g)),
        float64_only=True,
    ),
    Estimator("implicit-neumann", il.Implicit(il.Neumann(7, 0.3)), _implicit(_neumann(7, 0.3))),
]
