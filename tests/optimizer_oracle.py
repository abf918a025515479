"""The learned optimizers once more, in NumPy: update rules that complex steps go through.

Each is `(t, theta, state, gradient, meta) -> (theta, state)`, as in `oracle`, for one array.
"""

import numpy as np

TIMES = np.array([1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000])


def relu(x):
    return np.where(x.real > 0, x, 0)


def network(weights, x, activation=relu):
    """A `mlp`: rows to rows."""
    for layer in weights["body"]:
        x = activation(x @ layer["weights"] + layer["bias"])
    return x @ weights["head"]["weights"] + weights["head"]["bias"]


def unit(features, axes):
    return features / np.sqrt((features**2).mean(axis=axes, keepdims=True) + 1e-9)


def average(old, value, decays):
    return [d * m + (1 - d) * value for d, m in zip(decays, old, strict=True)]


def schedule(horizon):
    """Linear between the logarithms, by hand."""

    def update(t, theta, state, gradient, meta):
        knots = meta["log_rates"]
        place = min(t, horizon - 1) * (len(knots) - 1) / (horizon - 1)
        left = min(int(place), len(knots) - 2)
        value = knots[left] + (place - left) * (knots[left + 1] - knots[left])
        return theta - np.exp(value) * gradient, state

    return update


def hypergradient(direction):
    """Algorithms 4 and 6 of the paper; `direction(t, gradient, state) -> (direction, state)`."""

    def update(t, theta, state, gradient, meta):
        rate, last, inner = state or (np.exp(meta["log_rate"]), 0 * gradient, None)
        rate = rate + np.exp(meta["log_hyper_rate"]) * (gradient * last).sum()
        now, inner = direction(t, gradient, inner)
        return theta - rate * now, (rate, now, inner)

    return update


def small_mlp(weights, decays, second_decays, step, magnitude):
    """The per-parameter network; `weights` is `meta -> network parameters`."""

    def update(t, theta, state, gradient, meta):
        first, second = state or ([0] * len(decays), [0] * len(second_decays))
        first = average(first, gradient, decays)
        second = average(second, gradient**2, second_decays)
        roots = [(v + 1e-8) ** -0.5 for v in second]
        own = [gradient, theta, *first, *roots, *(gradient * root for root in roots)]
        own += [m * root for m in first for root in roots]
        own = unit(np.stack([feature.ravel() for feature in own]), 1)
        time = np.repeat(np.tanh(t / TIMES - 1)[:, None], theta.size, axis=1)
        direction, size = network(weights(meta), np.concatenate([own, time]).T).T
        move = step * direction * np.exp(magnitude * size)
        return theta - move.reshape(theta.shape), (first, second)

    return update


def celo2(t, theta, state, gradient, meta):
    """For a vector or a matrix."""
    decays, vector = (0.9, 0.99, 0.999), theta.ndim == 1
    first, second, rows, columns = state or ([0] * 3, [0], [0] * 3, [0] * 3)
    g, p = (x[None] if vector else x for x in (gradient, theta))
    first, second = average(first, g, decays), average(second, g**2, (0.95,))
    rows = average(rows, (g**2 + 1e-30).mean(1, keepdims=True), decays)
    columns = average(columns, (g**2 + 1e-30).mean(0, keepdims=True), decays)
    root = (second[0] + 1e-8) ** -0.5
    factored = [
        (r / (r.mean(axis=0, keepdims=True) + 1e-9) * c + 1e-9) ** -0.5
        for r, c in zip(rows, columns, strict=True)
    ]
    x = [g, np.where(abs(g.real) > 0.1, 0.1 * np.sign(g.real), g), p, *first, *second, root]
    x += [m * root for m in first] + [g * root]
    x += [g * f for f in factored] + [m * f for m, f in zip(first, factored, strict=True)]
    alone = [*rows, *columns, *((v + 1e-8) ** -0.5 for v in (*rows, *columns))]
    x += [0 * moment if vector else moment for moment in alone]
    x = unit(np.stack([np.broadcast_to(feature, g.shape) for feature in x]), (1, 2))
    direction = network(meta["network"], x.reshape(30, -1).T).reshape(g.shape)
    move = np.exp(meta["log_rate"]) * unit(direction, (0, 1))
    return theta - move.reshape(theta.shape), (first, second, rows, columns)


