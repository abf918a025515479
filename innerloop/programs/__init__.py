"""Traced programs: operations, what their results read, and where a NaN or infinity comes from.

Only this package knows how JAX's primitives store the programs that they run (`inside`), and how
this differs between versions of JAX.
"""

from innerloop.programs.operations import Operation as Operation
from innerloop.programs.operations import operations as operations
from innerloop.programs.origin import origin_of_non_finite as origin_of_non_finite
from innerloop.programs.reading import between as between
from innerloop.programs.reading import inputs_read as inputs_read
