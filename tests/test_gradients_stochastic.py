"""Estimates by random draws: right on average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratic import KEY, LEARN, episode, quadratic_meta, quadratic_problem

import innerloop as il

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize(
    "gradient",
    [il.EvolutionStrategies(64, 1e-3), il.ForwardMode(il.gradients.RandomDirections(64))],
    ids=["evolution", "random directions"],
)
def test_stochastic_meta_gradients_are_within_four_standard_errors_of_the_exact_gradient(gradient):
    """At this width the smoothing itself changes less than a hundredth of a standard error."""
    meta, one = quadratic_meta(), episode()
    estimate = il.meta_objective(quadratic_problem(), LEARN, gradient)
    keys = jax.random.split(jax.random.key(0), 100)
    # The task's key drives both the inner loop and the draws: the noise of the first is averaged
    # over in the exact gradient of the very same keys.
    each = jax.jit(jax.vmap(jax.grad(lambda m, k: estimate(m, one, k)[0]), (None, 0)))(meta, keys)
    true = il.meta_objective(quadratic_problem(), LEARN)
    exact = jax.jit(jax.vmap(jax.grad(lambda m, k: true(m, one, k)[0]), (None, 0)))(meta, keys)
    error = jax.tree.map(lambda a, b: np.asarray(a - b).reshape(100, -1), each, exact)
    error = np.concatenate(jax.tree.leaves(error), axis=1)
    flat = np.concatenate([np.ravel(leaf.mean(axis=0)) for leaf in jax.tree.leaves(exact)])
    standard_error = error.std(axis=0, ddof=1) / 10
    assert np.linalg.norm(standard_error) < 0.1 * np.linalg.norm(flat)  # enough samples
    read = standard_error > 1e-9
    assert read.sum() >= 5
    assert np.all(np.abs(error.mean(axis=0))[read] < 4 * standard_error[read])


def test_more_pairs_have_less_variance():
    meta, one = quadratic_meta(), episode()
    true = il.meta_objective(quadratic_problem(), LEARN)
    spread = []
    for pairs in (2, 32):
        f = il.meta_objective(quadratic_problem(), LEARN, il.EvolutionStrategies(pairs, 0.01))
        gap = lambda k, f=f: jax.tree.map(
            jnp.subtract,
            jax.grad(lambda m: f(m, one, k)[0])(meta),
            jax.grad(lambda m: true(m, one, k)[0])(meta),
        )
        gaps = jax.jit(jax.vmap(gap))(jax.random.split(KEY, 200))
        spread.append(sum(float(jnp.sum(jnp.var(leaf, axis=0))) for leaf in jax.tree.leaves(gaps)))
    assert 8 < spread[0] / spread[1] < 32  # 16 in the mean


@pytest.mark.parametrize(
    "build",
    [
        lambda chunk: il.EvolutionStrategies(32, 0.1, chunk=chunk),
        pytest.param(
            lambda chunk: il.ForwardMode(il.gradients.RandomDirections(32), chunk=chunk),
            marks=pytest.mark.full,
        ),
    ],
    ids=["evolution", "random directions"],
)
def test_a_chunk_of_draws_takes_less_memory_than_all_at_once(build):
    """Compiled, not run."""
    model = il.models.mlp([8, 64, 8])
    problem, learn, _, init, *_ = il.recipes.maml(model, il.models.mean_squared_error, 0.01, 4)
    rows = jnp.zeros((16, 8))
    data = il.Episode(il.Examples(rows, rows), il.Examples(rows, rows))

    def temporary(chunk):
        f = jax.jit(jax.grad(il.meta_objective(problem, learn, build(chunk)), has_aux=True))
        compiled = f.lower(init(jax.random.key(0)), data, KEY).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(2) < 0.5 * temporary(None)
