"""How meta-parameters are updated over many tasks: the outer loop, evaluation, run folders."""

from innerloop.training.evaluate import Evaluation, evaluate
from innerloop.training.fit import Fit, Progress, Validation, fit

__all__ = ["Evaluation", "Fit", "Progress", "Validation", "evaluate", "fit"]
