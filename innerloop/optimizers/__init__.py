"""Inner optimizers with meta-parameters, which are optax transformations after training."""

from innerloop.optimizers.adam_controller import AdamController
from innerloop.optimizers.base import (
    Direction,
    LearnedOptimizer,
    scale_by_rates,
    scale_by_scheduled_rates,
)
from innerloop.optimizers.celo2 import Celo2
from innerloop.optimizers.hypergradient import Hypergradient
from innerloop.optimizers.lstm import CoordinateLSTM
from innerloop.optimizers.optimizer_file import load_optimizer, save_optimizer
from innerloop.optimizers.rates import LayerRates, LearnedRates, ParameterRates, ScalarRate
from innerloop.optimizers.schedule import LearnedSchedule
from innerloop.optimizers.small_mlp import SmallMLP
from innerloop.optimizers.table import OPTIMIZERS

__all__ = [
    "OPTIMIZERS",
    "AdamController",
    "Celo2",
    "CoordinateLSTM",
    "Direction",
    "Hypergradient",
    "LayerRates",
    "LearnedOptimizer",
    "LearnedRates",
    "LearnedSchedule",
    "ParameterRates",
    "ScalarRate",
    "SmallMLP",
    "load_optimizer",
    "save_optimizer",
    "scale_by_rates",
    "scale_by_scheduled_rates",
]
