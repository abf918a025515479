"""The meta-objective: problem, adaptation and meta-gradient together."""

from collections.abc import Callable
from contextlib import ContextDecorator, suppress
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation import Adaptation, run
from innerloop.arguments import at_least, checked, instance, optional, random_key
from innerloop.batches import check_episode, task_count, task_weights, with_stand_ins
from innerloop.checks import adapter_call, describe, describe_briefly, is_floating, require_tree
from innerloop.errors import GradientError, StructureError
from innerloop.gradients import Aux, MetaGradient, Unroll
from innerloop.gradients.base import TaskObjective
from innerloop.gradients.inner import Exact
from innerloop.gradients.instead import gradient_instead
from innerloop.gradients.loops import StoreAll
from innerloop.gradients.names import gradient_name
from innerloop.gradients.reach import detached, require_reach
from innerloop.gradients.surrogate import once_differentiable
from innerloop.learner import Learner
from innerloop.missing import missing_derivatives_explained
from innerloop.problem import Episode, Problem, task_keys
from innerloop.programs.compiled import compiled, compiled_while_used, if_concrete
from innerloop.sums import Spread, sum_over_tasks
from innerloop.tangents import refuse_derivative
from innerloop.trees import all_finite, element

MetaValueAndGrad = Callable[[PyTree, Any, PRNGKeyArray], tuple[tuple[Scalar, Any], PyTree]]
"""`(meta, episodes, key) -> ((loss, aux), grads)`, over a batch of tasks."""


def parts(**further: Any) -> dict[str, Any]:
    """The kinds of the arguments `problem` and `adaptation`, and of further arguments."""
    return {
        "problem": instance(
            *(Problem,),
            what="a Problem",
            such_as="Problem(init, inner_loss, outer_loss)",
            instead={Learner: "learner.problem"},
        ),
        "adaptation": instance(
            *(Adaptation,),
            what="an Adaptation",
            such_as="GradientDescent(optax.sgd(0.01), 5)",
            instead={Learner: "learner.adaptation"},
        ),
        **further,
    }


GRADIENT = optional(instance(MetaGradient, what="a meta-gradient", such_as="Unroll()"))
"""The kind of an argument that is a meta-gradient, or None for the exact one."""


@checked(**parts(key=random_key()))
def adapt(
    problem: Problem, adaptation: Adaptation, meta: PyTree, support: PyTree, key: PRNGKeyArray
) -> tuple[PyTree, Any]:
    """Learn one task and return the adapted parameters (inference).

    If it is called with concrete arrays, it is compiled once for its parts and the shapes of its
    arguments; a later call runs the same program. If a function cannot be compiled, such as a
    `Procedure` in NumPy, or the result is not finite, the task is learned operation by operation,
    which also checks values, such as labels.

    Args:
        problem: What is optimised.
        adaptation: How the task is learned.
        meta: The meta-parameters.
        support: The support set of the task.
        key: The key of the task. With the key that the meta-objective has for this task, the result
            is the parameters that the meta-objective sees.

    Returns:
        `(params, info)`: the adapted parameters, and the infos of the inner steps, stacked.

    Raises:
        GradientError: If the result is differentiated.
        StructureError: If the parts do not fit.
    """
    check_meta(meta)
    given = problem, adaptation, meta, support, key
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(given)):
        with suppress(Exception):  # the run below raises it, where values are known
            as_arrays = jax.tree.map(jnp.asarray, meta)  # a number would be a part of the program
            learned, finite = _adapted_and_finite(problem, adaptation, as_arrays, support, key)
            if isinstance(finite, Tracer) or finite:  # traced inside of a function of the caller's
                return learned
    return _adapted(*given)


def _adapted(
    problem: Problem, adaptation: Adaptation, meta: PyTree, support: PyTree, key: PRNGKeyArray
) -> tuple[PyTree, Any]:
    """`adapt`, as it is written."""
    keys = task_keys(key)
    with missing_derivatives_explained():
        state, info, _ = run(problem, adaptation, meta, support, keys.adapt, Exact(), StoreAll())
    return refuse_derivative(
        (adaptation.params(state), info),
        GradientError(
            "adapt has no derivative",
            got="a derivative through adapt",
            expected="values only",
            write="meta_objective(problem, adaptation, gradient)(meta, episode, key)",
        ),
    )


