"""How one task is learned: the inner loop, with explicit state and no gradient of its own."""

from innerloop.adaptation.base import Adaptation, Info, InnerGradient, Origin
from innerloop.adaptation.gradient_descent import GradientDescent, GradientDescentState
from innerloop.adaptation.mini_batches import MiniBatches
from innerloop.adaptation.minimise import Minimise, MinimiseInfo
from innerloop.adaptation.procedure import Procedure
from innerloop.adaptation.run import InnerStep, Loop, run

__all__ = [
    "Adaptation",
    "GradientDescent",
    "GradientDescentState",
    "Info",
    "InnerGradient",
    "InnerStep",
    "Loop",
    "MiniBatches",
    "Minimise",
    "MinimiseInfo",
    "Origin",
    "Procedure",
    "run",
]
