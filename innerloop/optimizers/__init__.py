"""Inner optimizers with meta-parameters, which are optax transformations after training."""

from innerloop.optimizers.adam_controller import AdamController as AdamController
from innerloop.optimizers.base import Direction as Direction
from innerloop.optimizers.base import LearnedOptimizer as LearnedOptimizer
from innerloop.optimizers.base import scale_by_rates as scale_by_rates
from innerloop.optimizers.base import scale_by_scheduled_rates as scale_by_scheduled_rates
from innerloop.optimizers.celo2 import Celo2 as Celo2
from innerloop.optimizers.lstm import CoordinateLSTM as CoordinateLSTM
from innerloop.optimizers.optimizer_file import load_optimizer as load_optimizer
from innerloop.optimizers.optimizer_file import save_optimizer as save_optimizer
from innerloop.optimizers.rates import Hypergradient as Hypergradient
from innerloop.optimizers.rates import LayerRates as LayerRates
from innerloop.optimizers.rates import LearnedRates as LearnedRates
from innerloop.optimizers.rates import LearnedSchedule as LearnedSchedule
from innerloop.optimizers.rates import ParameterRates as ParameterRates
from innerloop.optimizers.rates import ScalarRate as ScalarRate
from innerloop.optimizers.small_mlp import SmallMLP as SmallMLP
from innerloop.optimizers.table import OPTIMIZERS as OPTIMIZERS
from innerloop.optimizers.wrapped import lookahead as lookahead
from innerloop.optimizers.wrapped import named_arguments as named_arguments
from innerloop.optimizers.wrapped import slow_params as slow_params
