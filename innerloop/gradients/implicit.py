"""The implicit meta-gradient, which differentiates the optimum and not the inner steps."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation import Adaptation, Origin, run
from innerloop.arguments import between, flag, function, instance, optional
from innerloop.checks import explained
from innerloop.errors import GradientError, StructureError
from innerloop.fidelity import ESTIMATE, Fidelity, combined, undefined
from innerloop.gradients.base import Aux, MetaGradient, TaskObjective, held_state
from innerloop.gradients.conditions import Condition, stationarity
from innerloop.gradients.forward import has_forward_mode, jvp
from innerloop.gradients.inner import Exact
from innerloop.gradients.linear_solve import Neumann, solve
from innerloop.gradients.loops import StoreAll
from innerloop.gradients.reach import reached_leaves, require_reach, watched_value_and_grad
from innerloop.gradients.surrogate import known_gradient
from innerloop.normal_form import loss_function
from innerloop.problem import Episode, Problem, parameters, state_of, task_keys, with_state
from innerloop.trees import add, dot, norm


class Implicit(MetaGradient):
    r"""The implicit function theorem at the adapted parameters (iMAML: Rajeswaran et al. 2019).

    If $F(\theta^*, \phi) = 0$, where F is by default $\nabla_\theta L_\text{inner}$ on the full
    support set, then

    $$\nabla_\phi = \partial_\phi L_\text{outer} - (\partial_\phi F)^\top v,
      \qquad (\partial_\theta F)^\top v = \nabla_\theta L_\text{outer}$$

    (arXiv 1909.04630). The linear system is solved in the forward pass by matrix-vector products,
    which take forward mode over reverse mode, or reverse mode twice if an operation in the inner
    loss has no forward mode.
    `aux.diagnostics` holds `inner_residual`, ‖F(θ)‖, `solve_residual`, the relative residual of the
    solve, and `solve_steps`.

    Fidelity: exact at the optimum; elsewhere the error is of the order of `inner_residual`, plus
    that of the solve. Memory: one step's intermediate values, for any K. The steps themselves are
    not differentiated: a meta-parameter that only they read, such as a learning rate, gets no
    gradient.

    Args:
        solver: Any lineax solver, or `Neumann(terms, rate)`. By default CG for the inner loss's
            gradient and GMRES for a given condition, to the square root of the dtype's precision.
        condition: `(params, meta, batch, key) -> residual`, such as `fixed_point` returns; by
            default the inner loss's gradient.
        damping: λ >= 0; λI is added to the matrix.
        throw: Whether to raise at run time if the solver does not converge. If False, the solution
            is used as it is, and `solve_residual` shows its error.

    Raises:
        GradientError: If the condition does not read meta (see `proximal`), if the problem has
            `step_weights` (whose losses depend on steps that are not differentiated), or if
            differentiated twice or in anything but meta.
        StructureError: While tracing, if CG is used with a given condition, which need not be
            symmetric, or if the residual is not shaped like the parameters.
    """

    solver: lx.AbstractLinearSolver | Neumann | None = optional(
        instance(
            *(lx.AbstractLinearSolver, Neumann),
            what="a linear solver of lineax, or Neumann(terms, rate)",
            such_as="lineax.CG(rtol=1e-6, atol=1e-6)",
        )
    )
    condition: Condition | None = optional(
        function("params", "meta", "batch", "key", gives="residual")
    )
    damping: float = between(0.0, math.inf, default=0.0)
    throw: bool = flag(default=True)

    def __check_init__(self):
        if isinstance(self.solver, lx.CG) and self.condition is not None:
            raise StructureError(
                "CG needs a symmetric positive definite matrix, and a given condition has none",
                got="Implicit(lineax.CG(...), condition=...)",
                expected="a solver for any matrix",
                write="Implicit(lineax.GMRES(rtol=1e-6, atol=1e-6), condition=...), or "
                "Implicit(lineax.Normal(lineax.CG(rtol=1e-6, atol=1e-6)), condition=...)",
            )

    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """Exact at the optimum; biased by damping or a fixed number of terms.

        Undefined with `step_weights`, and after a procedure unless a condition is given.
        """
        if problem is not None and problem.step_weights is not None:
            return undefined(
                "step_weights ask for losses on the way to the optimum, and only the optimum is "
                "differentiated.",
                write="Unroll(), or a Problem without step_weights",
            )
        if adaptation.origin is Origin.PROCEDURE and self.condition is None:
            return undefined(
                "A procedure need not end where the gradient of the inner loss vanishes.",
                write="Unroll(), which is exact, or Implicit(condition=...) with the condition "
                "that it solves",
            )
        return combined([self._of_solve(), held_state(problem, always=True)])

    def _of_solve(self) -> Fidelity:
        if isinstance(self.solver, Neumann):
            sentence = f"The linear solve is cut off after {self.solver.terms} terms of its series."
            return Fidelity("biased", sentence, ESTIMATE)
        if self.damping:
            return Fidelity("biased", f"The linear system is damped by {self.damping}.", ESTIMATE)
        return Fidelity(
            "exact",
            "Exact at the optimum: the adapted parameters are taken to satisfy the condition.",
            ESTIMATE,
        )

    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """The meta-objective, with the implicit derivative of the optimum."""
        condition = explained(
            "the condition",
            self.condition or stationarity(problem),
            *("params", "meta", "batch", "key"),
        )
        outer_loss = loss_function("outer_loss", problem, needed_by="Implicit")

        def objective(meta: PyTree, episode: Episode, key: PRNGKeyArray) -> tuple[Scalar, Aux]:
            keys = task_keys(key)
            fixed = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, meta))
            state, info, _ = run(
                problem, adaptation, fixed, episode.support, keys.adapt, Exact(), StoreAll()
            )
            adapted = adaptation.params(state)
            params, model = parameters(adapted), state_of(adapted)
            last_step = jax.random.fold_in(keys.adapt, adaptation.steps or 1)
            residual = lambda params, meta: _shaped_like(
                params,
                condition(
                    with_state(params, model), problem.whole(meta), episode.support, last_step
                ),
            )
            outer = lambda params, meta: outer_loss(
                with_state(params, model), meta, episode.query, keys.outer
            )
            rhs = jax.grad(lambda params: outer(params, fixed)[0])(params)
            matrix = self._matrix(lambda params: residual(params, fixed), params)
            symmetric = self.condition is None
            solution = solve(self.solver, matrix, rhs, symmetric=symmetric, throw=self.throw)

            def lagrangian(meta: PyTree):
                loss, metrics = outer(params, meta)
                force = residual(params, meta)
                pull = require_reach(dot(solution.vector, force), meta, _not_read)
                return loss - pull.astype(loss.dtype), (loss, metrics, norm(force))

            (_, aux), grads, unreached = watched_value_and_grad(lagrangian, fixed)
            loss, metrics, inner_residual = aux
            diagnostics = {
                "inner_residual": inner_residual,
                "solve_residual": solution.residual,
                "solve_steps": solution.steps,
            }
            loss = known_gradient("Implicit()", loss, reached_leaves(grads, unreached), meta)
            return loss, Aux(metrics, info, diagnostics, model)

        return objective

    def _matrix(self, residual: Callable, params: PyTree) -> Callable[[PyTree], PyTree]:
        r"""$v \mapsto (\partial_\theta F)^\top v + \lambda v$."""
        if self.condition is None and has_forward_mode(residual, params):
            # The matrix is symmetric, and forward over reverse is cheaper than a transpose.
            product = lambda v: jvp(residual, params, v)[1]
        else:
            _, pull_back = jax.vjp(residual, params)
            product = lambda v: pull_back(v)[0]
        return lambda v: add(product(v), v, self.damping)


def _not_read(leaves: str) -> GradientError:
    return GradientError(
        "the inner optimum does not depend on meta, so its implicit meta-gradient is zero",
        got=f"an inner condition that reads none of the meta leaves {leaves}",
        expected="an inner loss that reads meta",
        write="Implicit() after gradients.proximal(problem, strength), which pulls the parameters "
        "to where they start (iMAML); or Unroll()",
    )


def _shaped_like(params: PyTree, residual: PyTree) -> PyTree:
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (params, residual)]
    if shapes[0] == shapes[1]:
        return residual
    raise StructureError(
        "the condition must give one residual per parameter",
        got=f"{shapes[1]}",
        expected=f"{shapes[0]}",
    )
