"""Meta-gradients whose inner runs span many outer steps."""

from innerloop.long_horizon.base import Estimate, OnlineGradient
from innerloop.long_horizon.horizons import log_uniform
from innerloop.long_horizon.persistent_es import PersistentES
from innerloop.long_horizon.truncated_unroll import TruncatedUnroll
from innerloop.long_horizon.window import InnerRun, Window, task_of_run

__all__ = [
    "Estimate",
    "InnerRun",
    "OnlineGradient",
    "PersistentES",
    "TruncatedUnroll",
    "Window",
    "log_uniform",
    "task_of_run",
]
