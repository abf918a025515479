"""The implicit meta-gradient: differentiate the optimum, not the way to it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation import Adaptation, run
from innerloop.errors import GradientError, StructureError
from innerloop.gradients.base import Aux, Fidelity, MetaGradient, TaskObjective
from innerloop.gradients.inner import exact_inner_gradient
from innerloop.gradients.loops import store_all
from innerloop.gradients.reach import reached_leaves, require_reach, watch_reach
from innerloop.gradients.surrogate import known_gradient
from innerloop.problem import (
    Episode,
    Problem,
    check_count,
    check_signature,
    loss_function,
    task_keys,
)

Condition = Callable[[PyTree, PyTree, PyTree, PRNGKeyArray], PyTree]
"""`(params, meta, batch, key) -> residual`, zero at the adapted parameters and shaped like them."""


class Neumann(eqx.Module):
    r"""A linear solve by a fixed number of terms of the Neumann series (Lorraine et al. 2020).

    $$v = \alpha \sum_{j=0}^{n-1} (I - \alpha H^\top)^j\, g$$

    (arXiv 1911.02590), which is the gradient of n more steps of gradient descent from the optimum.
    It converges where $\|I - \alpha H\| < 1$. One term is the one-step gradient (Bolte et al. 2023,
    arXiv 2305.13768): with a `fixed_point` condition take `rate=1`, else the inner rate.

    - `terms`: n >= 1
    - `rate`: α > 0
    """

    terms: int
    rate: float = 1.0

    def __check_init__(self):
        check_count("terms", self.terms, "Neumann(terms=20, rate=0.1)")


class Implicit(MetaGradient):
    r"""The implicit function theorem at the adapted parameters (iMAML: Rajeswaran et al. 2019).

    Where $F(\theta^*, \phi) = 0$, by default $\nabla_\theta L_\text{inner}$ on the full support,

    $$\nabla_\phi = \partial_\phi L_\text{outer} - (\partial_\phi F)^\top v,
      \qquad (\partial_\theta F)^\top v = \nabla_\theta L_\text{outer}$$

    (arXiv 1909.04630). The linear system is solved in the forward pass by products with vectors.
    `aux.diagnostics` holds `inner_residual`, ‖F(θ)‖, `solve_residual`, the relative residual of the
    solve, and `solve_steps`.

    - `solver`: any lineax solver, or `Neumann(terms, rate)`. By default CG for the inner loss's
      gradient and GMRES for a given condition, to the square root of the dtype's precision.
    - `condition`: `(params, meta, batch, key) -> residual`, as `fixed_point` makes one
    - `damping`: λ >= 0: λI is added to the matrix
    - `throw`: raise at run time where the solver does not converge; False lets the solution
      through, and `solve_residual` tells

    Fidelity: exact at the optimum; the error is of the order of `inner_residual`, plus that of the
    solve. Memory: one step's intermediate values, for any K. The steps themselves are not
    differentiated: what only they read, such as a learning rate, gets no gradient.

    Raises `GradientError` where the condition does not read meta (see `proximal`), for a problem
    with `step_weights` (losses on the way, which is not differentiated), and when differentiated
    twice or in anything but meta; `StructureError` while tracing for CG with a given
    condition, which need not be symmetric, and a residual that is not shaped like the parameters.
    """

    solver: lx.AbstractLinearSolver | Neumann | None = None
    condition: Condition | None = None
    damping: float = 0.0
    throw: bool = True

    def __check_init__(self):
        check_signature("condition", self.condition, ("params", "meta", "batch", "key"))
        if not (self.solver is None or isinstance(self.solver, (lx.AbstractLinearSolver, Neumann))):
            raise StructureError(
                "Implicit() needs a linear solver",
                got=f"solver={self.solver!r}",
                expected="a lineax solver, or Neumann(terms, rate)",
                write="Implicit(lineax.CG(rtol=1e-6, atol=1e-6))",
            )
        if isinstance(self.solver, lx.CG) and self.condition is not None:
            raise StructureError(
                "CG needs a symmetric positive definite matrix, and a given condition has none",
                got="Implicit(lineax.CG(...), condition=...)",
                expected="a solver for any matrix",
                write="Implicit(lineax.GMRES(rtol=1e-6, atol=1e-6), condition=...), or "
                "lineax.Normal(lineax.CG(...))",
            )
        if not isinstance(self.damping, (int, float)) or not 0 <= self.damping < float("inf"):
            raise StructureError(
                "damping must be a number of at least 0",
                got=f"damping={self.damping!r}",
                expected="a finite float >= 0",
                write="Implicit(damping=0.1)",
            )

    def fidelity(self, adaptation: Adaptation) -> Fidelity:
        """Exact at the optimum; biased by damping or a fixed number of terms."""
        if isinstance(self.solver, Neumann):
            sentence = f"The linear solve is cut off after {self.solver.terms} terms of its series."
            return Fidelity("biased", sentence)
        if self.damping:
            return Fidelity("biased", f"The linear system is damped by {self.damping}.")
        return Fidelity(
            "exact",
            "Exact at the optimum: the adapted parameters are taken to satisfy the condition.",
        )

    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """The meta-objective, with the implicit derivative of the optimum."""
        condition = self.condition or _stationarity(problem)
        outer_loss = loss_function("outer_loss", problem.outer_loss, needed_by="Implicit")

        def objective(meta: PyTree, episode: Episode, key: PRNGKeyArray) -> tuple[Scalar, Aux]:
            keys = task_keys(key)
            fixed = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, meta))
            state, info, _ = run(
                problem,
                adaptation,
                fixed,
                episode.support,
                keys.adapt,
                exact_inner_gradient,
                store_all,
            )
            params = adaptation.params(state)
            last_step = jax.random.fold_in(keys.adapt, adaptation.steps or 1)
            residual = lambda params, meta: _shaped_like(
                params, condition(params, meta, episode.support, last_step)
            )
            outer = lambda params, meta: outer_loss(params, meta, episode.query, keys.outer)
            rhs = jax.grad(lambda params: outer(params, fixed)[0])(params)
            solution = self._solve(lambda params: residual(params, fixed), params, rhs)
            mark, unreached = watch_reach(fixed)

            def lagrangian(meta: PyTree):
                meta = mark(meta)
                loss, metrics = outer(params, meta)
                force = residual(params, meta)
                pull = require_reach(_dot(solution.vector, force), meta, _not_read)
                return loss - pull.astype(loss.dtype), (loss, metrics, _norm(force))

            grads, (loss, metrics, inner_residual) = jax.grad(lagrangian, has_aux=True)(fixed)
            diagnostics = {
                "inner_residual": inner_residual,
                "solve_residual": solution.residual,
                "solve_steps": solution.steps,
            }
            loss = known_gradient("Implicit()", loss, reached_leaves(grads, unreached()), meta)
            return loss, Aux(metrics, info, diagnostics)

        return objective

    def _solve(self, residual: Callable, params: PyTree, rhs: PyTree) -> "_Solution":
        if self.condition is None:  # symmetric: forward over reverse is cheaper than a transpose
            product = lambda v: jax.jvp(residual, (params,), (v,))[1]
        else:
            _, pull_back = jax.vjp(residual, params)
            product = lambda v: pull_back(v)[0]
        matrix = lambda v: _add(product(v), v, self.damping)
        norm = _norm(rhs)
        size = jnp.where(norm > 0, norm, 1)
        unit = _scale(rhs, 1 / size)
        if isinstance(self.solver, Neumann):
            vector, steps = _neumann(self.solver, matrix, unit), jnp.int32(self.solver.terms)
            bad = jnp.bool_(False)
        else:
            vector, steps, bad = self._lineax(self.solver, matrix, unit)
        gap = _norm(_add(matrix(vector), unit, -1.0))
        # Direct and least-squares solvers call a singular system solved; the residual tells. No
        # right-hand side needs no solver, and some break down on it.
        useless = ~jnp.isfinite(gap) if isinstance(self.solver, Neumann) else ~(gap < _USELESS)
        bad = (norm > 0) & (bad | useless)
        vector = jax.tree.map(lambda leaf: jnp.where(norm > 0, leaf, 0), vector)
        if self.throw:
            vector = eqx.error_if(vector, bad, _NOT_SOLVED)
        return _Solution(_scale(vector, size), gap, steps)

    def _lineax(
        self, solver: lx.AbstractLinearSolver | None, matrix: Callable, rhs: PyTree
    ) -> tuple[PyTree, Array, Array]:
        if solver is None:
            dtype = jnp.result_type(*jax.tree.leaves(rhs))
            tolerance = float(jnp.finfo(dtype).eps) ** 0.5
            kind = lx.CG if self.condition is None else lx.GMRES
            solver = kind(rtol=tolerance, atol=tolerance)
        tags = frozenset()
        if self.condition is None:
            definite = isinstance(solver, (lx.CG, lx.Cholesky))
            tags = lx.positive_semidefinite_tag if definite else lx.symmetric_tag
        operator = lx.FunctionLinearOperator(matrix, jax.eval_shape(lambda: rhs), tags)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            solution = lx.linear_solve(operator, rhs, solver, throw=False)
        steps = jnp.asarray(solution.stats.get("num_steps", 0), jnp.int32)
        return solution.value, steps, solution.result != lx.RESULTS.successful


class _Solution(NamedTuple):
    vector: PyTree
    residual: Scalar
    steps: Array


_USELESS = 0.1
"""Relative residual above which a solution is none."""

_NOT_SOLVED = (
    "the linear solve of the implicit meta-gradient did not converge. Got: a solver that gave up, "
    "or a matrix that is singular, indefinite or not finite. Expected: an inner problem at a "
    "strict minimum. Write: proximal(problem, strength) or Implicit(damping=0.1) for a better-"
    "conditioned matrix, Implicit(lineax.GMRES(rtol=1e-6, atol=1e-6)) for an indefinite one, or "
    "Implicit(throw=False) and watch aux.diagnostics['solve_residual']"
)


def fixed_point(function: Condition) -> Condition:
    r"""The condition $F = \theta - T(\theta, \phi)$ of a fixed point of `function`, T.

    - `function`: `(params, meta, batch, key) -> params`: an inner step, a projected or a proximal
      one (`projected_gradient`), or any other map that the adaptation has converged under
    """

    def condition(params: PyTree, meta: PyTree, batch: PyTree, key: PRNGKeyArray) -> PyTree:
        return jax.tree.map(jnp.subtract, params, function(params, meta, batch, key))

    return condition


def projected_gradient(
    problem: Problem, projection: Callable[[PyTree, PyTree], PyTree], rate: float
) -> Condition:
    r"""The condition $F = \theta - P(\theta - \alpha \nabla_\theta L_\text{inner}(\theta), \phi)$.

    - `projection`: `(params, meta) -> params`: the projection onto a feasible set, or the proximal
      operator of a penalty that is not differentiable, for the step α
    - `rate`: α > 0; any step gives the same optimum
    """
    stationarity = _stationarity(problem)

    def step(params: PyTree, meta: PyTree, batch: PyTree, key: PRNGKeyArray) -> PyTree:
        gradient = stationarity(params, meta, batch, key)
        return projection(_add(params, gradient, -rate), meta)

    return fixed_point(step)


def proximal(problem: Problem, strength: float | Callable[[PyTree], Scalar]) -> Problem:
    r"""The problem with a pull of the parameters to where they start (iMAML, equation 3).

    $$L_\text{inner}(\theta) + \frac{\lambda}{2} \|\theta - \theta_0(\phi)\|^2$$

    makes the optimum depend on the initialisation, and strictly convex what is nearly flat.

    - `strength`: λ > 0, or a function of meta that gives it
    - `problem.init` must give the same parameters for every key and every part of the support

    Raises `StructureError` where the problem has no `init` or no `inner_loss`.
    """
    inner_loss = loss_function("inner_loss", problem.inner_loss, needed_by="proximal")
    init = problem.init
    if init is None:
        raise StructureError(
            "proximal needs parameters to start from",
            got="Problem(init=None, ...)",
            expected="init(meta, support, key) -> params",
            write="Problem(init=lambda meta, support, key: meta, ...)",
        )

    def pulled(params: PyTree, meta: PyTree, batch: PyTree, key: PRNGKeyArray):
        value, aux = inner_loss(params, meta, batch, key)
        pull = strength(meta) if callable(strength) else strength
        way = jax.tree.map(jnp.subtract, params, init(meta, batch, key))
        penalty = jnp.asarray(pull / 2, value.dtype) * _dot(way, way).astype(value.dtype)
        return value + penalty, aux

    return Problem(init, pulled, problem.outer_loss, problem.step_weights)


def _stationarity(problem: Problem) -> Condition:
    loss = loss_function("inner_loss", problem.inner_loss, needed_by="Implicit")
    gradient = exact_inner_gradient(loss)
    return lambda params, meta, batch, key: gradient(params, meta, batch, key)[1]


def _not_read(leaves: str) -> GradientError:
    return GradientError(
        "the inner optimum does not depend on meta, so its implicit meta-gradient is zero",
        got=f"an inner condition that reads none of the meta leaves {leaves}",
        expected="an inner loss that reads meta",
        write="Implicit() after proximal(problem, strength), which pulls the parameters to where "
        "they start (iMAML); or Unroll()",
    )


def _shaped_like(params: PyTree, residual: PyTree) -> PyTree:
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (params, residual)]
    if shapes[0] == shapes[1]:
        return residual
    raise StructureError(
        "the condition must give one residual per parameter",
        got=f"{shapes[1]}",
        expected=f"{shapes[0]}",
        write="condition=lambda params, meta, batch, key: residual with the shape of params",
    )


def _neumann(series: Neumann, matrix: Callable, rhs: PyTree) -> PyTree:
    def term(carry, _):
        power, total = carry
        power = _add(power, matrix(power), -series.rate)
        return (power, _add(total, power, 1.0)), None

    (_, total), _ = jax.lax.scan(term, (rhs, rhs), None, length=series.terms - 1)
    return _scale(total, series.rate)


def _add(a: PyTree, b: PyTree, factor: float) -> PyTree:
    return jax.tree.map(lambda x, y: x + jnp.asarray(factor, y.dtype) * y, a, b)


def _scale(tree: PyTree, factor: Any) -> PyTree:
    return jax.tree.map(lambda leaf: leaf * jnp.asarray(factor).astype(leaf.dtype), tree)


def _dot(a: PyTree, b: PyTree) -> Scalar:
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return jax.tree.reduce(jnp.add, products)


def _norm(tree: PyTree) -> Scalar:
    return jnp.sqrt(_dot(tree, tree))
