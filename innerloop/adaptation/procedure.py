"""Adaptation by any differentiable procedure."""

from collections.abc import Callable

from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation.direct import DirectAdaptation
from innerloop.arguments import function


class Procedure(DirectAdaptation):
    """Parameters from a function of the support set: a hypernetwork or a neural process.

    It takes no inner steps, so the problem's `init` and `inner_loss` may be None.

    Args:
        fn: `(meta, support, key) -> params`, differentiable in `meta`.

    Raises:
        StructureError: If `fn` does not take exactly these arguments.
    """

    fn: Callable[..., PyTree] = function("meta", "support", "key", gives="params")

    def solve(self, meta: PyTree, support: PyTree, key: PRNGKeyArray) -> PyTree:
        """The result of `fn`."""
        return self.fn(meta, support, key)
