"""Traced programs: operations, the inputs of their results, the origin of a NaN or infinity, and
whether a function gives the same program each time it is traced.

Only this package knows how JAX's primitives store the programs that they run (`inside`), and how
this differs between versions of JAX.
"""

from innerloop.programs.flat import Flat as Flat
from innerloop.programs.flat import FlatStep as FlatStep
from innerloop.programs.flat import Value as Value
from innerloop.programs.flat import flat as flat
from innerloop.programs.operations import Operation as Operation
from innerloop.programs.operations import operations as operations
from innerloop.programs.origin import origin_of_non_finite as origin_of_non_finite
from innerloop.programs.reading import between as between
from innerloop.programs.reading import inputs_read as inputs_read
from innerloop.programs.repeatable import Difference as Difference
from innerloop.programs.repeatable import difference as difference
from innerloop.programs.repeatable import difference_between_traces as difference_between_traces
from innerloop.programs.repeatable import traced_anew as traced_anew
from innerloop.programs.repeatable import traced_twice as traced_twice
from innerloop.programs.replay import Traced as Traced
from innerloop.programs.replay import traced as traced
from innerloop.programs.replay import traced_without_mesh as traced_without_mesh
