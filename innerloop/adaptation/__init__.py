"""How one task is learned: the inner loop, with explicit state and without its own gradient."""

from innerloop.adaptation._run import InnerStep, Loop, run, run_from
from innerloop.adaptation.base import Adaptation, Info, InnerGradient, Origin
from innerloop.adaptation.direct import DirectAdaptation
from innerloop.adaptation.gradient_descent import GradientDescent, GradientDescentState
from innerloop.adaptation.mini_batches import MiniBatches
from innerloop.adaptation.minimise import Minimise, MinimiseInfo
from innerloop.adaptation.procedure import Procedure

__all__ = [
    "Adaptation",
    "DirectAdaptation",
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
    "run_from",
]
