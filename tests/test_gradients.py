"""Meta-gradients beyond the laws: statistics, refusals, missing derivatives, bad input."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import optimistix as optx
import pytest
from oracle import complex_step
from variants import (
    ADAPTATIONS,
    BASIS,
    GRADIENTS,
    TASKS,
    quadratic_episodes,
    quadratic_meta,
    quadratic_problem,
)

import innerloop as il
from innerloop.gradients.validity import REFUSALS, refusal

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(3)
LEARN = il.GradientDescent(lambda meta: optax.sgd(jnp.exp(meta["rate"])), 4)
SURROGATES = [
    il.ForwardMode(),
    il.Reptile(),
    il.EvolutionStrategies(2, 0.1),
    il.Implicit(),
]


def episode():
    return jax.tree.map(lambda leaf: leaf[0], quadratic_episodes())


def objective(gradient, problem=None, adaptation=LEARN):
    f = il.meta_objective(problem or quadratic_problem(), adaptation, gradient)
    return lambda meta, episode=None: f(meta, episode or _EPISODE(), KEY)[0]


_EPISODE = episode


def assert_close(got, expected, rtol=1e-10, atol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), got, expected)


# --- stochastic estimators: right on average ----------------------------------------------------


@pytest.mark.parametrize(
    "gradient",
    [il.EvolutionStrategies(64, 1e-3), il.ForwardMode(il.RandomDirections(64))],
    ids=["evolution", "random directions"],
)
def test_stochastic_estimators_are_within_four_standard_errors_of_the_exact_gradient(gradient):
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


# --- derivatives that do not exist raise --------------------------------------------------------


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
        moved = {**getattr(one, part), "inputs": inputs}
        rest = {name: getattr(one, name) for name in ("support", "query")}
        f = il.meta_objective(quadratic_problem(), LEARN, gradient)
        return f(quadratic_meta(), il.Episode(**{**rest, part: moved}), KEY)[0]

    with pytest.raises(il.GradientError, match="derivative in meta alone"):
        jax.grad(of_data)(getattr(one, part)["inputs"])


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
        jax.grad(of_scale)(1.0)


@pytest.mark.parametrize(
    "gradient",
    [
        il.Unroll(checkpoint=1),
        il.Unroll(checkpoint=il.Segments(2)),
        il.Unroll(mixed_mode=True),
        il.Unroll(checkpoint=1, mixed_mode=True),
    ],
    ids=str,
)
def test_reverse_over_reverse_of_exact_estimators_is_exact(gradient):
    """And so is the derivative in the episode."""
    weight = jnp.arange(1.0, 10.0)

    def slope(gradient):
        f = objective(gradient)
        flat = lambda meta: jax.flatten_util.ravel_pytree(jax.grad(f)(meta))[0]
        return jax.jit(jax.grad(lambda meta: flat(meta) @ weight[: len(flat(meta))]))

    assert_close(slope(gradient)(quadratic_meta()), slope(il.Unroll())(quadratic_meta()))

    def of_targets(gradient):
        one = episode()

        def f(targets):
            moved = il.Episode({**one.support, "targets": targets}, one.query)
            return objective(gradient)(quadratic_meta(), moved)

        return jax.jit(jax.grad(f))(one.support["targets"])

    assert_close(of_targets(gradient), of_targets(il.Unroll()))


@pytest.mark.parametrize(
    "gradient",
    [
        il.Unroll(checkpoint=2),
        il.Unroll(mixed_mode=True),
        il.Unroll(1, True),
        il.Unroll(il.Binomial(2)),
    ],
    ids=str,
)
def test_the_hessian_is_that_of_the_plain_program(gradient):
    hessian = lambda gradient: jax.jit(jax.hessian(objective(gradient)))(quadratic_meta())
    assert_close(hessian(gradient), hessian(il.Unroll()))


@pytest.mark.parametrize("gradient", [il.Unroll(mixed_mode=True), il.Unroll(il.Binomial(2))])
def test_forward_mode_over_a_reverse_only_estimator_raises(gradient):
    with pytest.raises(TypeError, match=r"forward-mode|jvp"):
        jax.jacfwd(objective(gradient))(quadratic_meta())


# --- mixed mode ---------------------------------------------------------------------------------


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

    assert_close(both(il.Unroll(mixed_mode=True)), both(il.Unroll()))
    assert_close(both(il.Unroll(1, mixed_mode=True)), both(il.Unroll()))


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

    assert_close(of_scale(il.Unroll(1, mixed_mode=True)), of_scale(il.Unroll()))


def test_mixed_mode_names_a_loss_without_forward_mode():
    @jax.custom_vjp
    def square(x):
        return jnp.sum(x**2)

    square.defvjp(lambda x: (square(x), x), lambda x, bar: (2 * bar * x,))
    loss = lambda params, meta, batch, key: square(params - batch)
    problem = il.Problem(lambda meta, support, key: meta, loss, loss)
    f = il.meta_objective(
        problem, il.GradientDescent(optax.sgd(0.1), 2), il.Unroll(mixed_mode=True)
    )
    batch = il.Episode(jnp.ones(2), jnp.ones(2))
    with pytest.raises(il.GradientError, match=r"forward-mode.*mixed_mode=False"):
        jax.grad(f, has_aux=True)(jnp.zeros(2), batch, KEY)


# --- implicit -----------------------------------------------------------------------------------


def ridge():
    """theta* = argmin |X theta - y|^2 / 2 + exp(decay) |theta|^2 / 2."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 4)), rng.normal(size=12)
    x2, y2 = rng.normal(size=(6, 4)), rng.normal(size=6)

    def inner(params, meta, batch, key):
        fit = jnp.sum((batch[0] @ params - batch[1]) ** 2) / 2
        return fit + jnp.exp(meta["decay"]) * jnp.sum(params**2) / 2

    outer = lambda params, meta, batch, key: jnp.mean((batch[0] @ params - batch[1]) ** 2)
    problem = il.Problem(lambda meta, support, key: jnp.zeros(4), inner, outer)
    data = il.Episode((jnp.asarray(x), jnp.asarray(y)), (jnp.asarray(x2), jnp.asarray(y2)))

    def closed(meta):
        theta = np.linalg.solve(x.T @ x + np.exp(meta["decay"]) * np.eye(4), x.T @ y)
        return ((x2 @ theta - y2) ** 2).mean()

    return problem, data, {"decay": jnp.array(0.5)}, closed


