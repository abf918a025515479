"""Meta-gradients beyond the laws: settings, the table, odd inputs."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import optimistix as optx
import pytest
from jaxtyping import config
from quadratic import (
    KEY,
    LEARN,
    TASKS,
    objective,
    quadratic_episodes,
    quadratic_meta,
    quadratic_problem,
)
from variants import ADAPTATIONS, BASIS, GRADIENTS

import innerloop as il
from innerloop.trees import shorten

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: il.Unroll(1), "inner=1"),
        (lambda: il.Unroll(il.Segments(1)), "inner=Segments"),
        (lambda: il.Unroll(loop=il.MixedMode()), "loop=MixedMode"),
        (lambda: il.gradients.Last(3, of=il.MixedMode()), "of=MixedMode"),
        (lambda: il.gradients.Bound(1.0, of=il.Unroll()), "of=Unroll"),
        (lambda: il.Segments(0), "length=0"),
        (lambda: il.Binomial(0), "slots=0"),
        (lambda: il.Truncated(-1), "k=-1"),
        (lambda: il.Clipped(il.Unroll(), 0.0), "norm=0.0"),
        (lambda: il.Clipped(il.Unroll(), float("inf")), "norm=inf"),
        (lambda: il.Bounded(0.0), "norm=0.0"),
        (lambda: il.Bounded(float("nan")), "norm=nan"),
        (lambda: il.EvolutionStrategies(0, 0.1), "pairs=0"),
        (lambda: il.EvolutionStrategies(4, 0.0), "sigma=0.0"),
        (lambda: il.EvolutionStrategies(4, float("nan")), "sigma=nan"),
        (lambda: il.EvolutionStrategies(4, 0.1, chunk=0), "chunk=0"),
        (lambda: il.ForwardMode(chunk=0), "chunk=0"),
        (lambda: il.ForwardMode(il.gradients.RandomDirections(0)), "count=0"),
        (lambda: il.Implicit(damping=-1.0), "damping=-1.0"),
        (lambda: il.Implicit(lx.CG(1e-6, 1e-6), il.gradients.fixed_point(lambda *a: a[0])), "CG"),
        (lambda: il.Implicit(condition=lambda params: params), "condition"),
        (lambda: il.Implicit(il.gradients.Neumann(0)), "terms=0"),
        (lambda: il.FirstOrder(where=lambda t: True), "where"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(build, named):
    config.update("jaxtyping_disable", True)  # as users see it
    try:
        with pytest.raises(il.errors.StructureError, match="Write: ") as caught:
            build()
    finally:
        config.update("jaxtyping_disable", False)
    assert named in str(caught.value)


@pytest.mark.parametrize("where", [lambda t, p: {"body": True}, lambda t, p: 0.5])
def test_where_must_give_booleans_over_the_parameters(where):
    with pytest.raises(il.errors.StructureError, match="which inner gradients are constants"):
        objective(il.FirstOrder(where))(quadratic_meta())


def test_first_order_leaf_by_leaf():
    """The head exact, the body first-order: each leaf as its own meta-gradient gives it."""
    loss = lambda params, meta, batch, key: (
        jnp.sum((params["a"] - batch) ** 4) + jnp.sum(params["b"] ** 4)
    )
    problem = il.Problem(lambda meta, support, key: meta, loss, loss)
    learn = il.GradientDescent(optax.sgd(0.01), 3)
    meta = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([0.5])}
    data = il.Episode(jnp.zeros(2), jnp.ones(2))
    grads = {
        name: jax.grad(il.meta_objective(problem, learn, g), has_aux=True)(meta, data, KEY)[0]
        for name, g in {
            "exact": il.Unroll(),
            "held": il.FirstOrder(),
            "mixed": il.FirstOrder(lambda t, params: {"a": True, "b": False}),
        }.items()
    }
    np.testing.assert_allclose(grads["mixed"]["a"], grads["held"]["a"])
    np.testing.assert_allclose(grads["mixed"]["b"], grads["exact"]["b"])
    assert not np.allclose(grads["exact"]["a"], grads["held"]["a"])


def test_a_basis_that_does_not_fit_meta_is_refused():
    wrong = {**BASIS, "rate": np.zeros((2,))}
    with pytest.raises(il.errors.StructureError, match="basis does not fit meta"):
        objective(il.ForwardMode(il.gradients.Basis(wrong)))(quadratic_meta())


def test_forward_mode_raises_on_a_detached_graph():
    base = quadratic_problem()
    stop = jax.lax.stop_gradient
    problem = il.Problem(
        lambda meta, support, key: stop(meta["start"]),
        lambda params, meta, batch, key: base.inner_loss(params, stop(meta), batch, key),
        lambda params, meta, batch, key: base.outer_loss(params, stop(meta), batch, key),
    )
    with pytest.raises(il.errors.GradientError, match="identically zero"):
        objective(il.ForwardMode(), problem, il.GradientDescent(optax.sgd(0.1), 2))(
            quadratic_meta()
        )


def test_reptile_without_meta_in_init_raises_and_names_what_it_leaves_out():
    base = quadratic_problem()
    blind = il.Problem(lambda meta, support, key: jnp.zeros(3), base.inner_loss, base.outer_loss)
    with pytest.raises(il.errors.GradientError, match="init reads no part of meta"):
        objective(il.Reptile(), blind)(quadratic_meta())
    f = il.meta_value_and_grad(base, LEARN, il.Reptile())
    (_, aux), _ = jax.eval_shape(f, quadratic_meta(), quadratic_episodes(), KEY)
    assert set(aux.diagnostics["unreached"]) == {"['rate']", "['rates']", "['scale']", "['decay']"}
    assert aux.diagnostics["unreached"]["['rate']"].shape == (TASKS,)


def test_a_learning_rate_under_implicit_is_unreached():
    f = jax.jit(il.meta_value_and_grad(quadratic_problem(), LEARN, il.Implicit()))
    (_, aux), grads = f(quadratic_meta(), quadratic_episodes(), KEY)
    assert set(aux.diagnostics["unreached"]) == {"['rate']", "['rates']"}
    assert grads["rate"] == 0
    assert aux.diagnostics["inner_residual"].shape == (TASKS,)


@pytest.mark.parametrize(
    "gradient", [case.gradient for case in GRADIENTS], ids=lambda g: str(g)[:60]
)
def test_mixed_dtypes_in_meta_are_kept(gradient):
    meta = quadratic_meta()
    meta["rate"] = meta["rate"].astype(jnp.float32)
    base = quadratic_problem()
    learn = il.GradientDescent(lambda meta: optax.sgd(jnp.exp(meta["rate"]).astype(jnp.float64)), 3)
    f = il.meta_value_and_grad(base, learn, gradient)
    if isinstance(gradient, il.ForwardMode) and isinstance(gradient.directions, il.gradients.Basis):
        pytest.skip("a basis has the dtypes of meta")
    _, grads = jax.eval_shape(f, meta, quadratic_episodes(), KEY)
    assert {name: leaf.dtype for name, leaf in grads.items()} == {
        name: leaf.dtype for name, leaf in meta.items()
    }


@pytest.mark.parametrize("gradient", [case.gradient for case in GRADIENTS], ids=str)
def test_an_empty_meta_is_refused(gradient):
    f = il.meta_value_and_grad(quadratic_problem(), LEARN, gradient)
    with pytest.raises(il.errors.GradientError, match="meta is empty"):
        f({}, quadratic_episodes(), KEY)


def test_fidelity_says_what_the_laws_say():
    """One whose predicted gradient is the exact one calls itself exact, and no other."""
    descent = next(v for v in ADAPTATIONS if v.name == "sgd-12-scanned").adaptation
    kinds = {e.name: e.gradient.fidelity(descent).kind for e in GRADIENTS}
    for e in GRADIENTS:
        if e.predict.__name__ == "exact":
            assert kinds[e.name] == "exact", e.name
        elif e.name != "implicit":
            # what draws may be right on average, and need not be
            assert kinds[e.name] in (("unbiased", "biased") if e.draws else ("biased",)), e.name
    assert all(e.gradient.fidelity(descent).sentence.endswith(".") for e in GRADIENTS)


def test_truncation_bridges_past_an_infinite_initial_state():
    learn = il.GradientDescent(
        optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=2)), 5
    )
    values = [
        jax.jit(objective(g, adaptation=learn))(quadratic_meta())
        for g in (il.Unroll(), il.Truncated(2))
    ]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-12)


@pytest.mark.parametrize(
    "gradient", [il.EvolutionStrategies(2, 0.1), il.Reptile(), il.ForwardMode()]
)
def test_python_numbers_are_meta_parameters(gradient):
    loss = lambda params, meta, batch, key: (params - 2.0) ** 2
    problem = il.Problem(lambda meta, support, key: meta, loss, loss)
    f = il.meta_objective(problem, il.GradientDescent(optax.sgd(0.1), 2), gradient)
    got, _ = jax.grad(f, has_aux=True)(0.5, il.Episode(jnp.ones(1), jnp.ones(1)), KEY)
    assert got < 0


def test_mini_batches_of_a_solver_are_refused_like_the_solver():
    solver = il.Minimise(optx.BFGS(1e-6, 1e-6))
    for adaptation in (solver, il.MiniBatches(solver, 2)):
        with pytest.raises(il.errors.GradientError, match="Implicit"):
            objective(il.Unroll(), adaptation=adaptation)


def test_tasks_are_shortened_one_by_one():
    """One below the norm stays; one above is cut, also where its square has no place in float32."""
    loss = lambda params, meta, batch, key: batch * jnp.sum(meta)
    problem = il.Problem(lambda meta, support, key: meta, loss, loss)
    stand = il.GradientDescent(optax.sgd(0.1), 0)
    slopes = jnp.array([0.5, 8.0, 1e30])
    episodes = il.Episode(slopes, slopes)
    f = lambda tasks: il.meta_value_and_grad(problem, stand, il.Clipped(il.Unroll(), 2.0))(
        jnp.zeros(()), jax.tree.map(lambda leaf: leaf[tasks], episodes), jax.random.key(0)
    )
    (_, aux), gradient = f(slice(0, 3))
    np.testing.assert_allclose(gradient, (0.5 + 2 + 2) / 3, rtol=1e-6)
    np.testing.assert_allclose(aux.diagnostics["norm"], slopes, rtol=1e-6)


def test_what_is_not_finite_stays_so():
    """It is for `non_finite` to see: zeros would pass for a gradient."""
    loss = lambda params, meta, batch, key: batch * (batch * meta)
    problem = il.Problem(lambda meta, support, key: meta, loss, loss)
    stand = il.GradientDescent(optax.sgd(0.1), 0)
    f = il.meta_value_and_grad(problem, stand, il.Clipped(il.Unroll(), 1.0))
    batch = jnp.array([1e200])
    (value, _), gradient = f(jnp.zeros(()), il.Episode(batch, batch), jax.random.key(0))
    assert value == 0 and not jnp.isfinite(gradient)


def test_leaves_of_several_types_are_shortened_together():
    loss = lambda params, meta, batch, key: 3 * meta["wide"] + 4 * meta["half"].astype(float)
    problem = il.Problem(lambda meta, support, key: jnp.zeros(1), loss, loss)
    stand = il.GradientDescent(optax.sgd(0.1), 0)
    f = il.meta_value_and_grad(problem, stand, il.Clipped(il.Unroll(), 1.0))
    meta = {"wide": jnp.zeros((), float), "half": jnp.zeros((), jnp.bfloat16)}
    (_, aux), gradient = f(meta, il.Episode(jnp.zeros(1), jnp.zeros(1)), jax.random.key(0))
    np.testing.assert_allclose(aux.diagnostics["norm"], 5)
    np.testing.assert_allclose(gradient["wide"], 0.6)
    assert gradient["half"].dtype == jnp.bfloat16


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-30, 1e-3, 1.0, 1e19, 1e37, 1e38, 3e38])
@pytest.mark.parametrize("norm", [0.0, 0.3, 1e6])
@pytest.mark.parametrize("how", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_shortening_holds_at_every_size(size, norm, how):
    """Up to the ends of float32, whose squares and whose norm have no place there."""
    tree = {"a": jnp.full(4, size, jnp.float32), "b": -jnp.full((2, 2), size / 2, jnp.float32)}
    length = size * np.sqrt(5.0)
    expected = jax.tree.map(np.asarray, tree)
    if length > norm:
        expected = jax.tree.map(lambda leaf: np.float64(leaf) / length * norm, expected)
    found = how(shorten)(tree, norm)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-37), found, expected)


def test_shortening_in_half_precision_and_of_leaves_that_differ():
    half = shorten(jnp.full(4, 6e4, jnp.float16), 0.3)
    assert half.dtype == jnp.float16
    np.testing.assert_allclose(half, 0.15, rtol=1e-3)
    mixed = shorten({"a": jnp.full(1, 3.0, jnp.bfloat16), "b": jnp.full(1, 4.0)}, 1.0)
    assert mixed["a"].dtype == jnp.bfloat16 and mixed["b"].dtype == jnp.result_type(float)
    np.testing.assert_allclose([mixed["a"][0], mixed["b"][0]], [0.6, 0.8], rtol=1e-2)
    assert shorten({}, 1.0) == {}


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_what_is_not_finite_stays_so_when_it_is_shortened(bad):
    assert not jnp.isfinite(shorten({"a": jnp.full(2, bad), "b": jnp.ones(1)}, 1.0)["a"]).any()


def chaotic(gradient, steps=300):
    """Gradient descent on a quartic at a rate beyond the edge of stability."""
    inner = lambda params, meta, batch, key: jnp.sum((params**2 - 1) ** 2) / 4
    outer = lambda params, meta, batch, key: jnp.sum((params - batch) ** 2)
    problem = il.Problem(lambda meta, support, key: jnp.full(2, 0.3) * support, inner, outer)
    learn = il.GradientDescent(lambda meta: optax.sgd(meta["rate"]), steps)
    episodes = il.Episode(jnp.asarray([[1.0, 1.1]]), jnp.asarray([[1.0, 1.0]]))
    f = il.meta_value_and_grad(problem, learn, gradient)
    return jax.jit(f)({"rate": jnp.asarray(1.4)}, episodes, jax.random.key(0))


def test_bounded_stays_finite_where_the_exact_gradient_explodes():
    """Each step adds at most the bound times what a step's gradient says of the rate."""
    (exact_loss, _), exact = chaotic(il.Unroll())
    (loss, _), bounded = chaotic(il.Bounded(0.5))
    assert loss == exact_loss
    assert not abs(exact["rate"]) < 1e15
    assert 0 < abs(bounded["rate"]) < 1e6
