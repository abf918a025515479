"""Loggers of the metrics of a run, which `fit` calls after each call to the device."""

from innerloop.logging.base import Logger as Logger
from innerloop.logging.base import Loggers as Loggers
from innerloop.logging.json_lines import JsonLines as JsonLines
from innerloop.logging.records import scalars as scalars
from innerloop.logging.tensorboard import TensorBoard as TensorBoard
from innerloop.logging.weights_and_biases import WeightsAndBiases as WeightsAndBiases
