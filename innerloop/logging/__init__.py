"""Loggers of the metrics of a run, which `fit` calls after each call to the device."""

from innerloop.logging.base import Logger, Loggers
from innerloop.logging.json_lines import JsonLines
from innerloop.logging.records import scalars
from innerloop.logging.tensorboard import TensorBoard
from innerloop.logging.weights_and_biases import WeightsAndBiases

__all__ = ["JsonLines", "Logger", "Loggers", "TensorBoard", "WeightsAndBiases", "scalars"]
