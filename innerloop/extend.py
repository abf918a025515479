"""What a variant of your own is made of: abstract classes, and the functions to build them with."""

from innerloop.adaptation import (
    Adaptation,
    DirectAdaptation,
    Info,
    InnerGradient,
    InnerStep,
    Loop,
    MinimiseInfo,
    Origin,
    run,
    run_from,
)
from innerloop.estimators import Estimate, Estimator
from innerloop.gradients.base import Aux, Fidelity, MetaGradient
from innerloop.logging import Logger
from innerloop.problem import TaskKeys, task_keys
from innerloop.tasks import TaskDistribution, sample_each

__all__ = [
    "Adaptation",
    "Aux",
    "DirectAdaptation",
    "Estimate",
    "Estimator",
    "Fidelity",
    "Info",
    "InnerGradient",
    "InnerStep",
    "Logger",
    "Loop",
    "MetaGradient",
    "MinimiseInfo",
    "Origin",
    "TaskDistribution",
    "TaskKeys",
    "run",
    "run_from",
    "sample_each",
    "task_keys",
]
