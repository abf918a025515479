"""What a meta-gradient estimator is, and the objective that most of them differentiate."""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation import Adaptation, InnerGradient, Loop, run
from innerloop.checks import describe
from innerloop.errors import StructureError
from innerloop.problem import Episode, Problem, loss_function, task_keys


class Aux(NamedTuple):
    """What comes back beside the meta-objective: per task, never averaged.

    - `metrics`: aux of the outer loss at the adapted parameters
    - `info`: the inner steps' infos, stacked along a step axis of length K
    - `diagnostics`: the estimator's own dictionary; `meta_value_and_grad` adds `"unreached"`, which
      names the meta leaves that no gradient reaches
    """

    metrics: Any
    info: Any
    diagnostics: dict[str, Any]


class Fidelity(NamedTuple):
    """How far a meta-gradient is from the exact one.

    - `kind`: exact, unbiased (stochastic, right on average), or biased
    - `sentence`: what is dropped or approximated
    """

    kind: Literal["exact", "unbiased", "biased"]
    sentence: str


TaskObjective = Callable[[PyTree, Episode, PRNGKeyArray], tuple[Scalar, Aux]]


class MetaGradient(eqx.Module):
    """A way to compute the meta-gradient. It names no algorithm and no data set.

    It builds, per task, a function whose value is the meta-objective and whose reverse-mode
    derivative in `meta` is this estimator's meta-gradient.
    """

    @abc.abstractmethod
    def fidelity(self, adaptation: Adaptation) -> Fidelity:
        """How far this estimator's gradient is from the exact one after this adaptation."""

    @abc.abstractmethod
    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """The function `(meta, episode, key) -> (loss, aux)` of one task."""


class ChunkedGradient(MetaGradient):
    """A meta-gradient together with how many tasks are run at a time: what a plan comes to.

    `meta_objective` takes its `gradient`, and `meta_value_and_grad` its `chunk` too, unless the
    caller gives one.

    - `gradient`: the estimator that is meant
    - `chunk`: tasks at a time; None for all at once
    """

    if TYPE_CHECKING:  # type checkers would count the abstract variables as arguments
        gradient: ClassVar[MetaGradient]
        chunk: ClassVar[int | None]
    else:
        gradient: eqx.AbstractVar[MetaGradient]
        chunk: eqx.AbstractVar[int | None]

    def fidelity(self, adaptation: Adaptation) -> Fidelity:
        """That of the estimator."""
        return self.gradient.fidelity(adaptation)

    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """That of the estimator."""
        return self.gradient.objective(problem, adaptation)


class Outcome(NamedTuple):
    """One task after its inner loop: the meta-objective, what comes back beside it, the state."""

    loss: Scalar
    aux: Aux
    state: PyTree


def run_task(
    problem: Problem,
    adaptation: Adaptation,
    meta: PyTree,
    episode: Episode,
    key: PRNGKeyArray,
    inner_gradient: InnerGradient,
    loop: Loop,
) -> Outcome:
    r"""The meta-objective $\sum_t w_t L_\text{outer}(\theta_t)$ as a plain program.

    What is differentiable in it is decided by `inner_gradient` and `loop`.
    """
    outer_loss = loss_function("outer_loss", problem.outer_loss, needed_by="the meta-objective")
    keys = task_keys(key)

    def outer(params: PyTree, t: Any = None):
        return outer_loss(params, meta, episode.query, keys.outer)

    observe = None if problem.step_weights is None else outer
    state, info, observed = run(
        problem, adaptation, meta, episode.support, keys.adapt, inner_gradient, loop, observe
    )
    if problem.step_weights is None:
        loss, metrics = outer(adaptation.params(state))
    else:
        losses, step_metrics = observed
        loss = jnp.sum(
            weights_of_steps(problem.step_weights, len(losses) - 1, losses.dtype) * losses
        )
        metrics = jax.tree.map(lambda leaf: leaf[-1], step_metrics)
    return Outcome(loss, Aux(metrics, info, {}), state)


def objective_after_run(
    problem: Problem, adaptation: Adaptation, inner_gradient: InnerGradient, loop: Loop
) -> TaskObjective:
    """`run_task` as the function of one task that an estimator returns."""

    def objective(meta: PyTree, episode: Episode, key: PRNGKeyArray) -> tuple[Scalar, Aux]:
        loss, aux, _ = run_task(problem, adaptation, meta, episode, key, inner_gradient, loop)
        return loss, aux

    return objective


def weights_of_steps(step_weights: Callable, steps: int, dtype: Any) -> Array:
    """Weights of the losses after 0 ... `steps` steps. Raises `StructureError` unless so many."""
    weights = jnp.asarray(step_weights(steps), dtype)
    if weights.shape != (steps + 1,):
        raise StructureError(
            "step_weights must give one weight for the parameters after 0 ... K steps",
            got=f"step_weights({steps}) = {describe(weights)}",
            expected=f"shape ({steps + 1},)",
            write="step_weights=lambda steps: jnp.full(steps + 1, 1 / (steps + 1))",
        )
    return weights