SOLVERS = {
    "default": None,
    "cg": lx.CG(1e-12, 1e-12),
    "normal-cg": lx.Normal(lx.CG(1e-12, 1e-12)),
    "gmres": lx.GMRES(1e-12, 1e-12),
    "bicgstab": lx.BiCGStab(1e-12, 1e-12),
    "lu": lx.LU(),
    "cholesky": lx.Cholesky(),
    "neumann": il.Neumann(2000, 0.02),
}


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize(
    "learn",
    [il.GradientDescent(optax.sgd(0.03), 800), il.Minimise(optx.BFGS(1e-9, 1e-9))],
    ids=["descent", "minimise"],
)
def test_implicit_gradient_of_ridge_regression_is_the_closed_form(solver, learn):
    problem, data, meta, closed = ridge()
    f = il.meta_objective(problem, learn, il.Implicit(SOLVERS[solver]))
    (loss, aux), grads = jax.jit(jax.value_and_grad(f, has_aux=True))(meta, data, KEY)
    expected = complex_step(closed, {"decay": np.array(0.5)})
    tolerance = 1e-6 if solver == "default" else 1e-8
    np.testing.assert_allclose(loss, closed({"decay": 0.5}), rtol=1e-8)
    np.testing.assert_allclose(grads["decay"], expected["decay"], rtol=tolerance)
    assert aux.diagnostics["inner_residual"] < 1e-6
    assert aux.diagnostics["solve_residual"] < 1e-6


