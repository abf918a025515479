"""Inner optimizers with meta-parameters: ordinary optax transformations once they are learned."""

from innerloop.optimizers.base import (
    Direction,
    LearnedOptimizer,
    scale_by_rates,
    scale_by_scheduled_rates,
)
from innerloop.optimizers.rates import LayerRates, LearnedRates, ParameterRates, ScalarRate

OPTIMIZERS: tuple[type[LearnedOptimizer], ...] = (ScalarRate, LayerRates, ParameterRates)
"""Every learned optimizer that the library has."""

__all__ = [
    "OPTIMIZERS",
    "Direction",
    "LayerRates",
    "LearnedOptimizer",
    "LearnedRates",
    "ParameterRates",
    "ScalarRate",
    "scale_by_rates",
    "scale_by_scheduled_rates",
]
