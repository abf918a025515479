"""Estimators: the gradient of the outer objective, which an outer step follows."""

from innerloop.estimators.base import Estimate as Estimate
from innerloop.estimators.base import Estimator as Estimator
from innerloop.estimators.base import TaskSet as TaskSet
from innerloop.estimators.horizons import log_uniform as log_uniform
from innerloop.estimators.noise_reuse_es import NoiseReuseES as NoiseReuseES
from innerloop.estimators.online_windows import OnlineWindows as OnlineWindows
from innerloop.estimators.persistent_es import PersistentES as PersistentES
from innerloop.estimators.phases import Phases as Phases
from innerloop.estimators.truncated_es import TruncatedES as TruncatedES
from innerloop.estimators.truncated_unroll import TruncatedUnroll as TruncatedUnroll
from innerloop.estimators.weighted_sum import WeightedSum as WeightedSum
from innerloop.estimators.whole_tasks import WholeTasks as WholeTasks
from innerloop.estimators.window import InnerRun as InnerRun
from innerloop.estimators.window import task_of_run as task_of_run