def lstm(weights, width, scale):
    """The recurrent network; `weights` is `meta -> parameters`."""
    sigmoid = lambda x: 1 / (1 + np.exp(-x))

    def update(t, theta, state, gradient, meta):
        net, after = weights(meta), []
        g = gradient.ravel()
        large = abs(g.real) >= np.exp(-10)
        size = np.where(large, np.where(g.real < 0, -g, g), 1)
        signs = np.where(large, np.sign(g.real), np.exp(10) * g)
        x = np.stack([np.where(large, np.log(size) / 10, -1), signs], axis=1)
        zeros = np.zeros((theta.size, width))
        for cell, (h, c) in zip(net["cells"], state or [(zeros, zeros)] * 9, strict=False):
            gates = np.concatenate([x, h], axis=1) @ cell["weights"] + cell["bias"]
            enter, forget, candidate, leave = (
                gates[:, i * width : (i + 1) * width] for i in range(4)
            )
            c = sigmoid(forget) * c + sigmoid(enter) * np.tanh(candidate)
            x = sigmoid(leave) * np.tanh(c)
            after.append((x, c))
        move = scale * (x @ net["head"]["weights"] + net["head"]["bias"])
        return theta + move.reshape(theta.shape), after

    return update


def adam_controller(weights, horizon, rate):
    """For a list of arrays; `weights` is `meta -> network parameters`."""
    power = lambda x: np.log10((x**2).mean() + 1e-16) / 2
    length = lambda x: np.sqrt((x**2).sum() + 1e-16)
    relative = lambda x, size: np.log10(np.sqrt((x**2).mean() + 1e-16) / size + 0.01)

    def update(t, thetas, states, gradients, meta):
        states, rows = states or [None] * len(thetas), []
        large = [theta for theta in thetas if theta.ndim > 1]
        window = lambda theta: np.prod(theta.shape[:-2])
        glorot = [np.full(a.size, 2 / window(a) / sum(a.shape[-2:])) for a in large]
        size = np.sqrt(np.concatenate(glorot).mean()) if glorot else 1.0
        for theta, state, g in zip(thetas, states, gradients, strict=True):
            ratios = [0, 0, 0]
            if state:
                m, v, (of_m, of_v), aligned = state
                unit = np.log10((v / of_v).mean() + 1e-16) / 2
                ratios = [power(g) - unit, power(m / of_m) - unit, aligned]
            sizes = relative(theta, size), power(g) + np.log10(size) + 2
            rows.append([*sizes, *ratios, min(theta.ndim, 2) - 1, np.log10(theta.size) - 2])
        own = np.array(rows)
        run = [
            2 * min(t / horizon, 1) - 1,
            *np.exp(-t / np.array([3, 10, 30])),
            *own[:, 2:5].mean(axis=0),
        ]
        numbers = sum(theta.size for theta in thetas)
        gain = 3 * relative(np.concatenate([*map(np.ravel, large)]), size) if large else 0
        run += [np.log10(numbers) - 2.5, 2 * np.log10(len(thetas)) - 1, gain]
        x = np.concatenate([own, np.tile(run, (len(own), 1))], axis=1)
        moved, after = [], []
        outputs = network(weights(meta), x, np.tanh)
        for theta, state, g, o in zip(thetas, states, gradients, outputs, strict=True):
            m, v, (of_m, of_v), aligned = state or (0 * g, 0 * g, (0, 0), 0)
            b1, b2 = 1 / (1 + np.exp(-o[1]) / 9), 1 / (1 + np.exp(-o[2]) / 99)
            aligned = 0.9 * aligned + 0.1 * (g * m).sum() / length(g) / length(m)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            of_m, of_v = b1 * of_m + 1 - b1, b2 * of_v + 1 - b2
            direction = size * m / of_m / np.sqrt(v / of_v + 1e-16) + 0.01 * np.exp(o[3]) * theta
            moved.append(theta - rate * 0.1 ** min(t / horizon, 1) * np.exp(o[0]) * direction)
            after.append((m, v, (of_m, of_v), aligned))
        return moved, after

    return update


def alone(update):
    """The rule for a list of arrays as one for a single array."""

    def of_one(t, theta, state, gradient, meta):
        (theta,), state = update(t, [theta], state, [gradient], meta)
        return theta, state

    return of_one
