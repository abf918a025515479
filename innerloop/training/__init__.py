"""How meta-parameters are updated over many tasks: the outer loop, evaluation, run folders."""

from innerloop.training.checkpoint import Checkpoints
from innerloop.training.evaluate import Evaluation, evaluate
from innerloop.training.fit import Fit, Progress, fit
from innerloop.training.signals import Stopped
from innerloop.training.validation import Validation

__all__ = [
    "Checkpoints",
    "Evaluation",
    "Fit",
    "Progress",
    "Stopped",
    "Validation",
    "evaluate",
    "fit",
]
