"""What a meta-gradient is, and the objective that most of them differentiate."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation import Adaptation, InnerRule, Loop, run
from innerloop.arguments import CheckedModule
from innerloop.checks import describe
from innerloop.errors import StructureError
from innerloop.fidelity import Fidelity
from innerloop.gradients.inner import Exact
from innerloop.gradients.loops import StoreAll
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


TaskObjective = Callable[[PyTree, Episode, PRNGKeyArray], tuple[Scalar, Aux]]


class MetaGradient(CheckedModule):
    """A way to compute the meta-gradient. It names no algorithm and no data set.

    It builds, per task, a function whose value is the meta-objective and whose reverse-mode
    derivative in `meta` is this meta-gradient.
    """

    @abc.abstractmethod
    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """How far this gradient is from the exact one after this adaptation.

        This is the one place that says whether the gradient exists: where the kind is "undefined",
        the pair is refused with the sentence for a reason. A second derivative is refused where
        `derivatives` says that there is none.

        Args:
            adaptation: how a task is learned
            problem: the problem that it is asked for; None where it is asked for in general
        """

    @abc.abstractmethod
    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """The function `(meta, episode, key) -> (loss, aux)` of one task."""


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
    inner: InnerRule = Exact(),
    loop: Loop = StoreAll(),
) -> Outcome:
    r"""The meta-objective $\sum_t w_t L_\text{outer}(\theta_t)$ as a plain program.

    `inner` and `loop` decide what is differentiable in it.

    Args:
        problem: what is optimised
        adaptation: how the task is learned
        meta: meta-parameters
        episode: the task
        key: the task's key
        inner: what the inner gradient is, such as `Exact()`
        loop: how the inner steps are kept, such as `StoreAll()`

    Returns:
        The loss, what comes back beside it, and the state after the last inner step.
    """
    outer_loss = loss_function("outer_loss", problem.outer_loss, needed_by="the meta-objective")
    keys = task_keys(key)

    def outer(params: PyTree, t: Any = None):
        return outer_loss(params, meta, episode.query, keys.outer)

    observe = None if problem.step_weights is None else outer
    state, info, observed = run(
        problem, adaptation, meta, episode.support, keys.adapt, inner, loop, observe
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
    problem: Problem, adaptation: Adaptation, inner: InnerRule, loop: Loop
) -> TaskObjective:
    """`run_task` as the function of one task that a meta-gradient returns."""

    def objective(meta: PyTree, episode: Episode, key: PRNGKeyArray) -> tuple[Scalar, Aux]:
        loss, aux, _ = run_task(problem, adaptation, meta, episode, key, inner, loop)
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