def test_implicit_agrees_with_the_implicit_derivatives_of_optimistix():
    problem, data, meta, _ = ridge()
    solver = optx.BFGS(1e-10, 1e-10)
    f = il.meta_objective(problem, il.Minimise(solver), il.Implicit(lx.CG(1e-12, 1e-12)))
    ours = jax.grad(lambda meta: f(meta, data, KEY)[0])(meta)

    def theirs(meta):
        inner = lambda params, meta: problem.inner_loss(params, meta, data.support, KEY)
        adjoint = optx.ImplicitAdjoint(lx.AutoLinearSolver(well_posed=None))
        start = jnp.zeros(4)
        solution = optx.minimise(inner, solver, start, args=meta, adjoint=adjoint)
        return problem.outer_loss(solution.value, meta, data.query, KEY)

    np.testing.assert_allclose(ours["decay"], jax.grad(theirs)(meta)["decay"], rtol=1e-6)


def test_a_given_condition_a_fixed_point_and_a_projection():
    """Ridge with theta >= 0: the projected gradient's fixed point, against finite differences."""
    problem, data, meta, _ = ridge()
    projection = lambda params, meta: jnp.maximum(params, 0.0)
    rate = 0.03

    def descend(meta, support, key):
        def step(params, _):
            gradient = jax.grad(problem.inner_loss)(params, meta, support, key)
            return projection(params - rate * gradient, meta), None

        return jax.lax.scan(step, jnp.zeros(4), None, length=800)[0]

    learn = il.Procedure(descend)
    condition = il.projected_gradient(problem, projection, rate)
    f = il.meta_objective(problem, learn, il.Implicit(lx.GMRES(1e-12, 1e-12), condition))
    (_, aux), grads = jax.value_and_grad(f, has_aux=True)(meta, data, KEY)
    at = lambda decay: float(f({"decay": jnp.array(decay)}, data, KEY)[0])
    numeric = (at(0.5 + 1e-5) - at(0.5 - 1e-5)) / 2e-5
    np.testing.assert_allclose(grads["decay"], numeric, rtol=1e-6)
    assert aux.diagnostics["inner_residual"] < 1e-10
    params = descend(meta, data.support, KEY)
    assert 0 < int(jnp.sum(params == 0)) < 4  # the constraint binds somewhere, not everywhere

    step = lambda params, meta, batch, key: projection(
        params - rate * jax.grad(problem.inner_loss)(params, meta, batch, key), meta
    )
    again = il.Implicit(lx.GMRES(1e-12, 1e-12), il.fixed_point(step))
    same = jax.grad(il.meta_objective(problem, learn, again), has_aux=True)(meta, data, KEY)[0]
    np.testing.assert_allclose(same["decay"], grads["decay"], rtol=1e-9)


def test_the_one_step_gradient_is_one_term_of_the_series():
    """Bolte et al. 2023: differentiate the last step alone, the start held constant."""
    problem, data, meta, _ = ridge()
    rate = 0.03
    learn = il.GradientDescent(optax.sgd(rate), 800)
    f = il.meta_objective(problem, learn, il.Implicit(il.Neumann(1, rate)))
    got = jax.grad(f, has_aux=True)(meta, data, KEY)[0]
    last = il.meta_objective(problem, learn, il.Truncated(1, identity=False))
    expected = jax.grad(last, has_aux=True)(meta, data, KEY)[0]
    np.testing.assert_allclose(got["decay"], expected["decay"], rtol=1e-6)


def test_an_optimum_that_does_not_depend_on_meta_names_the_proximal_term():
    problem, data, _, _ = ridge()
    free = il.Problem(
        lambda meta, support, key: meta,
        lambda params, meta, batch, key: problem.inner_loss(params, {"decay": 0.5}, batch, key),
        problem.outer_loss,
    )
    learn = il.GradientDescent(optax.sgd(0.03), 400)
    f = il.meta_objective(free, learn, il.Implicit())
    with pytest.raises(il.GradientError, match=r"does not depend on meta.*proximal\(problem"):
        jax.grad(f, has_aux=True)(jnp.zeros(4), data, KEY)

    # iMAML on a quadratic: d theta*/d start = lambda (H + lambda I)^-1.
    strength = 2.0
    pulled = il.proximal(free, strength)
    solver = il.Implicit(lx.CG(1e-12, 1e-12))
    f = il.meta_objective(pulled, il.GradientDescent(optax.sgd(0.03), 800), solver)
    start = jnp.arange(4.0)
    got = jax.grad(f, has_aux=True)(start, data, KEY)[0]
    x, y = data.support
    hessian = x.T @ x + np.exp(0.5) * np.eye(4) + strength * np.eye(4)
    theta = np.linalg.solve(hessian, x.T @ y + strength * start)
    slope = jax.grad(problem.outer_loss)(jnp.asarray(theta), None, data.query, KEY)
    np.testing.assert_allclose(got, strength * np.linalg.solve(hessian, slope), rtol=1e-8)


