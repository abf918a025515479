"""What few-shot experiments share: a recipe, and inner steps by which it learns new tasks."""

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import Origin
from innerloop.errors import StructureError
from innerloop.lab.experiments.base import Experiment, HeldOut, Parts
from innerloop.lab.experiments.ranges import PositiveInt, Rate, Steps
from innerloop.learner import Learner
from innerloop.problem import Episode
from innerloop.recipes import Recipe
from innerloop.recipes.table import RecipeName
from innerloop.tasks import TaskDistribution


@dataclass(frozen=True)
class FewShot(Experiment, abc.ABC):
    """Fields that every few-shot experiment has."""

    usual_test_steps: ClassVar[int] = 10

    recipe: RecipeName = "maml"
    """The algorithm; Few-shot learning in the documentation has a paragraph on each."""
    shots: PositiveInt = 1
    """Support examples at validation and test; of each class, where there are classes."""
    inner_rate: Rate | None = None
    """Inner learning rate; the recipe's own unless given."""
    inner_steps: Steps | None = None
    """Inner steps in training; the recipe's own unless given."""
    test_steps: Steps | None = None
    """Inner steps at validation and test; results are given after each of 0 to this many. Those of
    the experiment's own protocol, or the recipe's where they are more, unless given; a recipe that
    computes the parameters in one go has one result."""
    memory: str | None = None
    """A budget such as 2GiB, in place of --chunk: the cheapest exact gradient that fits."""
    check: bool = False
    """Look for faults before the first step; an error stops the run."""

    def inner_settings(self) -> dict[str, Any]:
        """The recipe's hyper-parameters that are flags; None where the flag is not given."""
        return {"rate": self.inner_rate, "steps": self.inner_steps}

    def fit_options(self) -> dict[str, Any]:
        """A budget, and faults to be looked for."""
        return {"memory": self.memory, "check": self.check}

    @abc.abstractmethod
    def build_recipe(self) -> Recipe:
        """Assemble problem, adaptation and meta-gradient, as `init_meta` without data."""

    def init_meta(self, key: PRNGKeyArray) -> PyTree:
        """That of the recipe."""
        return self.build_recipe().init_meta(key)

    def parts_of(
        self,
        recipe: Recipe,
        train: TaskDistribution,
        validation: TaskDistribution,
        test: TaskDistribution,
        **judged: Any,
    ) -> Parts:
        """The parts of a recipe.

        Args:
            recipe: What is trained.
            train: The tasks of meta-training.
            validation: The tasks of meta-validation.
            test: The tasks of meta-test.
            **judged: The other fields of `Parts`.
        """
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
