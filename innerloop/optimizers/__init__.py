"""Inner optimizers with meta-parameters: ordinary optax transformations once they are learned."""

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
from innerloop.optimizers.rates import LayerRates, LearnedRates, ParameterRates, ScalarRate
from innerloop.optimizers.schedule import LearnedSchedule
from innerloop.optimizers.small_mlp import SmallMLP

OPTIMIZERS: tuple[type[LearnedOptimizer], ...] = (
    ScalarRate,
    LayerRates,
    ParameterRates,
    LearnedSchedule,
    Hypergradient,
    AdamController,
    SmallMLP,
    Celo2,
    CoordinateLSTM,
)
"""Every learned optimizer that the library has."""

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
    "scale_by_rates",
    "scale_by_scheduled_rates",
]
