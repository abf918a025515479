"""innerloop: meta-learning on JAX. It differentiates through learning."""

from innerloop.adaptation import (
    Adaptation,
    GradientDescent,
    Info,
    MiniBatches,
    Procedure,
    run,
)
from innerloop.errors import (
    DataError,
    GradientError,
    InnerloopError,
    RunError,
    StructureError,
)
from innerloop.gradients import Aux, Fidelity, FirstOrder, MetaGradient, Unroll
from innerloop.objective import adapt, meta_objective, meta_value_and_grad
from innerloop.problem import Episode, Examples, Problem, TaskKeys, subset, task_keys
