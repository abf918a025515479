"""Losses that lack a derivative: the exact meta-gradient where it exists, or a cure that works."""

import re

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
from quick import without

import innerloop as il
from innerloop import gradients
from innerloop.errors import GradientError

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(0)
META = {"start": np.array([0.4, -0.3]), "pull": np.array(0.2)}
LEARN = il.GradientDescent(optax.sgd(0.1), steps=1)


def cubes(x):
    return jnp.sum(x**3)


@jax.custom_vjp
def by_rule(x):
    return cubes(x)


by_rule.defvjp(lambda x: (by_rule(x), x), lambda x, bar: (3 * bar * x**2,))


@jax.custom_vjp
def square_by_rule(x):
    return x**2


square_by_rule.defvjp(lambda x: (x**2, x), lambda x, bar: (2 * bar * x,))


@jax.custom_vjp
def by_nested_rules(x):
    """Its backward pass has a reverse mode alone."""
    return cubes(x)


by_nested_rules.defvjp(lambda x: (cubes(x), x), lambda x, bar: (3 * bar * square_by_rule(x),))


@jax.custom_jvp
def by_forward_rule(x):
    return cubes(x)


by_forward_rule.defjvp(lambda x, along: (cubes(*x), jnp.sum(3 * x[0] ** 2 * along[0])))


def on_the_host(x):
    shape = jax.ShapeDtypeStruct((), x.dtype)
    return jax.pure_callback(lambda x: np.sum(x**3), shape, x, vmap_method="sequential")


@jax.custom_jvp
def on_the_host_by_forward_rule(x):
    return on_the_host(x)


on_the_host_by_forward_rule.defjvp(
    lambda x, along: (on_the_host_by_forward_rule(*x), jnp.sum(3 * x[0] ** 2 * along[0]))
)


def by_turns(loop):
    """The cubes of x, by a loop that multiplies three times."""

    def function(x):
        body = lambda carry: (carry[0] * x, carry[1] + 1)
        return jnp.sum(loop(lambda carry: carry[1] < 3, body, (jnp.ones_like(x), 0))[0])

    return function


def scanned(condition, body, start):
    return jax.lax.scan(lambda carry, _: (body(carry), None), start, length=3)[0]


def checkpointed(condition, body, start):
    """As in the default adjoint of diffrax: it has a reverse mode, once."""
    return eqxi.while_loop(condition, body, start, max_steps=3, kind="checkpointed")


looped, looped_once = by_turns(jax.lax.while_loop), by_turns(checkpointed)


def problem(function, part):
    """The pull of the inner loss is learned; `function` is a term of one of the losses."""

    def loss(params, meta, batch, key):
        return jnp.mean((batch @ params - 1) ** 2)

    def inner(params, meta, batch, key):
        term = function(params) if part == "inner" else 0.0
        near = jnp.sum((params - meta["start"]) ** 2)
        return loss(params, meta, batch, key) + meta["pull"] * near + term

    def outer(params, meta, batch, key):
        return loss(params, meta, batch, key) + (function(params) if part == "outer" else 0.0)

    return il.Problem(lambda meta, support, key: meta["start"], inner, outer)


def episodes(tasks):
    support, query = jax.random.normal(KEY, (2, tasks, 3, 2))
    return il.Episode(support, query)


def shapes(function, part, gradient, tasks=1, learn=LEARN):
    f = il.meta_value_and_grad(problem(function, part), learn, gradient)
    return jax.eval_shape(f, META, episodes(tasks), KEY)


SOLVED = il.Implicit(throw=False)
RIGHT = {
    "mixed mode": (by_rule, il.Unroll(il.MixedMode())),
    "mixed mode in binomial": (by_rule, il.Unroll(il.MixedMode(), il.Binomial(1))),
    "forward mode": (by_rule, il.ForwardMode()),
    "implicit": (by_rule, SOLVED),
    "implicit by a transpose": (by_nested_rules, SOLVED),
    "mixed mode of a loop": (looped_once, il.Unroll(il.MixedMode())),
}


@pytest.mark.parametrize(
    "name", without({"mixed mode in binomial", "mixed mode of a loop", "forward mode"}, RIGHT)
)
def test_a_rule_in_reverse_mode_alone_does_not_change_the_meta_gradient(name):
    """Its gradient has the derivative that is taken, whatever the number of tasks."""
    function, gradient = RIGHT[name]
    learn = il.GradientDescent(optax.sgd(0.1), steps=2)
    by = lambda function: jax.jit(
        il.meta_value_and_grad(problem(function, "inner"), learn, gradient)
    )(META, episodes(2), KEY)
    (value, _), grads = by(function)
    (expected_value, _), expected = by(cubes)
    np.testing.assert_allclose(value, expected_value, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), grads, expected)
    shapes(function, "inner", gradient, tasks=1)


