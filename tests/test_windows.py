"""Inner runs that span outer steps: what is exact, what is unbiased, and what comes of faults."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from halving import ALL, DRAWN, HALVE, HALVED, PARTS, begun, stepped
from quadratic import assert_close, quadratic_episodes, quadratic_meta, quadratic_problem

import innerloop as il

UNROLL_IN_PARTS = il.Unroll(il.MixedMode(), il.Segments(1))
LEARN = il.GradientDescent(lambda meta: optax.sgd(jnp.exp(meta["rate"])), 4)
MEAN = lambda steps: jnp.full(steps + 1, 1 / (steps + 1))
QUADRATIC = il.tasks.IndependentTasks(
    lambda key: jax.tree.map(
        lambda leaf: leaf[jax.random.randint(key, (), 0, 5)], quadratic_episodes()
    )
)


def size(params):
    """A number that tells the parameters after each step apart."""
    return sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(params))


def measured(problem):
    """The problem with that number for its only metric."""

    def outer_loss(params, meta, batch, key):
        result = problem.outer_loss(params, meta, batch, key)
        return result[0] if isinstance(result, tuple) else result, {"size": size(params)}

    return dataclasses.replace(problem, outer_loss=outer_loss)


def whole_runs(problem, adaptation, carry, meta, steps):
    """The exact meta-gradient of the runs of a carry."""
    adaptation = il.GradientDescent(adaptation.optimizer, steps)
    objective = jax.value_and_grad(il.meta_objective(problem, adaptation), has_aux=True)

    def one(key):
        episode, task_key = il.estimators.task_of_run(QUADRATIC, key)
        (loss, _), grads = objective(meta, episode, task_key)
        return loss, grads

    losses, grads = jax.vmap(one)(carry.key)
    return jnp.mean(losses), jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), grads)


def test_a_window_as_long_as_the_run_is_unroll(x64):
    problem, meta = measured(quadratic_problem(MEAN)), quadratic_meta(jnp.float64)
    parts = (problem, LEARN, QUADRATIC)
    estimator = il.estimators.TruncatedUnroll(*parts, window=6, horizon=6, batch=3, chunk=2)
    carry = estimator.init(meta, jax.random.key(0))
    step = stepped(estimator)
    exact = jax.jit(lambda carry: whole_runs(problem, LEARN, carry, meta, 6))
    for i in range(2):
        expected = exact(carry)
        found, after = step(meta, carry, jax.random.key(i))
        assert_close((found.loss, found.grads), expected)
        assert np.all(found.aux.diagnostics["replaced"]) and np.all(np.asarray(after.step) == 0)
        assert not np.array_equal(*map(jax.random.key_data, (carry.key, after.key)))
        carry = after


def test_windows_of_a_run_are_its_inner_loop(x64):
    """The same keys and numbers as when it is run in one go."""
    problem, meta = measured(quadratic_problem(MEAN)), quadratic_meta(jnp.float64)
    parts = (problem, LEARN, QUADRATIC)
    estimator = il.estimators.TruncatedUnroll(*parts, window=4, horizon=10, batch=1, overlap=2)
    carry = estimator.init(meta, jax.random.key(0))
    step = stepped(estimator)

    @jax.jit
    def trajectory(run_key):
        episode, key = il.estimators.task_of_run(QUADRATIC, run_key)
        parts = (problem, LEARN, meta, episode.support, il.extend.task_keys(key).adapt)
        look = lambda params, t: size(params)
        return il.extend.run(*parts, il.gradients.Exact(), il.gradients.StoreAll(), look, steps=10)[
            2
        ]

    sizes = trajectory(carry.key[0])
    for taken in (4, 6, 8, 10):
        found, carry = step(meta, carry, jax.random.key(taken))
        aux = found.aux
        assert aux.diagnostics["step"][0] == taken
        assert_close(aux.metrics["size"][0], sizes[taken])
    assert aux.diagnostics["replaced"][0]


INFLUENCE = il.tasks.influence_balancing()
MATRIX, PUSH = (np.eye(23) + np.eye(23, k=1)) / 2, np.array(10 * [1.0] + 13 * [-1.0])
HORIZON = 100


def influence_gradient(meta, window=HORIZON, overlap=0):
    """The mean over windows of truncated gradients, in NumPy, by the recursion of states and
    slopes; scaled by the number of windows."""
    start, gradient = np.ones(len(PUSH)), 0.0
    for first in range(0, HORIZON - overlap, window - overlap):
        state, slope = start, np.zeros(len(PUSH))
        for t in range(first + 1, first + window + 1):
            state, slope = MATRIX @ state + meta * PUSH, MATRIX @ slope + PUSH
            if first == 0 or t > first + overlap:
                gradient += (state[0] - 1) * slope[0] / HORIZON
            if t == first + window - overlap:
                start = state
    return gradient


def influence(kind, window, horizon=HORIZON, batch=1, **settings):
    return kind(*INFLUENCE, window, horizon, batch, **settings)


def estimates(estimator, meta, runs, seed=0):
    """The mean over its windows of one whole run's estimates: one number per run."""
    windows = (HORIZON - estimator.overlap) // (estimator.window - estimator.overlap)

    def one_run(key):
        def one(carry, i):
            found, carry = estimator.step(meta, carry, None, jax.random.fold_in(key, i), i)
            return carry, found.grads

        carry = estimator.init(meta, key)
        carry, grads = jax.lax.scan(one, carry, jnp.arange(windows, dtype=jnp.int32))
        return jnp.mean(grads), carry.step

    values, step = jax.jit(jax.vmap(one_run))(jax.random.split(jax.random.key(seed), runs))
    assert np.all(np.asarray(step) == 0)  # every run came to its end, and no further
    return np.asarray(values)


