"""The heads on the laws' tasks, and their oracles in NumPy: another form of each solution."""

import jax
import jax.numpy as jnp
import numpy as np
from oracle import Task, quadratic_noise

import innerloop as il

CLASSES = 2


def features(meta, batch, key):
    """Rows scaled and moved by meta, and their squares; noise by the key."""
    dtype = meta["start"].dtype
    moved = _moved(jnp, meta, batch.inputs["x"].astype(dtype), quadratic_noise(key, dtype))
    return jnp.concatenate([moved, jnp.square(moved)], axis=1)


def narrow_features(meta, batch, key):
    """Fewer than there are rows."""
    return features(meta, batch, key)[:, :3]


def strength(meta):
    """The learned regularisation."""
    return jnp.exp(meta["decay"])


def _moved(np, meta, x, noise):
    return x * np.exp(meta["rates"])[None, :] + (meta["start"] + noise)[None, :]


class OnClasses(il.extend.DirectAdaptation):
    """A classifier's head on the laws' tasks: the rows' numbers modulo 2 are their classes."""

    head: il.extend.DirectAdaptation

    def solve(self, meta, support, key):
        classes = support.inputs["index"] % CLASSES
        return self.head.solve(meta, il.Examples(support.inputs, classes), key)


def weights_out(params, x):
    """What a linear map says of each row: of two outputs, their difference."""
    out = x @ params
    return out if out.ndim == 1 else out[:, 0] - out[:, 1]


def means_out(params, x):
    """How much nearer a row is to the first mean than to the second."""
    means = getattr(params, "means", params)
    distances = ((x[:, None, :] - means[None, :, :]) ** 2).sum(axis=2)
    return distances[:, 1] - distances[:, 0]


def head_problem(features, readout):
    """Squared errors of a head's read-out."""

    def outer_loss(params, meta, batch, key):
        out = readout(params, features(meta, batch, key))
        loss = jnp.mean((out - batch.targets.astype(out.dtype)) ** 2) / 2
        metrics = {"params": params, "rows": batch.inputs["index"]}
        return loss + jnp.sum(meta["start"] ** 2) / 20, metrics

    return il.Problem(None, None, outer_loss)


def head_reference(solution, readout, width):
    """The oracle of a head: `solution(x, targets, classes, strength) -> params`."""

    def reference(meta, episode, key):
        adapt_key, outer_key, own_key = jax.random.split(key, 3)
        support_noise = np.array(quadratic_noise(jax.random.fold_in(adapt_key, 0)))
        query_noise = np.array(quadratic_noise(outer_key))
        support, query = episode.support, episode.query
        classes = np.eye(CLASSES)[np.array(support.inputs["index"]) % CLASSES]

        def seen(meta, batch, noise):
            moved = _moved(np, meta, np.array(batch.inputs["x"]), noise)
            return np.concatenate([moved, moved**2], axis=1)[:, :width]

        def loss(meta, **changes):
            x = seen(meta, support, support_noise)
            params = solution(x, np.array(support.targets), classes, np.exp(meta["decay"]))
            out = readout(params, seen(meta, query, query_noise))
            error = ((out - np.array(query.targets)) ** 2).mean() / 2
            return error + (meta["start"] ** 2).sum() / 20

        return Task(loss, None, None, None, own_key)

    return reference


def class_means(x, targets, classes, strength):
    """One mean after the other."""
    return np.stack([x[member == 1].mean(axis=0) for member in classes.T])


def normal_equations(x, targets, classes, strength):
    """Ridge regression by one matrix, whatever the shape."""
    return np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ targets)


def logistic_slope(scores, y):
    """First and second derivatives of the loss in the scores: (rows, k) and (rows, k, k)."""
    exp = np.exp(scores)
    p = exp / exp.sum(axis=1, keepdims=True)
    return p - y, p[:, :, None] * (np.eye(y.shape[1]) - p[:, None, :])


def squared_hinge_slope(scores, y):
    """The same of the squared hinge, one class against the rest."""
    sign = 2 * y - 1
    inside = (1 - sign * scores).real > 0
    return -sign * inside * (1 - sign * scores), inside[:, :, None] * np.eye(y.shape[1])


def newton(slope):
    """The convex problem in the weights themselves, by halved steps of Newton's method."""

    def solution(x, targets, classes, strength):
        width, ways = x.shape[1], classes.shape[1]
        weights = np.zeros((width, ways), dtype=x.dtype)
        for step in range(60):
            first, second = slope(x @ weights, classes)
            gradient = x.T @ first + strength * weights
            hessian = np.einsum("na,nkl,nb->akbl", x, second, x)
            hessian = hessian.reshape(width * ways, -1) + strength * np.eye(width * ways)
            move = np.linalg.solve(hessian, gradient.reshape(-1)).reshape(weights.shape)
            weights = weights - (0.5 if step < 20 else 1.0) * move
        return weights

    return solution
