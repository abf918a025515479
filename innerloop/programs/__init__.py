"""Traced programs: their operations, what their results read, and running them step by step.

Only this package knows how JAX's primitives store the programs that they run (`inside`), and how
this differs between versions of JAX.
"""

from innerloop.programs.evaluation import evaluate as evaluate
from innerloop.programs.operations import Inside as Inside
from innerloop.programs.operations import Operation as Operation
from innerloop.programs.operations import inside as inside
from innerloop.programs.operations import operations as operations
from innerloop.programs.reading import between as between
from innerloop.programs.reading import inputs_read as inputs_read
