"""Linear systems over trees of parameters, with matrices given by products with vectors."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree, Scalar

from innerloop.arguments import CheckedModule, at_least, positive
from innerloop.trees import add, norm, scale


class Neumann(CheckedModule):
    r"""A linear solve by a fixed number of terms of the Neumann series (Lorraine et al. 2020).

    $$v = \alpha \sum_{j=0}^{n-1} (I - \alpha H^\top)^j\, g$$

    (arXiv 1911.02590), which is the gradient of n more steps of gradient descent from the optimum.
    The series converges if $\|I - \alpha H\| < 1$. One term is the one-step gradient (Bolte et al.
    2023, arXiv 2305.13768): use `rate=1` with a `fixed_point` condition, and otherwise the inner
    rate.

    Args:
        terms: The number of terms n >= 1.
        rate: The step α > 0.

    Raises:
        StructureError: If `terms` is below 1, or α is not positive.
    """

    terms: int = at_least(1, such_as=20)
    rate: float = positive(default=1.0)


class Solution(NamedTuple):
    r"""The solution v of $Av = b$, its residual $\|Av - b\| / \|b\|$, and the number of steps."""

    vector: PyTree
    residual: Scalar
    steps: Array


def solve(
    solver: lx.AbstractLinearSolver | Neumann | None,
    matrix: Callable[[PyTree], PyTree],
    rhs: PyTree,
    *,
    symmetric: bool,
    throw: bool,
) -> Solution:
    """The solution of `matrix(v) = rhs`, which is zero for a right-hand side of zeros.

    Without a `solver`, CG solves a symmetric system and GMRES any other. With `throw`, it raises at
    run time if the solver fails or its residual is too large.
    """
    size = norm(rhs)
    unit = scale(rhs, 1 / jnp.where(size > 0, size, 1))
    if isinstance(solver, Neumann):
        vector, steps, failed = _neumann(solver, matrix, unit), jnp.int32(solver.terms), False
    else:
        vector, steps, failed = _lineax(solver or _default(rhs, symmetric), matrix, unit, symmetric)
    gap = norm(add(matrix(vector), unit, -1.0))
    # Direct and least-squares solvers report success on a singular system, so the residual
    # decides. A right-hand side of zeros needs no solver, and some solvers break down on it.
    useless = ~jnp.isfinite(gap) if isinstance(solver, Neumann) else ~(gap < _USELESS)
    vector = jax.tree.map(lambda leaf: jnp.where(size > 0, leaf, 0), vector)
    if throw:
        vector = eqx.error_if(vector, (size > 0) & (failed | useless), _NOT_SOLVED)
    return Solution(scale(vector, size), gap, steps)


_USELESS = 0.1
"""Relative residual above which a solve counts as failed."""

_NOT_SOLVED = (
    "the linear solve of the implicit meta-gradient did not converge. Got: a solver that gave up, "
    "or a matrix that is singular, indefinite or not finite. Expected: an inner problem at a "
    "strict minimum. Write: proximal(problem, strength) or Implicit(damping=0.1) for a better-"
    "conditioned matrix, Implicit(lineax.GMRES(rtol=1e-6, atol=1e-6)) for an indefinite one, or "
    "Implicit(throw=False) and watch aux.diagnostics['solve_residual']"
)


def _default(rhs: PyTree, symmetric: bool) -> lx.AbstractLinearSolver:
    tolerance = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(rhs))).eps) ** 0.5
    kind = lx.CG if symmetric else lx.GMRES
    return kind(rtol=tolerance, atol=tolerance)


def _lineax(solver: lx.AbstractLinearSolver, matrix: Callable, rhs: PyTree, symmetric: bool):
    tags = frozenset()
    if symmetric:
        definite = isinstance(solver, (lx.CG, lx.Cholesky))
        tags = lx.positive_semidefinite_tag if definite else lx.symmetric_tag
    operator = lx.FunctionLinearOperator(matrix, jax.eval_shape(lambda: rhs), tags)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        solution = lx.linear_solve(operator, rhs, solver, throw=False)
    steps = jnp.asarray(solution.stats.get("num_steps", 0), jnp.int32)
    return solution.value, steps, solution.result != lx.RESULTS.successful


def _neumann(series: Neumann, matrix: Callable, rhs: PyTree) -> PyTree:
    def term(carry, _):
        power, total = carry
        power = add(power, matrix(power), -series.rate)
        return (power, add(total, power, 1.0)), None

    (_, total), _ = jax.lax.scan(term, (rhs, rhs), None, length=series.terms - 1)
    return scale(total, series.rate)
