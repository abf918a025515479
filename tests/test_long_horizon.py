"""Inner runs that span outer steps: what is exact, what is unbiased, and what comes of faults."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from halving import ALL, DRAWN, HALVE, HALVED, begun
from quadratic import assert_close, quadratic_episodes, quadratic_meta, quadratic_problem

import innerloop as il

LEARN = il.GradientDescent(lambda meta: optax.sgd(jnp.exp(meta["rate"])), 4)
MEAN = lambda steps: jnp.full(steps + 1, 1 / (steps + 1))
QUADRATIC = il.tasks.IndependentTasks(
    lambda key: jax.tree.map(
        lambda leaf: leaf[jax.random.randint(key, (), 0, 5)], quadratic_episodes()
    )
)


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
    problem, meta = quadratic_problem(MEAN), quadratic_meta(jnp.float64)
    estimator = il.estimators.TruncatedUnroll(window=6, horizon=6)
    carry = estimator.init(problem, LEARN, QUADRATIC, meta, jax.random.key(0), batch=3)
    step = jax.jit(estimator.value_and_grad(problem, LEARN, QUADRATIC, chunk=2))
    exact = jax.jit(lambda carry: whole_runs(problem, LEARN, carry, meta, 6))
    for i in range(2):
        expected = exact(carry)
        ((loss, aux), grads), after = step(meta, carry, jax.random.key(i))
        assert_close((loss, grads), expected)
        assert np.all(aux.diagnostics["replaced"]) and np.all(np.asarray(after.step) == 0)
        assert not np.array_equal(*map(jax.random.key_data, (carry.key, after.key)))
        carry = after


def test_windows_of_a_run_are_its_inner_loop(x64):
    """The same keys and numbers as when it is run in one go."""
    problem, meta = quadratic_problem(MEAN), quadratic_meta(jnp.float64)
    estimator = il.estimators.TruncatedUnroll(window=4, horizon=10, overlap=2)
    carry = estimator.init(problem, LEARN, QUADRATIC, meta, jax.random.key(0), batch=1)
    step = jax.jit(estimator.value_and_grad(problem, LEARN, QUADRATIC))

    @jax.jit
    def trajectory(run_key):
        episode, key = il.estimators.task_of_run(QUADRATIC, run_key)
        parts = (problem, LEARN, meta, episode.support, il.extend.task_keys(key).adapt)
        look = lambda params, t: params
        return il.extend.run(*parts, il.gradients.Exact(), il.gradients.StoreAll(), look, steps=10)[
            2
        ]

    params = trajectory(carry.key[0])
    for taken in (4, 6, 8, 10):
        ((_, aux), _), carry = step(meta, carry, jax.random.key(taken))
        assert aux.diagnostics["step"][0] == taken
        assert_close(aux.metrics["params"][0], params[taken])
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


def estimates(estimator, meta, runs, seed=0):
    """The mean over its windows of one whole run's estimates: one number per run."""
    parts = INFLUENCE
    step = estimator.value_and_grad(*parts)
    windows = (HORIZON - estimator.overlap) // (estimator.window - estimator.overlap)

    def one_run(key):
        def one(carry, i):
            (_, grads), carry = step(meta, carry, jax.random.fold_in(key, i))
            return carry, grads

        carry = estimator.init(*parts, meta, key, batch=1)
        carry, grads = jax.lax.scan(one, carry, jnp.arange(windows, dtype=jnp.int32))
        return jnp.mean(grads), carry.step

    values, step = jax.jit(jax.vmap(one_run))(jax.random.split(jax.random.key(seed), runs))
    assert np.all(np.asarray(step) == 0)  # every run came to its end, and no further
    return np.asarray(values)


@pytest.mark.parametrize(("window", "overlap"), [(100, 0), (5, 0), (10, 5)])
def test_truncation_drops_what_came_before_the_window(x64, window, overlap):
    found = estimates(il.estimators.TruncatedUnroll(window, HORIZON, overlap), jnp.float64(0.5), 1)
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
    found = estimates(estimator(5, HORIZON, pairs=1, sigma=0.1), jnp.float64(0.5), 4000)
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
    estimator = kind(5, 5 * windows, pairs=pairs, sigma=sigma, chunk=2)
    parts = INFLUENCE
    step = jax.jit(estimator.value_and_grad(*parts))
    carry = estimator.init(*parts, meta, jax.random.key(0), batch=1)
    found, credited = [], []
    for i in range(windows):
        ((_, _), grads), after = step(meta, carry, jax.random.key(i))
        found.append(grads)
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
    step, meta, carry = begun(ALL["unroll"], batch=4)
    ended = []
    for i in range(8):
        ((_, aux), _), carry = step(meta, carry, jax.random.key(i))
        ended.append(np.flatnonzero(aux.diagnostics["replaced"]).tolist())
    assert ended == [[3], [2], [1], [0], [3], [2], [1], [0]]
    assert np.all(carry.end == 8)


