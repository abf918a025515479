"""What a variant of your own is made of: abstract classes, and the functions to build them with."""

from innerloop.adaptation import (
    Adaptation,
    DirectAdaptation,
    Info,
    InnerGradient,
    InnerRule,
    InnerStep,
    Loop,
    MinimiseInfo,
    Origin,
    run,
    run_from,
)
from innerloop.estimators import Estimate, Estimator
from innerloop.fidelity import Derivatives, Fidelity, combined, undefined
from innerloop.gradients.base import Aux, MetaGradient, objective_after_run, run_task
from innerloop.gradients.surrogate import known_gradient, own_gradient
from innerloop.logging import Logger
from innerloop.problem import TaskKeys, task_keys
from innerloop.tasks import TaskDistribution, sample_each

__all__ = [
    "Adaptation",
    "Aux",
    "Derivatives",
    "DirectAdaptation",
    "Estimate",
    "Estimator",
    "Fidelity",
    "Info",
    "InnerGradient",
    "InnerRule",
    "InnerStep",
    "Logger",
    "Loop",
    "MetaGradient",
    "MinimiseInfo",
    "Origin",
    "TaskDistribution",
    "TaskKeys",
    "combined",
    "known_gradient",
    "objective_after_run",
    "own_gradient",
    "run",
    "run_from",
    "run_task",
    "sample_each",
    "task_keys",
    "undefined",
]