def test_a_learned_proximal_strength_gets_its_gradient():
    problem, data, _, _ = ridge()
    pulled = il.proximal(
        il.Problem(
            lambda meta, support, key: jnp.arange(4.0),
            lambda params, meta, batch, key: problem.inner_loss(params, {"decay": 0.5}, batch, key),
            problem.outer_loss,
        ),
        lambda meta: jnp.exp(meta),
    )
    learn = il.GradientDescent(optax.sgd(0.03), 800)
    f = il.meta_objective(pulled, learn, il.Implicit(lx.CG(1e-12, 1e-12)))
    got = jax.grad(f, has_aux=True)(jnp.array(0.3), data, KEY)[0]
    exact = il.meta_objective(pulled, learn)
    expected = jax.grad(exact, has_aux=True)(jnp.array(0.3), data, KEY)[0]
    np.testing.assert_allclose(got, expected, rtol=1e-7)


def saddle(matrix):
    """An inner "loss" whose Hessian is `matrix`, started at its stationary point."""
    inner = lambda params, meta, batch, key: params @ (matrix @ params) / 2 - meta @ params
    outer = lambda params, meta, batch, key: jnp.sum(params) + jnp.sum(batch)
    start = lambda meta, support, key: jnp.linalg.solve(matrix, meta)
    problem = il.Problem(start, inner, outer)
    return problem, il.Episode(jnp.ones(1), jnp.ones(1))


def test_an_indefinite_hessian_given_to_cg_is_solved_right_or_raises():
    matrix = jnp.diag(jnp.array([1.0, -2.0, 3.0]))
    problem, data = saddle(matrix)
    learn = il.GradientDescent(optax.sgd(0.0), 1)
    f = il.meta_objective(problem, learn, il.Implicit(lx.CG(1e-10, 1e-10)))
    got = jax.jit(jax.grad(f, has_aux=True))(jnp.ones(3), data, KEY)[0]
    np.testing.assert_allclose(got, jnp.linalg.solve(matrix, jnp.ones(3)), rtol=1e-8)


def test_a_singular_hessian_raises_at_run_time_unless_told_not_to():
    matrix = jnp.diag(jnp.array([1.0, 0.0]))
    problem, data = saddle(matrix)
    problem = il.Problem(lambda meta, s, k: jnp.zeros(2), problem.inner_loss, problem.outer_loss)
    learn = il.GradientDescent(optax.sgd(0.0), 1)
    strict = jax.jit(jax.grad(il.meta_objective(problem, learn, il.Implicit()), has_aux=True))
    with pytest.raises(Exception, match=r"did not converge.*proximal\(problem, strength\)"):
        jax.block_until_ready(strict(jnp.ones(2), data, KEY))
    lenient = il.meta_objective(problem, learn, il.Implicit(throw=False))
    _, aux = jax.grad(lenient, has_aux=True)(jnp.ones(2), data, KEY)
    assert not aux.diagnostics["solve_residual"] < 0.1
    damped = il.meta_objective(problem, learn, il.Implicit(damping=0.5))
    grads, _ = jax.grad(damped, has_aux=True)(jnp.ones(2), data, KEY)
    np.testing.assert_allclose(grads, [1 / 1.5, 2.0], rtol=1e-6)


