"""Traced programs: their operations, what their results read, and running them step by step.

The only room that knows how JAX's primitives hold the programs that they run (`inside`), also where
that differs between the versions of JAX.
"""

from innerloop.programs.evaluation import evaluate
from innerloop.programs.operations import Inside, Operation, inside, operations
from innerloop.programs.reading import between, inputs_read

__all__ = [
    "Inside",
    "Operation",
    "between",
    "evaluate",
    "inputs_read",
    "inside",
    "operations",
]
