"""innerloop: meta-learning on JAX. It differentiates through learning."""

from innerloop import (
    diagnostics,
    estimators,
    extend,
    gradients,
    heads,
    logging,
    models,
    optimizers,
    recipes,
    tasks,
    training,
)
from innerloop.adaptation import GradientDescent, MiniBatches, Minimise, Procedure
from innerloop.diagnostics import check, compare, plan
from innerloop.errors import (
    DataError,
    DetachedError,
    GradientError,
    InnerloopError,
    RunError,
    StructureError,
)
from innerloop.estimators import WholeTasks
from innerloop.gradients import (
    Binomial,
    Bounded,
    Clipped,
    EvolutionStrategies,
    FirstOrder,
    ForwardMode,
    Implicit,
    Reptile,
    Segments,
    Truncated,
    Unroll,
)
from innerloop.learner import Learner
from innerloop.objective import adapt, meta_objective, meta_value_and_grad
from innerloop.problem import Episode, Examples, Problem, subset
from innerloop.training import Validation, evaluate, fit

__all__ = [
    "Binomial",
    "Bounded",
    "Clipped",
    "DataError",
    "DetachedError",
    "Episode",
    "EvolutionStrategies",
    "Examples",
    "FirstOrder",
    "ForwardMode",
    "GradientDescent",
    "GradientError",
    "Implicit",
    "InnerloopError",
    "Learner",
    "MiniBatches",
    "Minimise",
    "Problem",
    "Procedure",
    "Reptile",
    "RunError",
    "Segments",
    "StructureError",
    "Truncated",
    "Unroll",
    "Validation",
    "WholeTasks",
    "adapt",
    "check",
    "compare",
    "diagnostics",
    "estimators",
    "evaluate",
    "extend",
    "fit",
    "gradients",
    "heads",
    "logging",
    "meta_objective",
    "meta_value_and_grad",
    "models",
    "optimizers",
    "plan",
    "recipes",
    "subset",
    "tasks",
    "training",
]
