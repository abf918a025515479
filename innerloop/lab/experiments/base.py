"""What an experiment is: a typed config whose fields are flags, and the parts it stands for."""

import abc
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxtyping import PyTree

from innerloop.lab.experiments.ranges import PositiveInt, Rate, Seed, Share
from innerloop.recipes import Recipe
from innerloop.recipes.base import Predict
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

    run: Path | None = None
    """Run folder; runs/EXPERIMENT-TIME unless given."""
    seed: Seed = 0
    """Seed of the initialisation, of the sampled tasks and of the evaluation sets."""
    steps: PositiveInt = 1000
    """Outer steps."""
    batch: PositiveInt = 8
    """Tasks per outer step."""
    outer_rate: Rate = 1e-3
    """Learning rate of the outer Adam."""
    clip_norm: Rate | None = None
    """The largest norm of a meta-gradient, to which a larger one is scaled; None for no limit."""
    weight_decay: Rate = 0.0
    """Decoupled decay of the meta-parameters, as in AdamW: at each step they lose the outer rate
    times this of themselves, but for logarithms, which are the leaves named log_..."""
    cosine: bool = True
    """Let the outer rate fall to 0 along a cosine; otherwise it stays."""
    averaging: Share = 0.0
    """Decay of the running average of the meta-parameters that is validated and kept; 0: none."""
    validate_every: PositiveInt = 500
    """Outer steps between validations."""
    validation_tasks: PositiveInt = 200
    """Tasks in the fixed validation set."""
    test_tasks: PositiveInt = 600
    """Tasks in the fixed test set."""
    minutes: Rate | None = None
    """Validate and stop after the first call to the device that ends later than this."""
    chunk: PositiveInt | None = None
    """Tasks that are computed at a time; None for all at once."""
    save_every: PositiveInt = 500
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
    per_call: PositiveInt = 100
    """Outer steps per call to the device."""
    devices: Literal["all"] | PositiveInt | None = None
    """Devices that share the tasks of a batch; one unless given. --chunk, --memory are of one."""
    non_finite: Literal["stop", "skip", "clip"] = "stop"
    """What happens at a step whose loss or gradient is not finite: the run ends, the step is left
    out, or it goes on along the mean of the tasks' gradients, each clipped to norm 1."""

    @abc.abstractmethod
    def fit_options(self) -> dict[str, Any]:
        """What `fit` is told beside what every experiment tells it."""

    @abc.abstractmethod
    def steps_at_test(self, recipe: Recipe) -> int | None:
        """Inner steps of the recipe at test, or None where it learns new tasks in one go."""

    @abc.abstractmethod
    def build_recipe(self) -> Recipe:
        """Assemble problem, adaptation and meta-gradient; this reads no data.

        Pretraining alone has to count the classes of its data.
        """

    @abc.abstractmethod
    def parts(self) -> Parts:
        """The recipe and the tasks that it is trained, validated and tested on."""

    @abc.abstractmethod
    def write_learned(self, parts: Parts, meta: PyTree, folder: Path) -> list[Path]:
        """Write what was learned into the run folder, as figures or files of its own."""
