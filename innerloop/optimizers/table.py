"""The table of learned optimizers, which the reader of optimizer files uses."""

from innerloop.optimizers.adam_controller import AdamController
from innerloop.optimizers.base import LearnedOptimizer
from innerloop.optimizers.celo2 import Celo2
from innerloop.optimizers.lstm import CoordinateLSTM
from innerloop.optimizers.rates import (
    Hypergradient,
    LayerRates,
    LearnedSchedule,
    ParameterRates,
    ScalarRate,
)
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
