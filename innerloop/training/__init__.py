"""Training: how meta-parameters are updated over many tasks, and evaluated."""

from innerloop.devices.sharding import Sharding, largest_axis, replicated
from innerloop.storage.checkpoint import Checkpoints
from innerloop.training._evaluate import Evaluation, evaluate
from innerloop.training._fit import Fit, Progress, fit
from innerloop.training.keys import tasks_of_step
from innerloop.training.non_finite import Clip, Fault, NonFinite, Skip, Stop
from innerloop.training.signals import Stopped
from innerloop.training.validation import Validation

__all__ = [
    "Checkpoints",
    "Clip",
    "Evaluation",
    "Fault",
    "Fit",
    "NonFinite",
    "Progress",
    "Sharding",
    "Skip",
    "Stop",
    "Stopped",
    "Validation",
    "evaluate",
    "fit",
    "largest_axis",
    "replicated",
    "tasks_of_step",
]
