"""Meta-gradients whose inner runs span many outer steps."""

from innerloop.estimators.horizons import log_uniform
from innerloop.estimators.noise_reuse_es import NoiseReuseES
from innerloop.estimators.online_windows import Estimate, OnlineGradient
from innerloop.estimators.persistent_es import PersistentES
from innerloop.estimators.truncated_es import TruncatedES
from innerloop.estimators.truncated_unroll import TruncatedUnroll
from innerloop.estimators.window import InnerRun, Window, task_of_run

__all__ = [
    "Estimate",
    "InnerRun",
    "NoiseReuseES",
    "OnlineGradient",
    "PersistentES",
    "TruncatedES",
    "TruncatedUnroll",
    "Window",
    "log_uniform",
    "task_of_run",
]
