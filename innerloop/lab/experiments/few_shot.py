"""The common part of few-shot experiments: a recipe, and the inner steps on new tasks."""

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.adaptation import Origin, run
from innerloop.gradients.inner import Exact
from innerloop.gradients.loops import StoreAll
from innerloop.lab.experiments.base import Experiment, HeldOut, Parts
from innerloop.lab.experiments.ranges import PositiveInt, Rate, Steps
from innerloop.learner import Learner
from innerloop.problem import Episode, task_keys
from innerloop.recipes import Network, Recipe
from innerloop.recipes.table import RecipeName
from innerloop.tasks import TaskDistribution, evaluation_episodes

ThreeTasks = tuple[TaskDistribution, TaskDistribution, TaskDistribution]
"""The tasks of meta-training, meta-validation and meta-test."""


@dataclass(frozen=True)
class FewShot(Experiment, abc.ABC):
    """Fields that every few-shot experiment has."""

    usual_test_steps: ClassVar[int] = 10
    judged: ClassVar[tuple[str, bool, bool]] = ("loss", False, False)
    """How results are judged: `metric`, `maximise` and `calibration` of `Parts`."""

    recipe: RecipeName = "maml"
    """The algorithm; Few-shot learning in the documentation has a paragraph on each."""
    shots: PositiveInt = 1
    """Support examples at validation and test; of each class, where there are classes."""
    inner_rate: Rate | None = None
    """Inner learning rate; the recipe's own by default."""
    inner_steps: Steps | None = None
    """Inner steps in training; the recipe's own by default."""
    test_steps: Steps | None = None
    """Inner steps at validation and test; results come after each of 0 to this many. By default
    those of the experiment's own protocol, or the recipe's if they are more. A recipe that computes
    the parameters in one go has one result."""
    memory: str | None = None
    """A budget such as 2GiB, in place of --chunk: an exact gradient that fits is chosen."""
    check: bool = False
    """Look for faults before the first step; an error stops the run."""

    def inner_settings(self) -> dict[str, Any]:
        """The recipe's hyper-parameters that are flags; None if the flag is not given."""
        return {"rate": self.inner_rate, "steps": self.inner_steps}

    @abc.abstractmethod
    def build_network(self) -> Network:
        """The network, for the tasks of the test."""

    @abc.abstractmethod
    def build_recipe(self) -> Recipe:
        """Assemble problem, adaptation and meta-gradient, as `init_meta` without data."""

    def init_meta(self, key: PRNGKeyArray) -> PyTree:
        """The initial meta-parameters of the recipe."""
        return self.build_recipe().init_meta(key)

    @abc.abstractmethod
    def build_tasks(self) -> ThreeTasks:
        """The tasks of meta-training, meta-validation and meta-test."""

    def steps_at_test(self, learner: Learner) -> int | None:
        """The inner steps at validation and test; None for a learner that takes none."""
        own = max(self.usual_test_steps, learner.adaptation.steps or 0)
        return counted_steps(learner, own if self.test_steps is None else self.test_steps)

    def parts(self) -> Parts:
        """The parts of the recipe, with the experiment's tasks."""
        recipe = self.build_recipe()
        train, validation, test = self.build_tasks()
        learner = recipe.learner
        numbers = self.validation_tasks, self.test_tasks
        steps = self.steps_at_test(learner)
        held_out = HeldOut(learner, validation, numbers[0], test, numbers[1], steps)
        return Parts(
            recipe.estimator(train, self.batch, self.chunk),
            {"": held_out},
            recipe.adaptation.steps or 0,
            self.build_network().model.normalisation,
            *self.judged,
        )


def learned(
    learner: Learner, meta: PyTree, episode: Episode, key: PRNGKeyArray, steps: int | None
) -> Array:
    """Learns one task, and returns the predictions for its query set after each inner step.

    Args:
        learner: The learner, which has a function `predict`.
        meta: The meta-parameters.
        episode: The task.
        key: The key of the task.
        steps: The number of inner steps; None if the task is learned in one go.

    Returns:
        The predictions after 0, 1, … inner steps, `(steps + 1, rows, outputs)`.
    """
    predict = learner.predict
    assert predict is not None
    _, _, predictions = run(
        *(learner.problem, learner.adaptation, meta, episode.support, task_keys(key).adapt),
        *(Exact(), StoreAll(), lambda params, t: predict(params, meta, episode.query, key)),
        steps=steps,
    )
    return predictions


def learned_tasks(
    held_out: HeldOut, meta: PyTree, n: int, seed: int
) -> Iterator[tuple[Episode, np.ndarray]]:
    """Learn n test tasks, for a figure.

    Args:
        held_out: The test tasks and their learner.
        meta: The meta-parameters.
        n: The number of tasks.
        seed: The seed of the tasks.

    Yields:
        `(episode, predictions)`: the task, and the predictions of its query set after 0, 1, … inner
        steps, `(steps + 1, rows, outputs)`.
    """
    learner, episodes = held_out.learner, evaluation_episodes(held_out.test, n, seed, "figures")
    learn = jax.jit(lambda episode, key: learned(learner, meta, episode, key, held_out.steps))
    for i, key in enumerate(map(jax.random.key, range(n))):
        episode = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), episodes)
        yield episode, np.asarray(learn(episode, key))


def counted_steps(learner: Learner, steps: int) -> int | None:
    """`steps`, or None for a learner that learns new tasks in one go."""
    return steps if learner.adaptation.origin is Origin.STEPS else None


def support_labels_shuffled(episodes: Episode, key: PRNGKeyArray) -> Episode:
    """The same episodes with each task's support targets shuffled: nothing can be learned."""
    targets = episodes.support.targets
    shuffled = jax.vmap(jax.random.permutation)(jax.random.split(key, len(targets)), targets)
    return eqx.tree_at(lambda episodes: episodes.support.targets, episodes, shuffled)
