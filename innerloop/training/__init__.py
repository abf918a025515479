"""Training: how meta-parameters are updated over many tasks, and evaluated."""

from innerloop.devices.sharding import Sharding as Sharding
from innerloop.devices.sharding import largest_axis as largest_axis
from innerloop.devices.sharding import replicated as replicated
from innerloop.storage.checkpoint import Checkpoints as Checkpoints
from innerloop.storage.meta_file import load_meta as load_meta
from innerloop.storage.meta_file import save_meta as save_meta
from innerloop.training._evaluate import Evaluation as Evaluation
from innerloop.training._evaluate import evaluate as evaluate
from innerloop.training._fit import fit as fit
from innerloop.training._fit import tasks_of_step as tasks_of_step
from innerloop.training.non_finite import Clip as Clip
from innerloop.training.non_finite import Fault as Fault
from innerloop.training.non_finite import NonFinite as NonFinite
from innerloop.training.non_finite import Skip as Skip
from innerloop.training.non_finite import Stop as Stop
from innerloop.training.results import Fit as Fit
from innerloop.training.results import Progress as Progress
from innerloop.training.signals import Stopped as Stopped
from innerloop.training.validation import Validation as Validation
