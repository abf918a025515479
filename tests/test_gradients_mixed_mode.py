"""Mixed mode: the inner gradient as one operation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratic import KEY, assert_close, episode, objective, quadratic_meta, quadratic_problem

import innerloop as il

pytestmark = pytest.mark.usefixtures("x64")


def test_mixed_mode_passes_back_the_derivatives_of_value_and_aux():
    """What an optimizer makes of `value`, and what is made of the inner losses' aux."""
    base = quadratic_problem()

    def inner_loss(params, meta, batch, key):
        value, _ = base.inner_loss(params, meta, batch, key)
        return value, {"curved": jnp.exp(meta["scale"]) * jnp.sum(params**2)}

    def scaled_by_value(meta):
        def update(updates, state, params=None, *, value, **extra):
            return jax.tree.map(lambda g: -0.1 * jnp.tanh(value) * g, updates), state

        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

    problem = il.Problem(base.init, inner_loss, base.outer_loss)
    learn = il.GradientDescent(scaled_by_value, 3)

    def both(gradient):
        f = il.meta_objective(problem, learn, gradient)

        def total(meta):
            loss, aux = f(meta, episode(), KEY)
            return loss + jnp.sum(aux.info.aux["curved"]) + jnp.sum(aux.info.loss)

        return jax.jit(jax.grad(total))(quadratic_meta())

    assert_close(both(il.Unroll(il.MixedMode())), both(il.Unroll()))
    assert_close(both(il.Unroll(il.MixedMode(), il.Segments(1))), both(il.Unroll()))


def test_mixed_mode_is_exact_in_what_the_loss_closes_over():
    base = quadratic_problem()

    def of_scale(gradient):
        def f(scale):
            inner = lambda params, meta, batch, key: (
                scale * base.inner_loss(params, meta, batch, key)[0]
            )
            problem = il.Problem(base.init, inner, base.outer_loss)
            return objective(gradient, problem)(quadratic_meta())

        return jax.jit(jax.vmap(jax.grad(f)))(jnp.array([0.5, 1.0]))

    assert_close(of_scale(il.Unroll(il.MixedMode(), il.Segments(1))), of_scale(il.Unroll()))


def test_mixed_mode_with_a_loss_of_higher_precision_than_its_parameters():
    loss = lambda params, meta, batch, key: jnp.sum(params.astype(jnp.float32) ** 2)
    problem = il.Problem(lambda meta, support, key: meta, loss, loss)
    learn = il.GradientDescent(optax.polyak_sgd(), 2)
    f = lambda g: jax.grad(il.meta_objective(problem, learn, g), has_aux=True)
    args = (jnp.ones(2, jnp.bfloat16), il.Episode(jnp.ones(1), jnp.ones(1)), KEY)
    with jax.numpy_dtype_promotion("standard"):
        got, expected = f(il.Unroll(il.MixedMode()))(*args)[0], f(il.Unroll())(*args)[0]
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(float), expected.astype(float), rtol=0.05, atol=1e-3)
