"""What few-shot experiments share: a recipe, and inner steps by which it learns new tasks."""

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from innerloop.adaptation import Origin
from innerloop.errors import StructureError
from innerloop.lab.experiments.base import Experiment
from innerloop.lab.experiments.ranges import PositiveInt, Rate, Steps
from innerloop.problem import Episode
from innerloop.recipes import Recipe
from innerloop.recipes.table import RecipeName


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

    def steps_at_test(self, recipe: Recipe) -> int | None:
        """Inner steps of the recipe at test, or None where it learns new tasks in one go."""
        _, adaptation = recipe.at_test
        own = max(self.usual_test_steps, adaptation.steps or 0)
        return counted_steps(recipe, own if self.test_steps is None else self.test_steps)


def counted_steps(recipe: Recipe, steps: int) -> int | None:
    """`steps`, or None for a recipe that learns new tasks in one go."""
    _, adaptation = recipe.at_test
    return steps if adaptation.origin is Origin.STEPS else None


def require_steps(name: str, recipe: Recipe) -> None:
    """Raise `StructureError` for a recipe that takes no inner steps to be counted."""
    if counted_steps(recipe, 0) is None:
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