def test_a_solver_that_gives_up_raises_at_run_time():
    problem, data, meta, _ = ridge()
    learn = il.Minimise(optx.BFGS(1e-12, 1e-12), max_steps=2)
    f = jax.jit(il.meta_objective(problem, learn, il.Implicit()))
    with pytest.raises(Exception, match=r"inner solver did not converge.*max_steps=1024"):
        jax.block_until_ready(f(meta, data, KEY))


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: il.Unroll(checkpoint=0), "checkpoint=0"),
        (lambda: il.Segments(0), "length=0"),
        (lambda: il.Binomial(0), "slots=0"),
        (lambda: il.Truncated(-1), "last=-1"),
        (lambda: il.EvolutionStrategies(0, 0.1), "pairs=0"),
        (lambda: il.EvolutionStrategies(4, 0.0), "sigma=0.0"),
        (lambda: il.EvolutionStrategies(4, float("nan")), "sigma=nan"),
        (lambda: il.EvolutionStrategies(4, 0.1, chunk=0), "chunk=0"),
        (lambda: il.ForwardMode(chunk=0), "chunk=0"),
        (lambda: il.ForwardMode(il.RandomDirections(0)), "count=0"),
        (lambda: il.Implicit(damping=-1.0), "damping=-1.0"),
        (lambda: il.Implicit(lx.CG(1e-6, 1e-6), il.fixed_point(lambda *a: a[0])), "CG"),
        (lambda: il.Implicit(condition=lambda params: params), "condition"),
        (lambda: il.Implicit(il.Neumann(0)), "terms=0"),
        (lambda: il.FirstOrder(where=lambda t: True), "where"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(build, named):
    with pytest.raises(il.StructureError, match="Write: ") as caught:
        build()
    assert named in str(caught.value)


@pytest.mark.parametrize("where", [lambda t, p: {"body": True}, lambda t, p: 0.5])
def test_where_must_give_booleans_over_the_parameters(where):
    with pytest.raises(il.StructureError, match="which inner gradients are constants"):
        objective(il.FirstOrder(where))(quadratic_meta())


def test_first_order_leaf_by_leaf():
    """The head exact, the body first-order: each leaf as its own estimator gives it."""
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
    with pytest.raises(il.StructureError, match="basis does not fit meta"):
        objective(il.ForwardMode(il.Basis(wrong)))(quadratic_meta())


def test_forward_mode_raises_on_a_detached_graph():
    base = quadratic_problem()
    stop = jax.lax.stop_gradient
    problem = il.Problem(
        lambda meta, support, key: stop(meta["start"]),
        lambda params, meta, batch, key: base.inner_loss(params, stop(meta), batch, key),
        lambda params, meta, batch, key: base.outer_loss(params, stop(meta), batch, key),
    )
    with pytest.raises(il.GradientError, match="identically zero"):
        objective(il.ForwardMode(), problem, il.GradientDescent(optax.sgd(0.1), 2))(
            quadratic_meta()
        )


def test_reptile_without_meta_in_init_raises_and_names_what_it_leaves_out():
    base = quadratic_problem()
    blind = il.Problem(lambda meta, support, key: jnp.zeros(3), base.inner_loss, base.outer_loss)
    with pytest.raises(il.GradientError, match="init reads no part of meta"):
        objective(il.Reptile(), blind)(quadratic_meta())
    f = il.meta_value_and_grad(base, LEARN, il.Reptile())
    (_, aux), _ = f(quadratic_meta(), quadratic_episodes(), KEY)
    assert set(aux.diagnostics["unreached"]) == {"['rate']", "['rates']", "['scale']", "['decay']"}
    assert aux.diagnostics["unreached"]["['rate']"].shape == (TASKS,)


def test_a_learning_rate_under_implicit_is_unreached():
    f = il.meta_value_and_grad(quadratic_problem(), LEARN, il.Implicit())
    (_, aux), grads = f(quadratic_meta(), quadratic_episodes(), KEY)
    assert set(aux.diagnostics["unreached"]) == {"['rate']", "['rates']"}
    assert grads["rate"] == 0
    assert aux.diagnostics["inner_residual"].shape == (TASKS,)


@pytest.mark.parametrize(
    "gradient", [estimator.gradient for estimator in GRADIENTS], ids=lambda g: str(g)[:60]
)
def test_mixed_dtypes_in_meta_are_kept(gradient):
    meta = quadratic_meta()
    meta["rate"] = meta["rate"].astype(jnp.float32)
    base = quadratic_problem()
    learn = il.GradientDescent(lambda meta: optax.sgd(jnp.exp(meta["rate"]).astype(jnp.float64)), 3)
    f = il.meta_value_and_grad(base, learn, gradient)
    if isinstance(gradient, il.ForwardMode) and isinstance(gradient.directions, il.Basis):
        pytest.skip("a basis has the dtypes of meta")
    _, grads = jax.jit(f)(meta, quadratic_episodes(), KEY)
    assert {name: leaf.dtype for name, leaf in grads.items()} == {
        name: leaf.dtype for name, leaf in meta.items()
    }


@pytest.mark.parametrize("gradient", [estimator.gradient for estimator in GRADIENTS], ids=str)
def test_an_empty_meta_is_refused(gradient):
    f = il.meta_value_and_grad(quadratic_problem(), LEARN, gradient)
    with pytest.raises(il.GradientError, match="meta is empty"):
        f({}, quadratic_episodes(), KEY)


# --- fidelity and the table ---------------------------------------------------------------------


def test_fidelity_says_what_the_laws_say():
    """An estimator whose predicted gradient is the exact one calls itself exact, and no other."""
    descent = next(v for v in ADAPTATIONS if v.name == "sgd-12-scanned").adaptation
    kinds = {e.name: e.gradient.fidelity(descent).kind for e in GRADIENTS}
    for e in GRADIENTS:
        if e.predict.__name__ == "exact":
            assert kinds[e.name] == "exact", e.name
        elif e.name != "implicit":
            assert kinds[e.name] == ("unbiased" if e.draws else "biased"), e.name
    assert all(e.gradient.fidelity(descent).sentence.endswith(".") for e in GRADIENTS)


def test_every_refusal_of_the_table_is_met_by_a_pair():
    met = {
        (type(e.gradient), v.adaptation.origin)
        for e in GRADIENTS
        for v in ADAPTATIONS
        if refusal(e.gradient, v.problem, v.adaptation) is not None
        and v.problem.step_weights is None
    }
    assert met == set(REFUSALS)


@pytest.mark.parametrize("settings", [(1, False), (4, True), (None, False)])
def test_checkpointing_keeps_fewer_values(settings):
    """Compiled, not run: temporary memory of 64 steps."""
    length, mixed = settings
    model = il.mlp([8, 32, 32, 8])
    problem, learn, _, init = il.maml(model, il.mean_squared_error, 0.01, 64)
    meta = init(jax.random.key(0))
    rows = jnp.zeros((64, 8))
    data = il.Episode(il.Examples(rows, rows), il.Examples(rows, rows))

    def temporary(gradient):
        f = jax.jit(jax.grad(il.meta_objective(problem, learn, gradient), has_aux=True))
        return f.lower(meta, data, KEY).compile().memory_analysis().temp_size_in_bytes

    assert temporary(il.Unroll(il.Segments(length), mixed)) < 0.5 * temporary(il.Unroll())
    assert temporary(il.Unroll(il.Binomial(3))) < temporary(il.Unroll(1))


# --- found by trying to break it ----------------------------------------------------------------


def test_truncation_bridges_past_an_infinite_initial_state():
    learn = il.GradientDescent(
        optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=2)), 5
    )
    values = [
        objective(g, adaptation=learn)(quadratic_meta()) for g in (il.Unroll(), il.Truncated(2))
    ]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-12)


