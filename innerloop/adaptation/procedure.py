"""Adaptation by any differentiable procedure."""

from collections.abc import Callable

from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation.direct import DirectAdaptation
from innerloop.arguments import function


class Procedure(DirectAdaptation):
    """Parameters computed from the support set in one go: a hypernetwork, a neural process.

    - `fn`: `(meta, support, key) -> params`, differentiable in `meta`.

    It takes no inner steps, so the problem's `init` and `inner_loss` may be None.

    Raises `StructureError` where `fn` does not take exactly these arguments.
    """

    fn: Callable[..., PyTree] = function("meta", "support", "key", gives="params")

    def solve(self, meta: PyTree, support: PyTree, key: PRNGKeyArray) -> PyTree:
        """What `fn` returns."""
        return self.fn(meta, support, key)
