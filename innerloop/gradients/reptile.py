"""Reptile, which moves the initial parameters towards the adapted ones."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation import Adaptation, Origin
from innerloop.checks import describe
from innerloop.errors import GradientError
from innerloop.fidelity import ESTIMATE, Fidelity, undefined
from innerloop.gradients.base import Aux, MetaGradient, TaskObjective, run_task
from innerloop.gradients.reach import reached_leaves, watch_reach
from innerloop.gradients.surrogate import known_gradient
from innerloop.normal_form import initial_params
from innerloop.problem import Episode, Problem, parameters, task_keys


class Reptile(MetaGradient):
    r"""The difference between initial and adapted parameters as a gradient (Nichol et al. 2018).

    $$\nabla_\phi \approx J^\top (\theta_0 - \theta_K), \qquad
      J = \frac{\partial\, \text{init}(\phi)}{\partial \phi}$$

    (arXiv 1803.02999; there is no division by the inner rate, so the outer rate is the paper's ε).
    Only the leaves that `init` reads are learned. The query set is used only for the value.

    Fidelity: biased; the gradient is another direction, not an approximation. Memory: that of a
    plain forward pass.

    Raises:
        GradientError: If `init` reads no part of meta, if the adapted parameters are not those that
            `init` builds, or if differentiated twice or in anything but meta.
    """

    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """Biased; undefined after a procedure, which has no initial parameters."""
        if adaptation.origin is Origin.PROCEDURE:
            return undefined("A procedure has no initial parameters to move.", write="Unroll()")
        return Fidelity(
            "biased",
            "The gradient is replaced by the way from adapted to initial parameters; the query set "
            "gives only the value.",
            ESTIMATE,
            takes=1,
        )

    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """The meta-objective's value, with Reptile's direction as its gradient."""

        def objective(meta: PyTree, episode: Episode, key: PRNGKeyArray) -> tuple[Scalar, Aux]:
            fixed = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, meta))
            outcome = run_task(problem, adaptation, fixed, episode, key)
            adapted = parameters(adaptation.params(outcome.state))
            gradient = _direction(problem, fixed, adapted, episode, key)
            loss = known_gradient("Reptile()", outcome.loss, gradient, meta)
            return loss, outcome.aux

        return objective


def _direction(problem: Problem, meta: PyTree, adapted: PyTree, episode: Episode, key) -> list:
    init = initial_params(problem, needed_by="Reptile()")
    init_key = jax.random.fold_in(task_keys(key).adapt, 0)
    mark, unreached = watch_reach(meta)
    start, pull_back = jax.vjp(lambda meta: init(mark(meta), episode.support, init_key), meta)
    if jax.tree.structure(start) != jax.tree.structure(adapted):
        raise GradientError(
            "Reptile() needs adapted parameters of the same structure as the initial ones",
            got=describe(adapted),
            expected=describe(start),
            write="Unroll()",
        )
    way = jax.tree.map(lambda a, b: a - b.astype(a.dtype), start, adapted)
    (gradient,) = pull_back(way)
    leaves = reached_leaves(gradient, unreached())
    if all(leaf is None for leaf in leaves):
        raise GradientError(
            "Reptile() learns what init reads, and init reads no part of meta",
            got="an init without meta",
            expected="init=lambda meta, support, key: meta, or a part of it",
            write="Unroll()",
        )
    return leaves