@pytest.mark.parametrize("gradient", [il.Implicit(), il.EvolutionStrategies(2, 0.1)], ids=str)
def test_a_mixed_derivative_after_minimise_raises(gradient):
    problem, data, meta, _ = ridge()
    f = il.meta_objective(problem, il.Minimise(optx.BFGS(1e-8, 1e-8)), gradient)

    def slope(targets):
        moved = il.Episode((data.support[0], targets), data.query)
        return jax.grad(lambda meta: f(meta, moved, KEY)[0])(meta)["decay"]

    with pytest.raises(il.GradientError, match="in meta alone"):
        jax.grad(slope)(data.support[1])


@pytest.mark.parametrize("solver", [lx.LU(), lx.SVD()], ids=["lu", "svd"])
def test_a_direct_solver_of_a_singular_system_raises(solver):
    inner = lambda params, meta, batch, key: (params @ jnp.array([0.3, 0.1, 0.7]) - meta) ** 2
    outer = lambda params, meta, batch, key: jnp.sum((params - 3) ** 2)
    problem = il.Problem(lambda meta, support, key: jnp.zeros(3), inner, outer)
    f = il.meta_objective(problem, il.GradientDescent(optax.sgd(0.1), 200), il.Implicit(solver))
    with pytest.raises(Exception, match="did not converge"):
        jax.block_until_ready(
            jax.jit(jax.grad(f, has_aux=True))(
                jnp.array(1.0), il.Episode(jnp.ones(1), jnp.ones(1)), KEY
            )
        )