@compiled
def _adapted_and_finite(*given: Any) -> tuple[tuple[PyTree, Any], Bool[Array, ""]]:
    learned = _adapted(*given)
    return learned, all_finite(learned)


@checked(**parts(gradient=GRADIENT))
def meta_objective(
    problem: Problem, adaptation: Adaptation, gradient: MetaGradient | None = None
) -> TaskObjective:
    """The meta-objective of one task.

    Args:
        problem: What is optimised.
        adaptation: How the task is learned.
        gradient: How the derivative is computed; by default `Unroll()`, which is exact.

    Returns:
        `f(meta, episode, key) -> (loss, aux)`. Its value is the meta-objective and its reverse-mode
        derivative in `meta` is the meta-gradient, so it composes with `jax.grad`, `jax.vmap` and
        `jax.jit`.

    Raises:
        StructureError: While tracing, if the parts do not fit.
        GradientError: While tracing, if the function is differentiated but no meta-parameter
            reaches the loss, or if a derivative does not exist.
        ValueError: JAX's own error, if `jax.grad` of the function differentiates a `lax.while_loop`
            in reverse mode. `meta_value_and_grad` explains it, and `check` says where the loop is.
    """
    of_task = _meta_objective(problem, adaptation, gradient)

    def objective(meta: PyTree, episode: Episode, key: PRNGKeyArray) -> tuple[Scalar, Aux]:
        task = meta, episode, key
        with missing_derivatives_explained(partial(gradient_instead, problem, adaptation, task)):
            return of_task(*task)

    return objective


def _meta_objective(
    problem: Problem, adaptation: Adaptation, gradient: MetaGradient | None
) -> TaskObjective:
    """`meta_objective`, which raises JAX's own errors if a derivative does not exist."""
    gradient = Unroll() if gradient is None else gradient
    fidelity = gradient.fidelity(adaptation, problem)
    if fidelity.kind == "undefined":
        name, learn = gradient_name(gradient), type(adaptation).__name__
        raise GradientError(
            f"{name} does not exist after {learn}: {fidelity.sentence.rstrip('.')}",
            got=f"{name} with {learn}",
            expected="a pair with a meta-gradient",
            write=fidelity.write,
        )
    task_objective = gradient.objective(problem, adaptation)

    @checked("meta_objective(...)", key=random_key())
    def objective(meta: PyTree, episode: Episode, key: PRNGKeyArray) -> tuple[Scalar, Aux]:
        check_meta(meta)
        check_episode(episode)
        loss, aux = task_objective(meta, episode, key)
        loss = require_reach(loss, meta, detached)
        if not fidelity.derivatives.second:
            loss = once_differentiable(gradient_name(gradient), loss, meta)
        return loss, aux

    return objective


