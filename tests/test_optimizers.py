"""Learned optimizers: each equals its formula in NumPy, and learns to optimise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import innerloop as il

ADAM = functools.partial(optax.scale_by_adam, eps_root=1e-16)
PARAMS = {"a": jnp.array([[0.5, -1.0], [2.0, 0.3]]), "b": jnp.array([0.1, -0.2])}


def optax_loop(optimizer, gradient, params, steps):
    """Any optax training loop, compiled. (optax promotes dtypes by itself.)"""

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
        for _ in range(steps):
            params, state = step(params, state)
    return params


def bowl(params):
    """Gradient of a quadratic with another curvature in each coordinate."""
    return {"a": jnp.array([[1.0, 2.0], [3.0, 0.5]]) * params["a"], "b": 4 * params["b"] - 1}


@pytest.mark.parametrize("kind", [il.ScalarRate, il.LayerRates, il.ParameterRates])
def test_rates_before_meta_training_are_the_optimizer_of_that_rate(kind):
    for direction, reference in ((optax.identity, optax.sgd(0.05)), (ADAM, None)):
        learned = kind(direction, rate=0.05)
        optimizer = learned(learned.init(jax.random.key(0), PARAMS))
        reference = reference or optax.adam(0.05, eps_root=1e-16)
        got, expected = (optax_loop(each, bowl, PARAMS, 5) for each in (optimizer, reference))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)


@pytest.mark.usefixtures("x64")
def test_each_rate_moves_what_it_belongs_to():
    rates = {"a": jnp.log(jnp.array([[0.1, 0.2], [0.3, 0.4]])), "b": jnp.log(jnp.array(0.5))}
    gradient = {"a": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.array([5.0, -6.0])}
    got, _ = il.ParameterRates()({"log_rates": rates}).update(gradient, (optax.EmptyState(),) * 2)
    np.testing.assert_allclose(got["a"], [[-0.1, -0.4], [-0.9, -1.6]], rtol=1e-12)
    np.testing.assert_allclose(got["b"], [-2.5, 3.0], rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: il.ScalarRate(rate=0.0), "rate is not positive"),
        (lambda: il.ParameterRates(rate=jnp.inf), "rate is not positive"),
        (lambda: il.LayerRates()({"rates": 1.0}), "not the meta-parameters of this LayerRates"),
        (
            lambda: optax_loop(il.ParameterRates()({"log_rates": jnp.zeros(3)}), bowl, PARAMS, 1),
            "rates do not fit the parameters.*Write: ParameterRates",
        ),
        (
            lambda: optax_loop(
                il.LayerRates()({"log_rates": {"a": jnp.zeros(())}}), bowl, PARAMS, 1
            ),
            "rates do not fit the parameters",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(il.StructureError, match=message):
        call()
