"""Where a run's metrics go: loggers, which `fit` calls after each call to the device."""

from innerloop.training.logging.base import Logger, Loggers
from innerloop.training.logging.json_lines import JsonLines
from innerloop.training.logging.records import scalars
from innerloop.training.logging.tensorboard import TensorBoard
from innerloop.training.logging.weights_and_biases import WeightsAndBiases

__all__ = [
    "JsonLines",
    "Logger",
    "Loggers",
    "TensorBoard",
    "WeightsAndBiases",
    "scalars",
]
