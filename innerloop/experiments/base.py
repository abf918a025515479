"""What an experiment is: a typed config whose fields are flags, and the parts it stands for."""

import abc
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import Origin
from innerloop.errors import StructureError
from innerloop.problem import Episode
from innerloop.recipes import Recipe
from innerloop.recipes.base import Predict
from innerloop.recipes.table import RecipeName
from innerloop.tasks import TaskDistribution


class Parts(NamedTuple):
    """What a config stands for.

    - `train`, `validation`, `test`: task distributions over disjoint tasks
    - `metric`: what the results are judged by; `maximise`: whether more is better
    - `normalisation`: the model's named policy
    - `logits`: what is predicted of new tasks, whose calibration is measured; None for regression
    """

    recipe: Recipe
    train: TaskDistribution
    validation: TaskDistribution
    test: TaskDistribution
    metric: str
    maximise: bool
    normalisation: str
    logits: Predict | None = None


@dataclass(frozen=True)
class Experiment(abc.ABC):
    """Fields that every experiment has."""

    usual_test_steps: ClassVar[int] = 10

    run: Path | None = None
    """Run folder; runs/EXPERIMENT-TIME unless given."""
    seed: int = 0
    """Seed of the initialisation, of the sampled tasks and of the evaluation sets."""
    steps: int = 1000
    """Outer steps."""
    batch: int = 8
    """Tasks per outer step."""
    outer_rate: float = 1e-3
    """Learning rate of the outer Adam."""
    cosine: bool = True
    """Let the outer rate fall to 0 along a cosine; otherwise it stays."""
    averaging: float = 0.0
    """Decay of the running average of the meta-parameters that is validated and kept; 0: none."""
    recipe: RecipeName = "maml"
    """The algorithm; Few-shot learning in the documentation has a paragraph on each."""
    inner_rate: float | None = None
    """Inner learning rate; the recipe's own unless given."""
    inner_steps: int | None = None
    """Inner steps in training; the recipe's own unless given."""
    test_steps: int | None = None
    """Inner steps at validation and test; results are given after each of 0 to this many. Those of
    the experiment's own protocol, or the recipe's where they are more, unless given; a recipe that
    computes the parameters in one go has one result."""
    validate_every: int = 500
    """Outer steps between validations."""
    validation_tasks: int = 200
    """Tasks in the fixed validation set."""
    test_tasks: int = 600
    """Tasks in the fixed test set."""
    minutes: float | None = None
    """Validate and stop after the first call to the device that ends later than this."""
    chunk: int | None = None
    """Tasks that are computed at a time; None for all at once."""
    memory: str | None = None
    """A budget such as 2GiB, in place of --chunk: the cheapest exact gradient that fits."""
    save_every: int = 500
    """Outer steps between checkpoints: what a kill can lose."""
    pretrained: Path | None = None
    """Run folder whose best meta-parameters training starts from."""
    resume: bool = False
    """Go on with the run in the folder --run, from its last checkpoint."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard, into the run's folder (needs innerloop[tensorboard])."""
    wandb: str | None = None
    """Weights & Biases project that the metrics are logged to (needs innerloop[wandb]): offline, in
    the run's folder, unless WANDB_MODE says otherwise."""
    check: bool = False
    """Look for faults before the first step; an error stops the run."""
    per_call: int = 100
    """Outer steps per call to the device."""
    devices: Literal["all"] | int | None = None
    """Devices that share the tasks of a batch; one unless given. --chunk, --memory are of one."""
    non_finite: Literal["stop", "skip", "clip"] = "stop"
    """What happens at a step whose loss or gradient is not finite: the run ends, the step is left
    out, or it goes on along the mean of the tasks' gradients, each clipped to norm 1."""

    def inner_settings(self) -> dict[str, Any]:
        """The recipe's hyper-parameters that are flags; None where the flag is not given."""
        return {"rate": self.inner_rate, "steps": self.inner_steps}

    def steps_at_test(self, recipe: Recipe) -> int | None:
        """Inner steps of the recipe at test, or None where it learns new tasks in one go."""
        _, adaptation = recipe.at_test
        own = max(self.usual_test_steps, adaptation.steps or 0)
        return counted_steps(recipe, own if self.test_steps is None else self.test_steps)

    @abc.abstractmethod
    def build_recipe(self) -> Recipe:
        """Assemble problem, adaptation and meta-gradient; this reads no data.

        Pretraining alone has to count the classes of its data.
        """

    @abc.abstractmethod
    def parts(self) -> Parts:
        """The recipe and the tasks that it is trained, validated and tested on."""

    @abc.abstractmethod
    def figures(self, parts: Parts, meta: PyTree, folder: Path) -> list[Path]:
        """Draw what was learned into the run folder."""


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