@pytest.mark.parametrize(("window", "overlap"), [(100, 0), (5, 0), (10, 5)])
def test_truncation_drops_what_came_before_the_window(x64, window, overlap):
    estimator = influence(il.estimators.TruncatedUnroll, window, overlap=overlap)
    found = estimates(estimator, jnp.float64(0.5), 1)
    np.testing.assert_allclose(found[0], influence_gradient(0.5, window, overlap), rtol=1e-10)


@pytest.mark.parametrize(
    ("estimator", "window"),
    [
        (il.estimators.PersistentES, HORIZON),
        (il.estimators.NoiseReuseES, HORIZON),
        (il.estimators.TruncatedES, 5),
    ],
)
def test_the_sign_is_wrong_within_a_window_and_right_beyond(x64, estimator, window):
    """The mean is within 4 standard errors of what it should be: the whole gradient, or that of
    the windows. (The loss is quadratic, so that smoothing does not change its gradient.)"""
    exact, expected = influence_gradient(0.5), influence_gradient(0.5, window)
    assert exact > 0 and (expected < 0) == (window == 5)
    found = estimates(influence(estimator, 5, pairs=1, sigma=0.1), jnp.float64(0.5), 4000)
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert error < abs(expected) / 10  # enough runs to tell
    assert abs(np.mean(found) - expected) < 4 * error


def particle_losses(noises, window):
    """The losses of one particle, window by window, by NumPy: each has a perturbation."""
    state, losses = np.ones(len(PUSH)), []
    for noise in noises:
        total = 0.0
        for _ in range(window):
            state = MATRIX @ state + (0.5 + noise) * PUSH
            total += (state[0] - 1) ** 2 / 2
        losses.append(total)
    return np.array(losses)


@pytest.mark.parametrize("kind", [il.estimators.PersistentES, il.estimators.NoiseReuseES])
def test_losses_are_credited_to_the_perturbations_that_made_them(x64, kind):
    """Against the papers' formulas in NumPy, with the same perturbations."""
    sigma, windows, pairs, meta = 0.1, 4, 3, jnp.float64(0.5)
    settings = {"pairs": pairs, "sigma": sigma, "pairs_at_once": 2}
    estimator = influence(kind, 5, 5 * windows, **settings)
    step = stepped(estimator)
    carry = estimator.init(meta, jax.random.key(0))
    found, credited = [], []
    for i in range(windows):
        estimate, after = step(meta, carry, jax.random.key(i))
        found.append(estimate.grads)
        if i < windows - 1:  # after the last, the run has been replaced
            credited.append(np.asarray(after.state.noise)[0])
        carry = after
    credited = np.array(credited)
    drawn = credited if kind is il.estimators.NoiseReuseES else np.diff(credited, axis=0, prepend=0)
    start = np.asarray(carry.state.noise)
    if kind is il.estimators.NoiseReuseES:
        assert np.all(credited == credited[0])
    estimate = 0
    for pair in range(pairs):
        plus, minus = (particle_losses(sign * drawn[:, pair], 5) for sign in (1, -1))
        estimate += (plus - minus) / 5 / (2 * sigma**2) * credited[:, pair] / pairs
    np.testing.assert_allclose(found[: windows - 1], estimate, rtol=1e-10)
    assert start.shape == (1, pairs)


