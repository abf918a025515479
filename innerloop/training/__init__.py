"""How meta-parameters are updated over many tasks: the outer loop, evaluation, run folders."""

from innerloop.training.batch import tasks_of_step
from innerloop.training.checkpoint import Checkpoints
from innerloop.training.evaluate import Evaluation, evaluate
from innerloop.training.fit import Fit, Progress, fit
from innerloop.training.logging import (
    JsonLines,
    Logger,
    Loggers,
    TensorBoard,
    WeightsAndBiases,
    scalars,
)
from innerloop.training.non_finite import Clip, Fault, NonFinite, Skip, Stop
from innerloop.training.optimizer_file import load_optimizer, save_optimizer
from innerloop.training.sharding import Sharding, largest_axis, replicated
from innerloop.training.signals import Stopped
from innerloop.training.validation import Validation

__all__ = [
    "Checkpoints",
    "Clip",
    "Evaluation",
    "Fault",
    "Fit",
    "JsonLines",
    "Logger",
    "Loggers",
    "NonFinite",
    "Progress",
    "Sharding",
    "Skip",
    "Stop",
    "Stopped",
    "TensorBoard",
    "Validation",
    "WeightsAndBiases",
    "evaluate",
    "fit",
    "largest_axis",
    "load_optimizer",
    "replicated",
    "save_optimizer",
    "scalars",
    "tasks_of_step",
]
