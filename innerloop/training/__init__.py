"""How meta-parameters are updated over many tasks: the outer loop, evaluation, run folders."""

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
from innerloop.training.signals import Stopped
from innerloop.training.validation import Validation

__all__ = [
    "Checkpoints",
    "Evaluation",
    "Fit",
    "JsonLines",
    "Logger",
    "Loggers",
    "Progress",
    "Stopped",
    "TensorBoard",
    "Validation",
    "WeightsAndBiases",
    "evaluate",
    "fit",
    "scalars",
]
