"""The common part of few-shot experiments: a recipe, and the inner steps on new tasks."""

import abc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import Origin, run
from innerloop.errors import StructureError
from innerloop.gradients.inner import Exact
from innerloop.gradients.loops import StoreAll
from innerloop.lab.experiments.base import Experiment, HeldOut, Parts
from innerloop.lab.experiments.ranges import PositiveInt, Rate, Steps
from innerloop.learner import Learner
from innerloop.problem import Episode, task_keys
from innerloop.recipes import Recipe
from innerloop.recipes.table import RecipeName
from innerloop.tasks import TaskDistribution, evaluation_episodes


@dataclass(frozen=True)
class FewShot(Experiment, abc.ABC):
    """Fields that every few-shot experiment has."""

    usual_test_steps: ClassVar[int] = 10

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

    def fit_options(self) -> dict[str, Any]:
        """The budget, and whether to look for faults."""
        return {"memory": self.memory, "check": self.check}

    @abc.abstractmethod
    def build_recipe(self) -> Recipe:
        """Assemble problem, adaptation and meta-gradient, as `init_meta` without data."""

    def init_meta(self, key: PRNGKeyArray) -> PyTree:
        """The initial meta-parameters of the recipe."""
        return self.build_recipe().init_meta(key)

    def parts_of(self, recipe: Recipe, tasks: Sequence[TaskDistribution], **judged: Any) -> Parts:
        """The parts of a recipe.

        Args:
            recipe: The recipe that is trained.
            tasks: The tasks of meta-training, meta-validation and meta-test.
            **judged: The other fields of `Parts`.
        """
        train, validation, test = tasks
        learner = recipe.learner
        own = max(self.usual_test_steps, learner.adaptation.steps or 0)
        steps = counted_steps(learner, own if self.test_steps is None else self.test_steps)
        held_out = HeldOut(learner, validation, self.validation_tasks, test, self.test_tasks, steps)
        return Parts(
            recipe.estimator(train, self.batch, self.chunk),
            {"": held_out},
            trained_steps=recipe.adaptation.steps or 0,
            **judged,
        )


def learned_tasks(
    held_out: HeldOut,
    meta: PyTree,
    n: int,
    seed: int,
    observe: Callable[[PyTree, PRNGKeyArray], PyTree] = lambda params, key: None,
) -> Iterator[tuple[Episode, PRNGKeyArray, PyTree, PyTree]]:
    """Learn n test tasks, for a figure.

    Args:
        held_out: The test tasks and their learner.
        meta: The meta-parameters.
        n: The number of tasks.
        seed: The seed of the tasks.
        observe: `(params, key) -> observation`, called after 0, 1, … inner steps.

    Yields:
        `(episode, key, params, observations)`: the task, its key, its parameters after the last
        step, and the stacked observations.
    """
    learner, episodes = held_out.learner, evaluation_episodes(held_out.test, n, seed, "figures")

    @jax.jit
    def learn(episode, key):
        state, _, observed = run(
            *(learner.problem, learner.adaptation, meta, episode.support, task_keys(key).adapt),
            *(Exact(), StoreAll(), lambda params, t: observe(params, key)),
            steps=held_out.steps,
        )
        return learner.adaptation.params(state), observed

    for i, key in enumerate(map(jax.random.key, range(n))):
        episode = jax.tree.map(lambda leaf, i=i: leaf[i], episodes)
        yield episode, key, *learn(episode, key)


def counted_steps(learner: Learner, steps: int) -> int | None:
    """`steps`, or None for a learner that learns new tasks in one go."""
    return steps if learner.adaptation.origin is Origin.STEPS else None


def require_steps(name: str, learner: Learner) -> None:
    """Raise `StructureError` for a recipe's learner that takes no inner steps to be counted."""
    if counted_steps(learner, 0) is None:
        raise StructureError(
            f"{name} learns a task in one go",
            got="--steps",
            expected="no number of inner steps",
            write="innerloop evaluate RUN, without --steps",
        )


def support_labels_shuffled(episodes: Episode, key: PRNGKeyArray) -> Episode:
    """The same episodes with each task's support targets shuffled: nothing can be learned."""
    targets = episodes.support.targets
    shuffled = jax.vmap(jax.random.permutation)(jax.random.split(key, len(targets)), targets)
    return eqx.tree_at(lambda episodes: episodes.support.targets, episodes, shuffled)