def test_horizons_are_drawn_and_each_weighs_its_own_losses():
    horizons = (2, 8)
    estimator = il.estimators.TruncatedUnroll(2, horizons)
    _, meta, carry = begun(estimator, batch=6)
    lengths = np.array(horizons)[np.asarray(carry.horizon)]
    assert set(lengths) == set(horizons)
    carry = carry._replace(end=jnp.asarray(lengths, jnp.int32))  # none of the first is shortened
    one = jax.jit(
        lambda carry, key: jax.vmap(
            lambda run: estimator.value_and_grad(HALVED, HALVE, DRAWN)(
                meta, jax.tree.map(lambda leaf: leaf[None], run), key
            )
        )(carry)
    )
    losses, unfinished, support = np.zeros(6), np.ones(6, bool), np.asarray(carry.episode.support)
    for i in range(4):
        ((loss, aux), _), carry = one(carry, jax.random.key(i))
        carry = jax.tree.map(lambda leaf: leaf[:, 0], carry)
        losses += np.where(unfinished, loss, 0)
        unfinished &= ~np.asarray(aux.diagnostics["replaced"])[:, 0]
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
    ((loss, _), grads), sound = step(meta, carry._replace(episode=without), jax.random.key(1))
    bad = il.Episode(support.at[2].set(jnp.nan), carry.episode.query, weight)
    ((same, aux), same_grads), after = step(meta, carry._replace(episode=bad), jax.random.key(1))
    np.testing.assert_allclose([same, same_grads], [loss, grads], rtol=1e-6)
    found = aux.diagnostics
    assert np.asarray(found["diverged"]).astype(bool).tolist() == [False, False, True]
    assert found["counts"].tolist() == [True, True, False]
    assert found["replaced"].tolist() == [False, False, True]
    assert np.array_equal(*map(jax.random.key_data, (found["key"], carry.key)))
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[:2], b[:2]), *map(_data, (after, sound))
    )
    for i in range(4):
        ((loss, aux), grads), after = step(meta, after, jax.random.key(i))
        assert np.isfinite(loss) and np.isfinite(grads) and np.all(aux.diagnostics["counts"])


def _data(run):
    return run._replace(key=jax.random.key_data(run.key))


@pytest.mark.parametrize("name", ALL)
def test_without_a_finite_run_there_is_no_loss_and_no_gradient(name):
    step, meta, carry = begun(ALL[name])
    task = carry.episode
    bad = carry._replace(episode=il.Episode(task.support * jnp.inf, task.query, task.weight))
    ((loss, aux), grads), carry = step(meta, bad, jax.random.key(1))
    assert np.isnan(loss) and grads == 0 and np.all(aux.diagnostics["replaced"])
    ((loss, _), grads), _ = step(meta, carry, jax.random.key(2))
    assert np.isfinite(loss) and np.isfinite(grads)


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
        estimator = kind(2, 8, pairs=4, sigma=sigma, clip=clip)
        step, meta, carry = begun(estimator, 64, CLIFF, meta=0.7)
        ((loss, aux), grads), _ = step(meta, carry, jax.random.key(1))
        assert np.isfinite(loss)
        gradients.append(float(grads))
    assert gradients[1] > 2 * abs(gradients[0]) and np.all(aux.diagnostics["counts"])


def test_beyond_the_clip_there_is_no_slope():
    estimator = il.estimators.TruncatedUnroll(2, 8, clip=0.5)
    step, meta, carry = begun(
        estimator,
        1,
        drawn=il.tasks.IndependentTasks(lambda key: il.Episode(jnp.ones(()), jnp.ones(()))),
    )
    ((loss, _), grads), _ = step(meta, carry, jax.random.key(0))
    # losses 1, 1/4, 1/16 after 0, 1, 2 steps; the first is cut to 0.5
    np.testing.assert_allclose(loss, 4 / 9 * (0.5 + 0.25 + 0.0625), rtol=1e-6)
    np.testing.assert_allclose(grads, 4 / 9 * 2 * (0.25 + 0.0625), rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_chunks_change_nothing(name):
    parts = (HALVED, HALVE, DRAWN)
    step, meta, carry = begun(ALL[name])
    chunked = jax.jit(ALL[name].value_and_grad(*parts, chunk=2))
    results = [f(meta, carry, jax.random.key(1)) for f in (step, chunked)]
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)
    (((loss, _), grads), after), (((loss2, _), grads2), after2) = results
    jax.tree.map(same, (loss, grads, _data(after)), (loss2, grads2, _data(after2)))


def test_mixed_mode_and_checkpoints_are_the_same_gradient():
    results = []
    for unroll in (il.Unroll(), il.Unroll(il.MixedMode(), il.Segments(1))):
        step, meta, carry = begun(il.estimators.TruncatedUnroll(4, 8, 2, unroll), batch=3)
        for i in range(2):
            (_, grads), carry = step(meta, carry, jax.random.key(i))
        results.append(grads)
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_without_weights_the_last_loss_of_a_run_counts_alone():
    problem = il.Problem(HALVED.init, HALVED.inner_loss, HALVED.outer_loss)
    step, meta, carry = begun(il.estimators.TruncatedUnroll(2, 4), batch=1, problem=problem)
    support, found = carry.episode.support[0], []
    for i in range(2):
        ((loss, _), grads), carry = step(meta, carry, jax.random.key(i))
        found.append([loss, grads])
    last, windows = support / 2**4, 2
    # the gradient is zero too: what meta does, the initial value, lies before the last window
    np.testing.assert_allclose(found, [[0, 0], [windows * last**2, 0]], rtol=1e-6)
