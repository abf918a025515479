"""Adaptation by a solver that runs to convergence."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import PyTree

from innerloop.adaptation.base import Adaptation, Origin
from innerloop.adaptation.constant import undifferentiable
from innerloop.arguments import at_least, flag, instance, optional
from innerloop.errors import GradientError, StructureError
from innerloop.normal_form import initial_params, loss_function, next_state
from innerloop.problem import parameters, state_of, with_state
from innerloop.trees import definite


class MinimiseInfo(NamedTuple):
    """A report of the solver.

    Args:
        loss: The inner loss at the solution.
        aux: The auxiliary output of the inner loss at the solution.
        steps: The number of steps that the solver took.
    """

    loss: Any
    aux: Any
    steps: Any


class Minimise(Adaptation):
    """The minimum of the inner loss, by an Optimistix minimiser.

    The solver differentiates the inner loss by itself, and its steps are not differentiated: the
    meta-gradient comes from the solution (`Implicit`) or from values only (`EvolutionStrategies`).

    Args:
        solver: The minimiser, such as `optimistix.BFGS(rtol=1e-6, atol=1e-6)`.
        max_steps: The largest number of steps.
        throw: Whether to raise at run time if the solver does not converge.
        options: Options that are passed to the solver, such as `{"lower": 0.0, "upper": 1.0}` for
            `optimistix.GoldenSearch`.

    Raises:
        StructureError: If `solver` is not a minimiser or `max_steps` is below 1, and while tracing
            if the solver asks for an option that is not given.
    """

    solver: optx.AbstractMinimiser = instance(
        optx.AbstractMinimiser,
        what="an Optimistix minimiser",
        such_as="optimistix.BFGS(rtol=1e-6, atol=1e-6)",
    )
    max_steps: int = at_least(1, default=256)
    throw: bool = flag(default=True)
    options: dict[str, Any] | None = optional(
        instance(dict, what="a solver's options", such_as='{"lower": 0.0, "upper": 1.0}')
    )
    steps: None = eqx.field(default=None, init=False)
    origin: Origin = eqx.field(default=Origin.SOLVER, init=False, static=True)

    def init(self, problem, meta, support, key) -> PyTree:
        """Parameters from the problem's `init`, with the model state, which stays as it is."""
        params = initial_params(problem, needed_by="Minimise")(meta, support, key)
        return with_state(params, jax.tree.map(definite, problem.state))

    def step(
        self, problem, meta, support, state, key, inner_gradient
    ) -> tuple[PyTree, MinimiseInfo]:
        """Runs the solver to the minimum."""
        normal = loss_function("inner_loss", problem, needed_by="Minimise")

        def loss(params: PyTree, *given: Any):
            value, aux = normal(with_state(params, model), *given)
            return value, next_state(problem, aux)[0]

        model = state_of(state)

        def solve(start: PyTree):
            with _options_explained(self.solver):
                solution = optx.minimise(
                    lambda params, _: loss(params, meta, support, key),
                    self.solver,
                    start,
                    has_aux=True,
                    options=self.options,
                    max_steps=self.max_steps,
                    throw=False,
                )
            params = solution.value
            if self.throw:
                failed = solution.result != optx.RESULTS.successful
                params = eqx.error_if(params, failed, _NOT_CONVERGED)
            value, aux = loss(params, meta, support, key)
            return params, MinimiseInfo(value, aux, jnp.asarray(solution.stats["num_steps"]))

        params, info = undifferentiable(solve, _NO_DERIVATIVE)(parameters(state))
        return with_state(params, model), info

    def params(self, state: PyTree) -> PyTree:
        """The minimum."""
        return state


@contextmanager
def _options_explained(solver: optx.AbstractMinimiser) -> Iterator[None]:
    try:
        yield
    except KeyError as error:  # a KeyError in a loss is already a StructureError here
        name = type(solver).__name__
        raise StructureError(
            f"{name} asks for the option {error}",
            got=f"Minimise({name}(...)) without this option",
            expected="the options that the documentation of the solver lists",
            write=f"Minimise(solver, options={{{error}: ...}})",
        ) from error


_NO_DERIVATIVE = GradientError(
    "the path of a solver to its solution has no derivative",
    got="a derivative through Minimise, in an episode or in a value that the problem closes over",
    expected="a derivative of the meta-objective in meta alone",
    write="meta_objective(problem, Minimise(solver), Implicit()), with that value as a part of "
    "meta",
)

_NOT_CONVERGED = (
    "the inner solver did not converge. Got: max_steps reached, or a loss that is not finite. "
    "Expected: an inner loss with a minimum that the solver reaches. Write: Minimise(solver, "
    "max_steps=1024), or Minimise(solver, throw=False) and watch "
    "aux.diagnostics['inner_residual'] of Implicit()"
)
