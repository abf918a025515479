"""How one task is learned: the inner loop, with explicit state and without its own gradient."""

from innerloop.adaptation._run import run, run_from
from innerloop.adaptation.base import Adaptation, Info, InnerGradient, Origin
from innerloop.adaptation.direct import DirectAdaptation
from innerloop.adaptation.gradient_descent import GradientDescent, GradientDescentState
from innerloop.adaptation.mini_batches import MiniBatches
from innerloop.adaptation.minimise import Minimise, MinimiseInfo
from innerloop.adaptation.procedure import Procedure
from innerloop.adaptation.slots import InnerRule, InnerStep, Loop

__all__ = [
    "Adaptation",
    "DirectAdaptation",
    "GradientDescent",
    "GradientDescentState",
    "Info",
    "InnerGradient",
    "InnerRule",
    "InnerStep",
    "Loop",
    "MiniBatches",
    "Minimise",
    "MinimiseInfo",
    "Origin",
    "Procedure",
    "run",
    "run_from",
]
