"""Errors in the values of a task, found by tracing with these values as constants."""

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.adaptation import Adaptation, run
from innerloop.checks import is_floating
from innerloop.errors import InnerloopError
from innerloop.gradients.inner import Exact
from innerloop.gradients.loops import StoreAll
from innerloop.learner import Learner
from innerloop.normal_form import initial_params, loss_function
from innerloop.problem import Episode, Problem, task_keys, with_state
from innerloop.trees import element, key_numbers


def refuse_values(
    problem: Problem, adaptation: Adaptation, meta: PyTree, episode: Episode, key: PRNGKeyArray
) -> None:
    """Raise the error that the losses or the adaptation raise for the values of one task.

    A compiled function cannot raise for a value, such as a label that is not a class. Here the
    losses and the adaptation are traced with the task's arrays as constants, and nothing is run.

    Args:
        problem: What is optimised.
        adaptation: How the task is learned.
        meta: The meta-parameters, of which only the shapes are read.
        episode: The task, with known values.
        key: The key of the task.
    """

    def losses(meta: PyTree) -> None:
        keys = task_keys(key)
        if problem.inner_loss is not None and problem.init is not None:
            start = initial_params(problem, "the inner loss")(meta, episode.support, keys.adapt)
            inner = loss_function("inner_loss", problem, "the inner loss")
            inner(with_state(start, problem.state), meta, episode.support, keys.adapt)
        state, *_ = run(
            *(problem, adaptation, meta, episode.support, keys.adapt, Exact(), StoreAll()),
            steps=adaptation.steps and 1,  # the values that later steps know are the same
        )
        outer = loss_function("outer_loss", problem, "the outer loss")
        outer(adaptation.params(state), meta, episode.query, keys.outer)

    jax.eval_shape(losses, meta)


def first_error(
    learner: Learner, meta: PyTree, episodes: Episode, keys: Array
) -> InnerloopError | None:
    """The first error that `refuse_values` raises for a task of a batch; None if there is none.

    Args:
        learner: The problem and the adaptation.
        meta: The meta-parameters.
        episodes: The tasks, with known values. Tasks of weight zero are skipped.
        keys: `(tasks,)`, the key of each task.
    """
    sound = set[tuple[bytes, ...]]()  # a trace takes long, and most tasks have the same labels
    for i in range(len(keys)):
        episode, key = element((episodes, keys), i)
        given = jax.tree.leaves((episode.support, episode.query))
        whole = [key_numbers(leaf) for leaf in given if not is_floating(leaf)]
        values = tuple(np.asarray(leaf).tobytes() for leaf in whole)
        if values in sound or (episode.weight is not None and episode.weight == 0):
            continue
        sound.add(values)
        try:
            refuse_values(learner.problem, learner.adaptation, meta, episode, key)
        except InnerloopError as error:
            return error
    return None
