"""Derivatives beyond the first in meta: exact, or refused."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
import pytest
from quadratic import (
    KEY,
    LEARN,
    assert_close,
    episode,
    objective,
    quadratic_meta,
    quadratic_problem,
)
from ridge import ridge

import innerloop as il

pytestmark = pytest.mark.usefixtures("x64")


SURROGATES = [il.ForwardMode(), il.Reptile(), il.EvolutionStrategies(2, 0.1), il.Implicit()]


@pytest.mark.parametrize("gradient", SURROGATES, ids=lambda g: type(g).__name__)
@pytest.mark.parametrize("jit", [False, True])
def test_a_second_derivative_of_an_estimate_raises(gradient, jit):
    f = objective(gradient)
    first = jax.grad(f)
    total = lambda meta: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(first(meta)))
    hessian = jax.hessian(f)
    for second in (jax.grad(total), hessian):
        second = jax.jit(second) if jit else second
        with pytest.raises(il.GradientError, match=r"not itself differentiable.*Unroll\(\)"):
            second(quadratic_meta())


@pytest.mark.parametrize("gradient", SURROGATES, ids=lambda g: type(g).__name__)
@pytest.mark.parametrize("part", ["support", "query"])
def test_an_estimate_is_differentiated_in_meta_alone(gradient, part):
    one = episode()

    def of_data(inputs):
        moved = eqx.tree_at(lambda one: getattr(one, part).inputs["x"], one, inputs)
        f = il.meta_objective(quadratic_problem(), LEARN, gradient)
        return f(quadratic_meta(), moved, KEY)[0]

    with pytest.raises(il.GradientError, match="derivative in meta alone"):
        jax.eval_shape(jax.grad(of_data), getattr(one, part).inputs["x"])


@pytest.mark.parametrize("gradient", SURROGATES, ids=lambda g: type(g).__name__)
def test_a_derivative_in_a_closed_over_value_raises(gradient):
    base = quadratic_problem()

    def of_scale(scale):
        inner = lambda params, meta, batch, key: (
            scale * base.inner_loss(params, meta, batch, key)[0]
        )
        problem = il.Problem(base.init, inner, base.outer_loss)
        return objective(gradient, problem)(quadratic_meta())

    with pytest.raises(il.GradientError, match="derivative in meta alone"):
        jax.eval_shape(jax.grad(of_scale), 1.0)


@functools.cache
def slope_of_the_slope(gradient):
    """The derivative of a weighted sum of the meta-gradient."""
    f, weight = objective(gradient), jnp.arange(1.0, 10.0)
    flat = lambda meta: jax.flatten_util.ravel_pytree(jax.grad(f)(meta))[0]
    slope = jax.grad(lambda meta: flat(meta) @ weight[: len(flat(meta))])
    return jax.jit(slope)(quadratic_meta())


@functools.cache
def slope_in_the_targets(gradient):
    one = episode()

    def f(targets):
        moved = eqx.tree_at(lambda one: one.support.targets, one, targets)
        return objective(gradient)(quadratic_meta(), moved)

    return jax.jit(jax.grad(f))(one.support.targets)


@functools.cache
def hessian(gradient):
    return jax.jit(jax.hessian(objective(gradient)))(quadratic_meta())


# One worker makes the plain program's derivatives, which the others are held against.
with_the_plain_program = pytest.mark.xdist_group("derivatives of the plain program")


@with_the_plain_program
@pytest.mark.parametrize(
    "gradient",
    [
        il.Unroll(loop=il.Segments(1)),
        il.Unroll(loop=il.Segments(2)),
        il.Unroll(il.MixedMode()),
        il.Unroll(il.MixedMode(), il.Segments(1)),
    ],
    ids=str,
)
def test_reverse_over_reverse_of_exact_estimators_is_exact(gradient):
    """And so is the derivative in the episode."""
    assert_close(slope_of_the_slope(gradient), slope_of_the_slope(il.Unroll()))
    assert_close(slope_in_the_targets(gradient), slope_in_the_targets(il.Unroll()))


@with_the_plain_program
@pytest.mark.parametrize(
    "gradient",
    [
        il.Unroll(loop=il.Segments(2)),
        il.Unroll(il.MixedMode()),
        il.Unroll(il.MixedMode(), il.Segments(1)),
        il.Unroll(loop=il.Binomial(2)),
    ],
    ids=str,
)
def test_the_hessian_is_that_of_the_plain_program(gradient):
    assert_close(hessian(gradient), hessian(il.Unroll()))


@pytest.mark.parametrize("gradient", [il.Unroll(il.MixedMode()), il.Unroll(loop=il.Binomial(2))])
def test_forward_mode_over_a_reverse_only_estimator_raises(gradient):
    with pytest.raises(TypeError, match=r"forward-mode|jvp"):
        jax.jacfwd(objective(gradient))(quadratic_meta())


@pytest.mark.parametrize("gradient", [il.Implicit(), il.EvolutionStrategies(2, 0.1)], ids=str)
def test_a_mixed_derivative_after_minimise_raises(gradient):
    problem, data, meta, _ = ridge()
    f = il.meta_objective(problem, il.Minimise(optx.BFGS(1e-8, 1e-8)), gradient)

    def slope(targets):
        moved = il.Episode((data.support[0], targets), data.query)
        return jax.grad(lambda meta: f(meta, moved, KEY)[0])(meta)["decay"]

    with pytest.raises(il.GradientError, match="in meta alone"):
        jax.grad(slope)(data.support[1])