def test_an_outer_gradient_of_zero_needs_no_solver():
    problem, data, meta, _ = ridge()
    flat = lambda params, meta, batch, key: 0.0 * jnp.sum(params) - 0.4 * meta["decay"]
    problem = il.Problem(problem.init, problem.inner_loss, flat)
    learn = il.GradientDescent(optax.sgd(0.03), 50)
    f = il.meta_objective(problem, learn, il.Implicit(lx.BiCGStab(1e-8, 1e-8)))
    grads, _ = jax.jit(jax.grad(f, has_aux=True))(meta, data, KEY)
    np.testing.assert_allclose(grads["decay"], -0.4)


@pytest.mark.parametrize(
    "gradient", [il.EvolutionStrategies(2, 0.1), il.Reptile(), il.ForwardMode()]
)
def test_python_numbers_are_meta_parameters(gradient):
    loss = lambda params, meta, batch, key: (params - 2.0) ** 2
    problem = il.Problem(lambda meta, support, key: meta, loss, loss)
    f = il.meta_objective(problem, il.GradientDescent(optax.sgd(0.1), 2), gradient)
    got, _ = jax.grad(f, has_aux=True)(0.5, il.Episode(jnp.ones(1), jnp.ones(1)), KEY)
    assert got < 0


def test_mixed_mode_with_a_loss_of_higher_precision_than_its_parameters():
    loss = lambda params, meta, batch, key: jnp.sum(params.astype(jnp.float32) ** 2)
    problem = il.Problem(lambda meta, support, key: meta, loss, loss)
    learn = il.GradientDescent(optax.polyak_sgd(), 2)
    f = lambda g: jax.grad(il.meta_objective(problem, learn, g), has_aux=True)
    args = (jnp.ones(2, jnp.bfloat16), il.Episode(jnp.ones(1), jnp.ones(1)), KEY)
    with jax.numpy_dtype_promotion("standard"):
        got, expected = f(il.Unroll(mixed_mode=True))(*args)[0], f(il.Unroll())(*args)[0]
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(float), expected.astype(float), rtol=0.05, atol=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-3), (jnp.bfloat16, 0.3)])
def test_the_default_solver_of_implicit_runs_in_low_precision(dtype, tolerance):
    problem, data, meta, closed = ridge()
    cast = lambda tree: jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
    start = lambda meta, support, key: jnp.zeros(4, dtype)
    problem = il.Problem(start, problem.inner_loss, problem.outer_loss)
    f = il.meta_objective(problem, il.GradientDescent(optax.sgd(0.03), 400), il.Implicit())
    grads, _ = jax.jit(jax.grad(f, has_aux=True))(cast(meta), cast(data), KEY)
    expected = complex_step(closed, {"decay": np.array(0.5)})["decay"]
    assert grads["decay"].dtype == dtype
    np.testing.assert_allclose(float(grads["decay"]), expected, rtol=tolerance)
