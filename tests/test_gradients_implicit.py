"""The implicit meta-gradient: solvers, conditions, and what has no solution."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import optimistix as optx
import pytest
from oracle import complex_step
from quadratic import KEY
from quick import without
from ridge import ridge

import innerloop as il

pytestmark = pytest.mark.usefixtures("x64")


SOLVERS = {
    "default": None,
    "cg": lx.CG(1e-12, 1e-12),
    "normal-cg": lx.Normal(lx.CG(1e-12, 1e-12)),
    "gmres": lx.GMRES(1e-12, 1e-12),
    "bicgstab": lx.BiCGStab(1e-12, 1e-12),
    "lu": lx.LU(),
    "cholesky": lx.Cholesky(),
    "neumann": il.gradients.Neumann(2000, 0.02),
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
    condition = il.gradients.projected_gradient(problem, projection, rate)
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
    again = il.Implicit(lx.GMRES(1e-12, 1e-12), il.gradients.fixed_point(step))
    same = jax.grad(il.meta_objective(problem, learn, again), has_aux=True)(meta, data, KEY)[0]
    np.testing.assert_allclose(same["decay"], grads["decay"], rtol=1e-9)


def test_the_one_step_gradient_is_one_term_of_the_series():
    """Bolte et al. 2023: differentiate the last step alone, the start held constant."""
    problem, data, meta, _ = ridge()
    rate = 0.03
    learn = il.GradientDescent(optax.sgd(rate), 800)
    f = il.meta_objective(problem, learn, il.Implicit(il.gradients.Neumann(1, rate)))
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
    with pytest.raises(
        il.errors.GradientError, match=r"does not depend on meta.*proximal\(problem"
    ):
        jax.grad(f, has_aux=True)(jnp.zeros(4), data, KEY)

    # iMAML on a quadratic: d theta*/d start = lambda (H + lambda I)^-1.
    strength = 2.0
    pulled = il.gradients.proximal(free, strength)
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
    pulled = il.gradients.proximal(
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


def test_a_lenient_solver_gives_its_last_iterate_and_says_how_far_it_got():
    problem, data, meta, _ = ridge()
    learn = il.Minimise(optx.GradientDescent(0.01, 1e-12, 1e-12), max_steps=3, throw=False)
    params, info = il.adapt(problem, learn, meta, data.support, KEY)
    np.testing.assert_array_equal(info.steps, [3])
    loss = problem.inner_loss(params, meta, data.support, KEY)
    np.testing.assert_allclose(info.loss, [loss])
    f = il.meta_objective(problem, learn, il.Implicit())
    _, aux = f(meta, data, KEY)
    assert aux.diagnostics["inner_residual"] > 1e-3


def test_a_solver_is_given_floating_point_parameters():
    problem, data, meta, _ = ridge()
    integers = il.Problem(
        lambda meta, support, key: jnp.zeros(4, int), problem.inner_loss, problem.outer_loss
    )
    with pytest.raises(il.errors.StructureError, match="init must return floating"):
        il.adapt(integers, il.Minimise(optx.BFGS(1e-6, 1e-6)), meta, data.support, KEY)


TOLERANCES = {"rtol": 1e-9, "atol": 1e-9}
BOUNDS = {"lower": 0.0, "upper": 4.0}
MINIMISERS = {
    "BFGS": (optx.BFGS(**TOLERANCES), None),
    "DFP": (optx.DFP(**TOLERANCES), None),
    "golden search": (optx.GoldenSearch(**TOLERANCES), BOUNDS),
    "gradient descent": (optx.GradientDescent(0.3, **TOLERANCES), None),
    "L-BFGS": (optx.LBFGS(**TOLERANCES), None),
    "Nelder-Mead": (optx.NelderMead(**TOLERANCES), None),
    "nonlinear CG": (optx.NonlinearCG(**TOLERANCES), None),
    "optax": (optx.OptaxMinimiser(optax.sgd(0.3), **TOLERANCES), None),
    "the best so far": (optx.BestSoFarMinimiser(optx.BFGS(**TOLERANCES)), None),
}


def nearest(solver, options):
    """The minimum of (x - pull)^2 + (x - rows)^2 is at (pull + mean(rows)) / 2."""

    def inner(params, meta, batch, key):
        return (params - meta["pull"]) ** 2 + jnp.mean((params - batch) ** 2)

    problem = il.Problem(
        lambda meta, support, key: jnp.zeros(()),
        inner,
        lambda params, meta, batch, key: params**2,
    )
    learn = il.Minimise(solver, max_steps=500, options=options)
    rows = jnp.array([[1.0, 2.0, 3.0], [0.5, 1.0, 0.0]])
    f = il.meta_value_and_grad(problem, learn, il.Implicit())
    return f, ({"pull": jnp.array(1.5)}, il.Episode(rows, rows), KEY), rows


@pytest.mark.parametrize("name", without(set(MINIMISERS) - {"golden search"}, MINIMISERS))
def test_every_minimiser_of_optimistix_finds_the_minimum(name):
    f, given, rows = nearest(*MINIMISERS[name])
    (loss, _), grads = jax.jit(f)(*given)
    solutions = (1.5 + rows.mean(axis=1)) / 2
    np.testing.assert_allclose(loss, jnp.mean(solutions**2), rtol=1e-4)
    np.testing.assert_allclose(grads["pull"], jnp.mean(solutions), rtol=1e-4)


def test_every_minimiser_of_optimistix_is_among_them():
    found = {
        value
        for value in vars(optx).values()
        if isinstance(value, type)
        and issubclass(value, optx.AbstractMinimiser)
        and not value.__name__.startswith("Abstract")
    }
    assert found == {type(solver) for solver, _ in MINIMISERS.values()}


def test_options_that_a_minimiser_asks_for_are_named():
    options = {}
    for name in BOUNDS:
        f, given, _ = nearest(optx.GoldenSearch(**TOLERANCES), options)
        message = rf"GoldenSearch asks for the option '{name}'.*options=\{{'{name}': \.\.\.\}}"
        with pytest.raises(il.errors.StructureError, match=message):
            jax.eval_shape(f, *given)
        options = options | {name: BOUNDS[name]}
