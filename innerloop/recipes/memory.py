"""An adaptation that stores the support set row by row."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float

from innerloop.adaptation import Procedure
from innerloop.arguments import at_least, checked
from innerloop.heads.base import Features, embedded, one_hot


class Memory(NamedTuple):
    """The rows of a support set: `(rows, width)`, `(rows, ways)`, and whether each counts."""

    features: Float[Array, "rows width"]
    classes: Float[Array, "rows ways"]
    present: Bool[Array, " rows"]


@checked("matching", ways=at_least(2, such_as=5))
def remembered(features: Features, ways: int) -> Procedure:
    """The adaptation that stores the features and classes of the support set."""

    def fn(meta, support, key) -> Memory:
        x, dtype = embedded(features, meta, support, key)
        classes = one_hot(support, ways, dtype)
        return Memory(x.astype(dtype), classes, classes.any(axis=1))

    return Procedure(fn)