CUSTOM_JVP = (r"jax\.custom_jvp in place of jax\.custom_vjp", by_forward_rule)
SCAN = (r"jax\.lax\.scan in place of jax\.lax\.while_loop", by_turns(scanned))
JVP_OF_HOST = (r"under jax\.custom_jvp with its derivative", on_the_host_by_forward_rule)
REFUSED = {
    # the loss, its part, the meta-gradient: another one that exists, and a loss that has it
    "forward mode": (by_rule, "outer", il.ForwardMode(), "Unroll()", CUSTOM_JVP),
    "forward mode within": (by_nested_rules, "inner", il.ForwardMode(), "Unroll()", CUSTOM_JVP),
    "mixed mode": (by_nested_rules, "inner", il.Unroll(il.MixedMode()), "Unroll()", CUSTOM_JVP),
    "loop": (looped, "outer", il.Unroll(), "ForwardMode()", SCAN),
    "loop, implicit": (looped, "outer", SOLVED, "ForwardMode()", SCAN),
    "loop within": (looped, "inner", il.Unroll(), None, SCAN),
    "loop within, forward": (looped, "inner", il.ForwardMode(), None, SCAN),
    "second reverse mode": (looped_once, "inner", il.Unroll(), "Unroll(MixedMode())", SCAN),
    "host": (on_the_host, "outer", il.Unroll(), "EvolutionStrategies(64, 0.01) (unbiased)",
             JVP_OF_HOST),
    "host within": (on_the_host, "inner", il.Unroll(), None, JVP_OF_HOST),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", without(set(REFUSED) - {"mixed mode", "loop", "loop within", "host"}, REFUSED)
)
def test_each_cure_of_a_missing_derivative_works(name):
    function, part, gradient, instead, (said, mended) = REFUSED[name]
    messages = set()
    for tasks in (1, 2):
        with pytest.raises(GradientError) as caught:
            shapes(function, part, gradient, tasks)
        messages.add(caught.value.write)
    (write,) = messages  # the same for one task and for several
    first = write.split(", or ")[0]
    if instead is not None:
        assert first == instead
        shapes(function, part, eval(first.split(" (")[0], vars(gradients)))
    assert re.search(said, write)
    shapes(mended, part, gradient)


@pytest.mark.parametrize("name", ["forward mode", "mixed mode", "host within"])
def test_the_meta_objective_says_the_same(name):
    """JAX raises its own error where the user's `jax.grad` meets a loop after the objective."""
    function, part, gradient, _, (said, _) = REFUSED[name]
    f = il.meta_objective(problem(function, part), LEARN, gradient)
    one = jax.tree.map(lambda leaf: leaf[0], episodes(1))
    with pytest.raises(GradientError, match=said):
        jax.eval_shape(jax.grad(f, has_aux=True), META, one, KEY)


def test_an_error_that_hides_another_is_not_explained_by_it():
    """`from None` says that the error before has no part in it."""

    def outer(params, meta, batch, key):
        try:
            jax.grad(looped)(params)
        except ValueError:
            raise NotImplementedError("a matter of its own") from None

    hiding = il.Problem(lambda meta, support, key: meta["start"], None, outer)
    learn = il.Procedure(lambda meta, support, key: meta["start"])
    with pytest.raises(NotImplementedError, match="of its own"):
        jax.eval_shape(il.meta_value_and_grad(hiding, learn), META, episodes(1), KEY)


def test_a_missing_derivative_is_explained_once():
    with pytest.raises(GradientError) as caught:
        shapes(looped, "outer", il.Unroll())
    assert type(caught.value.__context__) is ValueError


def test_windows_say_the_same():
    drawn = il.tasks.IndependentTasks(lambda key: jax.tree.map(lambda x: x[0], episodes(1)))
    runs = il.estimators.TruncatedUnroll(problem(looped, "outer"), LEARN, drawn, 1, 2, 1)
    with pytest.raises(GradientError, match=SCAN[0]):
        runs.step(META, runs.init(META, KEY), None, KEY, 0)


def test_learning_and_evaluating_a_loss_without_a_gradient_say_so():
    looping = problem(looped, "inner")
    support = episodes(1).support[0]
    with pytest.raises(GradientError, match=SCAN[0]):
        il.adapt(looping, LEARN, META, support, KEY)
    with pytest.raises(GradientError, match=SCAN[0]):
        il.evaluate(il.Learner(looping, LEARN), META, episodes(2), KEY)


@pytest.mark.full
def test_a_solver_finds_another_meta_gradient():
    """After `Minimise`, evolution strategies alone do without the derivatives of the outer loss."""
    learn = il.Minimise(optx.BFGS(1e-6, 1e-6))
    with pytest.raises(
        GradientError, match=r"Write: EvolutionStrategies\(64, 0.01\) \(unbiased\), or "
    ):
        shapes(looped, "outer", il.Implicit(), learn=learn)
    shapes(looped, "outer", il.EvolutionStrategies(pairs=64, sigma=0.01), learn=learn)
