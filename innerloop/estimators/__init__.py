"""Estimators: the gradient of the outer objective, which an outer step follows."""

from innerloop.estimators.base import Estimate, Estimator, TaskSet
from innerloop.estimators.horizons import log_uniform
from innerloop.estimators.noise_reuse_es import NoiseReuseES
from innerloop.estimators.online_windows import OnlineWindows
from innerloop.estimators.persistent_es import PersistentES
from innerloop.estimators.phases import Phases
from innerloop.estimators.truncated_es import TruncatedES
from innerloop.estimators.truncated_unroll import TruncatedUnroll
from innerloop.estimators.weighted_sum import WeightedSum
from innerloop.estimators.whole_tasks import WholeTasks
from innerloop.estimators.window import InnerRun, task_of_run

__all__ = [
    "Estimate",
    "Estimator",
    "InnerRun",
    "NoiseReuseES",
    "OnlineWindows",
    "PersistentES",
    "Phases",
    "TaskSet",
    "TruncatedES",
    "TruncatedUnroll",
    "WeightedSum",
    "WholeTasks",
    "log_uniform",
    "task_of_run",
]
