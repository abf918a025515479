"""Meta-gradients whose inner runs span many outer steps."""

from innerloop.long_horizon.base import Estimate, OnlineGradient
from innerloop.long_horizon.horizons import log_uniform
from innerloop.long_horizon.noise_reuse_es import NoiseReuseES
from innerloop.long_horizon.persistent_es import PersistentES
from innerloop.long_horizon.truncated_es import TruncatedES
from innerloop.long_horizon.truncated_unroll import TruncatedUnroll
from innerloop.long_horizon.window import InnerRun, Window, task_of_run

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
