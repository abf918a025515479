"""The interface of meta-gradients, and the objective that most of them differentiate."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation import Adaptation, InnerRule, Loop, run
from innerloop.arguments import CheckedModule
from innerloop.checks import describe, failures_explained, is_inexact
from innerloop.errors import StructureError
from innerloop.fidelity import ESTIMATE, EXACT, Fidelity
from innerloop.gradients.inner import Exact
from innerloop.gradients.loops import StoreAll
from innerloop.normal_form import loss_function
from innerloop.problem import Episode, Problem, state_of, task_keys


class Aux(NamedTuple):
    """The auxiliary output of the meta-objective: per task, never averaged.

    Attributes:
        metrics: The aux of the outer loss at the adapted parameters.
        info: The infos of the inner steps, stacked along a step axis of length K.
        diagnostics: The meta-gradient's own dictionary. `meta_value_and_grad` adds `"unreached"`,
            which names the meta leaves that no gradient reaches.
        state: The model state after the inner steps; None if the problem has none.
    """

    metrics: Any
    info: Any
    diagnostics: dict[str, Any]
    state: Any = None


TaskObjective = Callable[[PyTree, Episode, PRNGKeyArray], tuple[Scalar, Aux]]


class MetaGradient(CheckedModule):
    """How the meta-gradient of one task is computed.

    A meta-gradient depends on no algorithm and no data set. For one task it builds a function whose
    value is the meta-objective and whose reverse-mode derivative in `meta` is this meta-gradient.
    """

    @abc.abstractmethod
    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """How far this gradient is from the exact one after this adaptation.

        The fidelity alone decides whether the gradient exists: a pair of kind "undefined" is
        refused, with the fidelity's sentence as the reason. A second derivative raises an error if
        `derivatives` says that there is none.

        Args:
            adaptation: How a task is learned.
            problem: The problem, or None for the fidelity on problems in general.

        Returns:
            The fidelity of the meta-gradient for this adaptation and problem.
        """

    @abc.abstractmethod
    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """The objective of one task.

        Args:
            problem: What is optimised.
            adaptation: How the task is learned.

        Returns:
            The function `(meta, episode, key) -> (loss, aux)`.
        """


class Outcome(NamedTuple):
    """The result of one task: the meta-objective, its aux, and the last state of the inner loop."""

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

    `inner` and `loop` decide which parts of it are differentiable.

    Args:
        problem: What is optimised.
        adaptation: How the task is learned.
        meta: The meta-parameters.
        episode: The task.
        key: The key of the task.
        inner: How the inner gradient is differentiated, such as `Exact()`.
        loop: How the inner steps are kept, such as `StoreAll()`.

    Returns:
        The loss, its aux, and the state after the last inner step.
    """
    outer_loss = loss_function("outer_loss", problem, needed_by="the meta-objective")
    keys = task_keys(key)

    def outer(params: PyTree, t: Any = None):
        return outer_loss(params, meta, episode.query, keys.outer)

    observe = None if problem.step_weights is None else outer
    state, info, observed = run(
        problem, adaptation, meta, episode.support, keys.adapt, inner, loop, observe
    )
    adapted = adaptation.params(state)
    if problem.step_weights is None:
        loss, metrics = outer(adapted)
    else:
        losses, step_metrics = observed
        loss = jnp.sum(
            weights_of_steps(problem.step_weights, len(losses) - 1, losses.dtype) * losses
        )
        metrics = jax.tree.map(lambda leaf: leaf[-1], step_metrics)
    return Outcome(loss, Aux(metrics, info, {}, state_of(adapted)), state)


def objective_after_run(
    problem: Problem, adaptation: Adaptation, inner: InnerRule, loop: Loop
) -> TaskObjective:
    """`run_task` as the objective of one task, which `MetaGradient.objective` returns.

    Args:
        problem: What is optimised.
        adaptation: How the task is learned.
        inner: How the inner gradient is differentiated.
        loop: How the inner steps are kept.

    Returns:
        The function `(meta, episode, key) -> (loss, aux)`.
    """

    def objective(meta: PyTree, episode: Episode, key: PRNGKeyArray) -> tuple[Scalar, Aux]:
        loss, aux, _ = run_task(problem, adaptation, meta, episode, key, inner, loop)
        return loss, aux

    return objective


def held_state(problem: Problem | None, always: bool = False) -> Fidelity:
    """What a gradient drops because the model state is held constant.

    Args:
        problem: The problem, or None.
        always: Whether the gradient holds the state constant even with `through_state`.
    """
    if problem is None or (problem.through_state and not always):
        return EXACT
    if not any(map(is_inexact, jax.tree.leaves(problem.state))):
        return EXACT
    return Fidelity(
        "biased",
        "The model state is held constant: its dependence on parameters and meta-parameters is "
        "dropped.",
        ESTIMATE,
    )


def weights_of_steps(step_weights: Callable, steps: int, dtype: Any) -> Array:
    """The weights of the losses after 0 ... `steps` steps; checks how many there are."""
    with failures_explained("step_weights", steps=steps):
        weights = jnp.asarray(step_weights(steps), dtype)
    if weights.shape != (steps + 1,):
        raise StructureError(
            "step_weights must give one weight for the parameters after 0 ... K steps",
            got=f"step_weights({steps}) = {describe(weights)}",
            expected=f"shape ({steps + 1},)",
            write="step_weights=lambda steps: jnp.full(steps + 1, 1 / (steps + 1))",
        )
    return weights