def test_ends_are_spread_over_the_horizon():
    step, meta, carry = begun(il.estimators.TruncatedUnroll(*PARTS, 2, 8, batch=4))
    ended = []
    for i in range(8):
        found, carry = step(meta, carry, jax.random.key(i))
        ended.append(np.flatnonzero(found.aux.diagnostics["replaced"]).tolist())
    assert ended == [[3], [2], [1], [0], [3], [2], [1], [0]]
    assert np.all(carry.end == 8)


def test_horizons_are_drawn_and_each_weighs_its_own_losses():
    horizons = (2, 8)
    estimator = il.estimators.TruncatedUnroll(*PARTS, 2, horizons, batch=6)
    _, meta, carry = begun(estimator)
    lengths = np.array(horizons)[np.asarray(carry.horizon)]
    assert set(lengths) == set(horizons)
    carry = carry._replace(end=jnp.asarray(lengths, jnp.int32))  # none of the first is shortened
    one = jax.jit(
        lambda carry, key: jax.vmap(
            lambda run: estimator.step(
                meta, jax.tree.map(lambda leaf: leaf[None], run), None, key, jnp.int32(0)
            )
        )(carry)
    )
    losses, unfinished, support = np.zeros(6), np.ones(6, bool), np.asarray(carry.episode.support)
    for i in range(4):
        found, carry = one(carry, jax.random.key(i))
        carry = jax.tree.map(lambda leaf: leaf[:, 0], carry)
        losses += np.where(unfinished, found.loss, 0)
        unfinished &= ~np.asarray(found.aux.diagnostics["replaced"])[:, 0]
    for i, n in enumerate(lengths):
        expected = np.mean((support[i] / 2.0 ** np.arange(n + 1)) ** 2)
        windows_per_run = (1 + 4) / 2
        np.testing.assert_allclose(losses[i], windows_per_run * expected, rtol=1e-5)


def test_log_uniform_horizons():
    drawn = il.estimators.log_uniform(20, 2000, window=20, values=50)
    assert len(drawn) == 50 and drawn[0] == 20 and drawn[-1] == 2000
    assert all(n % 20 == 0 for n in drawn)
    assert 180 <= np.median(drawn) <= 220


@pytest.mark.parametrize("name", ALL)
def test_a_run_that_diverges_is_counted_and_replaced_and_harms_no_other(name):
    """The mean is that of the others, as if it had the weight zero."""
    step, meta, carry = begun(ALL[name])
    support, weight = carry.episode.support, carry.episode.weight
    without = il.Episode(support, carry.episode.query, weight.at[2].set(0))
    alone, sound = step(meta, carry._replace(episode=without), jax.random.key(1))
    bad = il.Episode(support.at[2].set(jnp.nan), carry.episode.query, weight)
    same, after = step(meta, carry._replace(episode=bad), jax.random.key(1))
    np.testing.assert_allclose([same.loss, same.grads], [alone.loss, alone.grads], rtol=1e-6)
    diverged = np.asarray(same.aux.diagnostics["diverged"])
    assert float(same.metrics["diverged"]) == diverged.sum()
    found = same.aux.diagnostics
    assert np.asarray(found["diverged"]).astype(bool).tolist() == [False, False, True]
    assert found["counts"].tolist() == [True, True, False]
    assert found["replaced"].tolist() == [False, False, True]
    assert np.array_equal(*map(jax.random.key_data, (found["key"], carry.key)))
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[:2], b[:2]), *map(_data, (after, sound))
    )
    for i in range(4):
        later, after = step(meta, after, jax.random.key(i))
        assert np.isfinite(later.loss) and np.isfinite(later.grads)
        assert np.all(later.aux.diagnostics["counts"])


