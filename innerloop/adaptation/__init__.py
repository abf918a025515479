"""How one task is learned: the inner loop, with explicit state and no gradient of its own."""

from innerloop.adaptation.base import Adaptation, Info, InnerGradient, Origin
from innerloop.adaptation.convex import ConvexHead, logistic, squared_hinge
from innerloop.adaptation.direct import DirectAdaptation
from innerloop.adaptation.gradient_descent import GradientDescent, GradientDescentState
from innerloop.adaptation.mini_batches import MiniBatches
from innerloop.adaptation.minimise import Minimise, MinimiseInfo
from innerloop.adaptation.procedure import Procedure
from innerloop.adaptation.prototypes import ClassMeans, Prototypes
from innerloop.adaptation.ridge import RidgeHead
from innerloop.adaptation.run import InnerStep, Loop, run, run_from

__all__ = [
    "Adaptation",
    "ClassMeans",
    "ConvexHead",
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
    "Prototypes",
    "RidgeHead",
    "logistic",
    "run",
    "run_from",
    "squared_hinge",
]