@checked(**parts(gradient=GRADIENT, chunk=optional(at_least(1))))
def meta_value_and_grad(
    problem: Problem,
    adaptation: Adaptation,
    gradient: MetaGradient | None = None,
    *,
    chunk: int | None = None,
    spread: Spread | None = None,
) -> MetaValueAndGrad:
    """The meta-objective of a batch of tasks and its gradient.

    If the returned function is called with concrete arrays, it is compiled, once for each set of
    argument shapes. A compiled function cannot raise for a value: if a label is not a class, the
    loss and the gradient are NaN. `check` names such a label.

    `aux.diagnostics["unreached"]` has one entry, named by its path, for each leaf of meta that no
    gradient reaches; its gradient is zero. (Meta-gradients without a backward pass, `ForwardMode`
    and `EvolutionStrategies`, cannot tell and name none.)

    Args:
        problem: What is optimised.
        adaptation: How a task is learned.
        gradient: How the derivative of a task is computed; by default `Unroll()`, which is exact.
        chunk: None runs all tasks at once under `vmap`; n runs at most n at a time and accumulates
            their gradients, in the memory of n tasks (1: a plain loop over tasks). The tasks are
            divided evenly into the fewest chunks; results are equal up to rounding.
        spread: How the sum over tasks is computed, such as `Sharding(mesh).spread` over the devices
            of a mesh (a chunk then counts the tasks of one device); None computes it here.

    Returns:
        `f(meta, episodes, key) -> ((loss, aux), grads)`: the mean of the loss over the task axis,
        weighted by `episodes.weight` if it is given, `aux` per task, and the gradient in `meta`.
        One key per task is split from `key`. Sums over tasks are kept in float32 at least, and so
        is the loss. A task of weight zero is not learned: its `aux` is that of another task. If no
        task counts, the loss is NaN and the gradient zero.

    Raises:
        StructureError: While tracing, if the parts do not fit.
        GradientError: While tracing, if no meta-parameter reaches the loss.
    """
    if isinstance(spread, ContextDecorator) or (spread is not None and not callable(spread)):
        raise StructureError(  # a mesh is a context manager, and calling it does nothing
            "spread is a function that runs a sum over tasks in another way",
            got=f"spread={describe(spread)}",
            expected="a function of the sum over tasks",
            write="meta_value_and_grad(..., spread=Sharding(mesh).spread)",
        )
    _meta_objective(problem, adaptation, gradient)  # refuses now what it would refuse later

    @checked("meta_value_and_grad(...)", key=random_key())
    def value_and_grad(meta: PyTree, episodes: Episode, key: PRNGKeyArray):
        check_meta(meta)
        if not jax.tree.leaves(meta):
            raise GradientError(
                "meta is empty, so there is nothing to take a gradient in",
                got=describe(meta),
                expected="at least one floating-point array",
                write="meta_objective(problem, adaptation)(meta, episode, key) for the value alone",
            )
        tasks = task_count(episodes)
        keys = jax.random.split(key, tasks)
        weights = task_weights(episodes.weight, tasks, meta)
        data = Episode(episodes.support, episodes.query)
        if episodes.weight is not None:
            data, keys = with_stand_ins((data, keys), weights != 0)
        meta = jax.tree.map(jnp.asarray, meta)  # a number would be a part of the program
        given = (problem.frozen, problem.state), meta, data, keys, weights
        return averages(*given, episodes.weight is not None)

    # Frozen arrays and the model state are arguments, so that they are no constants of the program.
    @partial(if_concrete, compiled_while_used)
    def averages(
        held: PyTree, meta: PyTree, data: Episode, keys: Array, weights: Array, weighted: bool
    ):
        now = problem.holding(*held)
        objective = _meta_objective(now, adaptation, gradient)
        tasks, unreached = len(weights), list[str]()

        def instead(missing: str) -> str | None:
            return gradient_instead(now, adaptation, (meta, *element((data, keys), 0)), missing)

        with missing_derivatives_explained(instead):
            sums = sum_over_tasks(objective, chunk, spread, unreached)
            total, aux, grads = sums(meta, data, keys, weights)
        scale = 1 / jnp.sum(weights)
        mean = lambda leaf: leaf * scale.astype(leaf.dtype)
        if weighted:  # if no task counts, only the loss is NaN
            counts = jnp.any(weights != 0)
            mean = lambda leaf: jnp.where(counts, leaf * scale.astype(leaf.dtype), 0)
        grads = jax.tree.map(mean, grads)
        marks = {name: jnp.ones(tasks, bool) for name in unreached}
        aux = aux._replace(diagnostics=aux.diagnostics | {"unreached": marks})
        return (total * scale.astype(total.dtype), aux), grads

    return value_and_grad


def check_meta(meta: PyTree) -> None:
    """Raise `StructureError` unless all leaves of `meta` are floating-point arrays."""
    require_tree("meta", meta)
    for path, leaf in jax.tree.leaves_with_path(meta):
        if is_floating(leaf):
            continue
        name = f"meta{jax.tree_util.keystr(path)}"
        nodes = jax.tree.leaves(meta, is_leaf=lambda node: adapter_call(node) is not None)
        network = hasattr(meta, "init") and hasattr(meta, "apply")
        calls = ["model"] if network else [adapter_call(node) for node in nodes]
        raise StructureError(
            f"{name} is not a floating-point array, so it has no gradient",
            got=describe_briefly(leaf),
            expected="floating-point numbers and arrays; other arrays belong to "
            "Problem(..., frozen=...), with None in their places in meta",
            write=next((f"{call}.init(key)" for call in calls if call), None),
        )