def _data(run):
    return run._replace(key=jax.random.key_data(run.key))


@pytest.mark.parametrize("name", ALL)
def test_without_a_finite_run_there_is_no_loss_and_no_gradient(name):
    step, meta, carry = begun(ALL[name])
    task = carry.episode
    bad = carry._replace(episode=il.Episode(task.support * jnp.inf, task.query, task.weight))
    found, carry = step(meta, bad, jax.random.key(1))
    assert np.isnan(found.loss) and found.grads == 0
    assert np.all(found.aux.diagnostics["replaced"])
    found, _ = step(meta, carry, jax.random.key(2))
    assert np.isfinite(found.loss) and np.isfinite(found.grads)


CLIFF = il.Problem(
    lambda meta, support, key: meta,
    lambda params, meta, batch, key: params**2 / 4,
    lambda params, meta, batch, key: jnp.where(params > 0.4, jnp.inf, params**2 * batch),
    lambda steps: jnp.ones(steps + 1).at[0].set(0),
)


@pytest.mark.parametrize("name", ["persistent", "truncated"])
def test_a_clipped_loss_leads_away_from_divergence(name):
    """Halved once, a meta of 0.9 falls off the cliff and 0.7 does not: without a limit the pairs
    that fall say nothing, with one they say that less is better, and all runs count."""
    sigma = ALL[name].sigma
    kind = type(ALL[name])
    gradients = []
    for clip in (None, 2.0):
        settings = {"pairs": 4, "sigma": sigma, "clip": clip}
        estimator = kind(CLIFF, HALVE, DRAWN, 2, 8, 64, **settings)
        step, meta, carry = begun(estimator, meta=0.7)
        found, _ = step(meta, carry, jax.random.key(1))
        assert np.isfinite(found.loss)
        gradients.append(float(found.grads))
    assert gradients[1] > 2 * abs(gradients[0]) and np.all(found.aux.diagnostics["counts"])


def test_beyond_the_clip_there_is_no_slope():
    ones = il.tasks.IndependentTasks(lambda key: il.Episode(jnp.ones(()), jnp.ones(())))
    estimator = il.estimators.TruncatedUnroll(HALVED, HALVE, ones, 2, 8, 1, clip=0.5)
    step, meta, carry = begun(estimator)
    found, _ = step(meta, carry, jax.random.key(0))
    # losses 1, 1/4, 1/16 after 0, 1, 2 steps; the first is cut to 0.5
    np.testing.assert_allclose(found.loss, 4 / 9 * (0.5 + 0.25 + 0.0625), rtol=1e-6)
    np.testing.assert_allclose(found.grads, 4 / 9 * 2 * (0.25 + 0.0625), rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_chunks_change_nothing(name):
    step, meta, carry = begun(ALL[name])
    chunked = stepped(dataclasses.replace(ALL[name], chunk=2))
    results = [f(meta, carry, jax.random.key(1)) for f in (step, chunked)]
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)
    plain = lambda found, after: (found.loss, found.grads, found.metrics, _data(after))
    jax.tree.map(same, *(plain(*result) for result in results))


def test_mixed_mode_and_checkpoints_are_the_same_gradient():
    results = []
    for unroll in (il.Unroll(), UNROLL_IN_PARTS):
        estimator = il.estimators.TruncatedUnroll(*PARTS, 4, 8, 3, 2, unroll)
        step, meta, carry = begun(estimator)
        for i in range(2):
            found, carry = step(meta, carry, jax.random.key(i))
        results.append(found.grads)
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_without_weights_the_last_loss_of_a_run_counts_alone():
    problem = il.Problem(HALVED.init, HALVED.inner_loss, HALVED.outer_loss)
    estimator = il.estimators.TruncatedUnroll(problem, HALVE, DRAWN, 2, 4, 1)
    step, meta, carry = begun(estimator)
    support, found = carry.episode.support[0], []
    for i in range(2):
        estimate, carry = step(meta, carry, jax.random.key(i))
        found.append([estimate.loss, estimate.grads])
    last, windows = support / 2**4, 2
    # the gradient is zero too: what meta does, the initial value, lies before the last window
    np.testing.assert_allclose(found, [[0, 0], [windows * last**2, 0]], rtol=1e-6)
