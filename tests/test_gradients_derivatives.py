"""Derivatives beyond the first in meta: exact, or refused."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
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
from variants import GRADIENTS

import innerloop as il

pytestmark = pytest.mark.usefixtures("x64")


# One of each class whose gradient is not the derivative of its value: all but Unroll.
SURROGATES = {type(each.gradient): each.gradient for each in reversed(GRADIENTS)}
del SURROGATES[il.Unroll]
SURROGATES = [*reversed(SURROGATES.values())]


@pytest.mark.parametrize("gradient", SURROGATES, ids=lambda g: type(g).__name__)
@pytest.mark.parametrize("jit", [False, True])
def test_a_second_derivative_of_an_estimate_raises(gradient, jit):
    f = objective(gradient)
    first = jax.grad(f)
    total = lambda meta: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(first(meta)))
    hessian = jax.hessian(f)
    for second in (jax.grad(total), hessian):
        second = jax.jit(second) if jit else second
        with pytest.raises(il.errors.GradientError, match=r"not itself differentiable.*Unroll\(\)"):
            jax.eval_shape(second, quadratic_meta())


@pytest.mark.parametrize("gradient", SURROGATES, ids=lambda g: type(g).__name__)
@pytest.mark.parametrize("part", ["support", "query"])
def test_an_estimate_is_differentiated_in_meta_alone(gradient, part):
    one = episode()

    def of_data(inputs):
        moved = eqx.tree_at(lambda one: getattr(one, part).inputs["x"], one, inputs)
        f = il.meta_objective(quadratic_problem(), LEARN, gradient)
        return f(quadratic_meta(), moved, KEY)[0]

    with pytest.raises(il.errors.GradientError, match="derivative in meta alone"):
        jax.eval_shape(jax.grad(of_data), getattr(one, part).inputs["x"])


# A value that some part of the problem closes over, and the same without the library.

META = {"start": np.array([0.6, -0.4]), "curve": np.array(0.3)}
TASK = il.Episode(np.array([1.0, 0.5]), np.array([0.2, 0.8]))
PARTS = ("init", "inner_loss", "outer_loss", "step_weights", "optimizer")


def scaled(part, scale, gradient):
    """The meta-objective with a factor in one of its parts."""
    of = lambda name: scale if name == part else 1.0
    inner, outer = curved(of)
    weights = lambda steps: of("step_weights") * jnp.ones(steps + 1)
    problem = il.Problem(
        init=lambda meta, support, key: of("init") * meta["start"],
        inner_loss=lambda params, meta, batch, key: inner(params, meta, batch),
        outer_loss=lambda params, meta, batch, key: outer(params, batch),
        step_weights=None if isinstance(gradient, il.Implicit) else weights,
    )
    learn = il.GradientDescent(optax.sgd(of("optimizer") * 0.2), 2)
    f = il.meta_objective(problem, learn, gradient)
    return lambda meta: f(meta, TASK, KEY)[0]


def curved(of):
    inner = lambda params, meta, batch: (
        of("inner_loss") * jnp.sum(meta["curve"] * params**4 + (params - batch) ** 2)
    )
    return inner, lambda params, batch: of("outer_loss") * jnp.sum(jnp.cos(params - batch))


def plain(part, scale):
    of = lambda name: scale if name == part else 1.0
    inner, outer = curved(of)

    def value(meta):
        params, total = of("init") * meta["start"], 0.0
        for _ in range(2):
            total += outer(params, TASK.query)
            params -= of("optimizer") * 0.2 * jax.grad(inner)(params, meta, TASK.support)
        return of("step_weights") * (total + outer(params, TASK.query))

    return value


def weighted(tree):
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(tree))


DERIVATIVES = {
    "reverse": lambda f: jax.grad(lambda scale: f(scale)(META)),
    "forward": lambda f: jax.jacfwd(lambda scale: f(scale)(META)),
    "of the meta-gradient": lambda f: jax.grad(lambda s: weighted(jax.grad(f(s))(META))),
}
IN_META_ALONE = [*SURROGATES, il.FirstOrder(), il.Truncated(1), il.Truncated(0), il.Bounded(0.1)]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("gradient", IN_META_ALONE, ids=il.gradients.gradient_name)
def test_an_estimate_has_no_derivative_in_a_closed_over_value(gradient, part):
    if part == "step_weights" and isinstance(gradient, il.Implicit):
        return  # there are none with it
    for derivative in DERIVATIVES.values():
        of_scale = derivative(lambda scale: scaled(part, scale, gradient))
        with pytest.raises(il.errors.GradientError, match=r"in meta alone|not itself different"):
            jax.eval_shape(of_scale, 1.0)


@pytest.mark.parametrize("setting", ["exact", "mixed"])
def test_an_exact_gradient_has_the_right_one(setting):
    taken = dict(DERIVATIVES)
    gradient = il.Unroll(loop=il.gradients.Segments(1))
    if setting == "mixed":
        gradient = il.Unroll(il.MixedMode())
        del taken["forward"]
    every = lambda of: [d(lambda s, p=p: of(p, s))(1.1) for d in taken.values() for p in PARTS]
    found = jax.jit(lambda: every(lambda part, scale: scaled(part, scale, gradient)))()
    assert_close(found, jax.jit(lambda: every(plain))())


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


def test_reverse_over_reverse_of_an_exact_setting_is_exact():
    """And so is the derivative in the episode. The small problem of the cross has the others."""
    gradient = il.Unroll(il.MixedMode(), il.Segments(1))
    assert_close(slope_of_the_slope(gradient), slope_of_the_slope(il.Unroll()))
    assert_close(slope_in_the_targets(gradient), slope_in_the_targets(il.Unroll()))


@pytest.mark.parametrize("gradient", [il.Implicit(), il.EvolutionStrategies(2, 0.1)], ids=str)
def test_a_mixed_derivative_after_minimise_raises(gradient):
    problem, data, meta, _ = ridge()
    f = il.meta_objective(problem, il.Minimise(optx.BFGS(1e-8, 1e-8)), gradient)

    def slope(targets):
        moved = il.Episode((data.support[0], targets), data.query)
        return jax.grad(lambda meta: f(meta, moved, KEY)[0])(meta)["decay"]

    with pytest.raises(il.errors.GradientError, match="in meta alone"):
        jax.grad(slope)(data.support[1])


class Cut(il.extend.MetaGradient):
    """A gradient of one's own: half of the exact one, after gradient descent alone."""

    second: bool = False

    def fidelity(self, adaptation, problem=None):
        if not isinstance(adaptation, il.GradientDescent):
            return il.extend.undefined("It halves steps.", write="Unroll()")
        derivatives = il.extend.Derivatives(second=self.second)
        return il.extend.Fidelity("biased", "Half of it is dropped.", derivatives)

    def objective(self, problem, adaptation):
        whole = il.Unroll().objective(problem, adaptation)

        def half(meta, task, key):
            loss, aux = whole(meta, task, key)
            return (loss + jax.lax.stop_gradient(loss)) / 2, aux

        return half


@pytest.mark.parametrize(
    "wrap", [lambda g: g, lambda g: il.Clipped(g, 1e9)], ids=["bare", "clipped"]
)
def test_a_gradient_of_ones_own_is_refused_where_it_says_that_it_does_not_exist(wrap):
    learn = il.Procedure(lambda meta, support, key: meta["start"])
    with pytest.raises(
        il.errors.GradientError, match=r"Cut\(\).* does not exist after Procedure: It halves"
    ):
        objective(wrap(Cut()), adaptation=learn)
    got = jax.grad(objective(wrap(Cut())))(quadratic_meta())
    exact = jax.grad(objective(il.Unroll()))(quadratic_meta())
    assert_close(got, jax.tree.map(lambda leaf: leaf / 2, exact))


def test_a_gradient_of_ones_own_has_the_second_derivative_that_it_says_it_has():
    total = lambda f: lambda meta: jnp.sum(jax.grad(f)(meta)["start"])
    with pytest.raises(il.errors.GradientError, match=r"Cut\(\) is not itself differentiable"):
        jax.eval_shape(jax.grad(total(objective(Cut()))), quadratic_meta())
    jax.eval_shape(jax.grad(total(objective(Cut(second=True)))), quadratic_meta())
