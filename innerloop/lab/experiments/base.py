"""The interface of experiments: a typed config whose fields are flags, and the parts it makes."""

import abc
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import jax
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.estimators import Estimator
from innerloop.lab.experiments.ranges import Norm, PositiveInt, Rate, Seed, Share
from innerloop.learner import Learner
from innerloop.tasks import TaskDistribution


class HeldOut(NamedTuple):
    """Tasks that are not trained on, and their learner.

    Attributes:
        learner: The learner of validation and test.
        validation: Where the validation tasks are drawn from.
        validation_tasks: The number of tasks in the fixed validation set.
        test: Where the test tasks are drawn from.
        test_tasks: The number of tasks in the fixed test set.
        steps: Inner steps at validation and test; None if tasks are learned in one go.
    """

    learner: Learner
    validation: TaskDistribution
    validation_tasks: int
    test: TaskDistribution
    test_tasks: int
    steps: int | None


class Parts(NamedTuple):
    """The parts that a config makes.

    Attributes:
        estimator: The estimator that an outer step follows.
        held_out: The tasks of validation and test, by name. A single kind has an empty name;
            otherwise the names are prefixes of the metrics' names.
        trained_steps: Inner steps in training; 0 if there are none to count.
        normalisation: The name of the model's policy.
        metric: The metric by which results are judged.
        maximise: Whether more of it is better.
        calibration: Whether the learners predict logits, whose calibration is measured.
    """

    estimator: Estimator
    held_out: dict[str, HeldOut]
    trained_steps: int
    normalisation: str = "none"
    metric: str = "loss"
    maximise: bool = False
    calibration: bool = False


@dataclass(frozen=True)
class Experiment(abc.ABC):
    """Fields that every experiment has."""

    run: Path | None = None
    """Run folder; runs/EXPERIMENT-TIME by default."""
    seed: Seed = 0
    """Seed of the initialisation, of the sampled tasks and of the evaluation sets."""
    steps: PositiveInt = 1000
    """Outer steps."""
    batch: PositiveInt = 8
    """Tasks per outer step."""
    outer_rate: Rate = 1e-3
    """Learning rate of the outer Adam."""
    clip_norm: Norm | None = None
    """The largest norm of a meta-gradient, to which a larger one is scaled; None for no limit."""
    weight_decay: Rate = 0.0
    """Decoupled decay of the meta-parameters, as in AdamW: each step subtracts the outer rate
    times this times themselves, except for logarithms, which are the leaves named log_..."""
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
    """Outer steps between checkpoints: the most that a kill can lose."""
    pretrained: Path | None = None
    """Run folder whose best meta-parameters training starts from."""
    resume: bool = False
    """Resume the run in the folder --run from its last checkpoint; begin it if there is none."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard, into the run's folder (needs innerloop[tensorboard])."""
    wandb: str | None = None
    """Weights & Biases project that the metrics are logged to (needs innerloop[wandb]): offline, in
    the run's folder, unless WANDB_MODE says otherwise."""
    per_call: PositiveInt = 100
    """Outer steps per call to the device."""
    devices: Literal["all"] | PositiveInt | None = None
    """Devices that share the tasks of a batch; one by default. --chunk, --memory: per device."""
    non_finite: Literal["stop", "skip", "clip"] = "stop"
    """What happens at a step whose loss or gradient is not finite: the run ends, the step is left
    out, or it follows the mean of the tasks' gradients, each clipped to norm 1."""

    @abc.abstractmethod
    def init_meta(self, key: PRNGKeyArray) -> PyTree:
        """The initial meta-parameters.

        No data are read; pretraining alone has to count the classes of its data.
        """

    def meta_shapes(self) -> PyTree:
        """The shapes and dtypes of the meta-parameters."""
        return jax.eval_shape(self.init_meta, jax.random.key(0))

    @abc.abstractmethod
    def parts(self) -> Parts:
        """The estimator, and the tasks of validation and test."""

    @abc.abstractmethod
    def write_learned(self, parts: Parts, meta: PyTree, folder: Path) -> list[Path]:
        """Write what was learned into the run folder, as figures or files."""
