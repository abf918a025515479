"""What each meta-gradient's formula predicts, in NumPy: `(task, meta) -> gradient`."""

import jax
import jax.numpy as jnp
import numpy as np
from oracle import complex_step


def exact(task, meta):
    """The exact meta-gradient."""
    return complex_step(task.loss, meta)


def dropped(**changes):
    """Without what the changes to the inner loop drop.

    - `hold`: `t -> bool`, steps whose gradients are constants
    - `last`: how many of the last steps are differentiated
    """
    return lambda task, meta: complex_step(lambda meta: task.loss(meta, **changes), meta)


def bounded(norm, **changes):
    """What comes back through each inner gradient to its parameters is shortened.

    Known of the steps after it, this is what the loss does for a parameter that step t alone sees.
    """

    def predict(task, meta):
        shares, nothing = {}, np.zeros(3)

        def loss(meta, step=None, probe=nothing):
            def seen(t, theta, constant):
                share = shares.setdefault(t, 1.0)
                return constant + share * (theta - constant) + (probe if t == step else nothing)

            return task.loss(meta, seen=seen, **changes)

        loss(meta)  # counts the steps
        for t in sorted(shares, reverse=True):
            at = lambda m, t=t: loss(meta, t, m["probe"])
            back = np.linalg.norm(complex_step(at, {"probe": nothing})["probe"])
            shares[t] = min(1, norm / back) if back else 1
        return complex_step(loss, meta)

    return predict


def implicit(solve):
    """d/dmeta outer - (dF/dmeta)^T v, with H^T v = d/dtheta outer."""

    def predict(task, meta):
        at = lambda theta: task.stationarity(theta, meta)
        hessian = np.stack([at(task.theta + unit) - at(task.theta) for unit in np.eye(3)], axis=1)
        slope = complex_step(lambda m: task.outer(m["theta"], meta), {"theta": task.theta})
        v = solve(hessian, slope["theta"])
        pulled = lambda m: task.outer(task.theta, m) - v @ task.stationarity(task.theta, m)
        return complex_step(pulled, meta)

    return predict


def neumann(terms, rate):
    """The partial sum, as a `solve` for `implicit`."""

    def solve(hessian, slope):
        power = np.eye(3) - rate * hessian
        return rate * sum(np.linalg.matrix_power(power, j) for j in range(terms)) @ slope

    return solve


def reptile(task, meta):
    """From the adapted to the initial parameters."""
    zeros = {name: np.zeros_like(leaf) for name, leaf in meta.items()}
    return zeros | {"start": meta["start"] - task.theta}


def clipped(predict, norm):
    """Another prediction, shortened."""

    def shortened(task, meta):
        gradient = predict(task, meta)
        length = np.linalg.norm(_flat(gradient))
        return {name: leaf * min(1, norm / length) for name, leaf in gradient.items()}

    return shortened


def _flat(tree):
    return np.concatenate([np.ravel(tree[name]) for name in sorted(tree)])


def _unflat(flat, meta):
    ends = np.cumsum([meta[name].size for name in sorted(meta)])
    parts = np.split(flat, ends[:-1])
    return {
        name: part.reshape(meta[name].shape) for name, part in zip(sorted(meta), parts, strict=True)
    }


def projected(vectors):
    """The orthogonal projection onto the span of `vectors`."""
    rows = np.stack([_flat(_take_row(vectors, i)) for i in range(len(vectors["rate"]))])
    onto = rows.T @ np.linalg.solve(rows @ rows.T, rows)
    return lambda task, meta: _unflat(onto @ _flat(exact(task, meta)), meta)


def _take_row(tree, i):
    return {name: np.array(leaf)[i] for name, leaf in tree.items()}


def _draws(task, meta, sample, count):
    """The documented draw: fold_in(gradient key, i), split over the leaves."""
    for i in range(count):
        keys = jax.random.split(jax.random.fold_in(task.key, i), len(meta))
        leaves = zip(sorted(meta), keys, strict=True)
        yield _flat({n: np.array(sample(k, meta[n].shape, jnp.float64)) for n, k in leaves})


def random_directions(count):
    """The mean of the documented draws' projections."""

    def predict(task, meta):
        gradient = _flat(exact(task, meta))
        drawn = _draws(task, meta, jax.random.rademacher, count)
        return _unflat(sum((v @ gradient) * v for v in drawn) / count, meta)

    return predict


def evolution(pairs, sigma):
    """Antithetic differences at the documented draws."""

    def predict(task, meta):
        at = lambda flat: task.loss(_unflat(flat, meta))
        centre, total = _flat(meta), 0
        for e in _draws(task, meta, jax.random.normal, pairs):
            total += (at(centre + sigma * e) - at(centre - sigma * e)) * e / (2 * sigma * pairs)
        return _unflat(total, meta)

    return predict
