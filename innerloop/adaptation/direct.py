"""Adaptations that compute the parameters from the support set without inner steps."""

import abc
from collections.abc import Callable

import equinox as eqx
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation.base import Adaptation, Origin
from innerloop.arguments import function
from innerloop.checks import explained
from innerloop.errors import StructureError


class DirectAdaptation(Adaptation):
    """The base class of adaptations that compute the parameters from meta and support set directly.

    It takes no inner steps, so the problem's `init` and `inner_loss` may be None.
    """

    steps: int = eqx.field(default=0, init=False)
    origin: Origin = eqx.field(default=Origin.PROCEDURE, init=False, static=True)

    @abc.abstractmethod
    def solve(self, meta: PyTree, support: PyTree, key: PRNGKeyArray) -> PyTree:
        """The adapted parameters, differentiable in `meta`."""

    def init(self, problem, meta, support, key) -> PyTree:
        """The adapted parameters."""
        return self.solve(meta, support, key)

    def step(self, problem, meta, support, state, key, inner_gradient):
        """Raises `StructureError`, because there are no steps."""
        name = type(self).__name__
        raise StructureError(
            f"a {name} has no inner steps",
            got=f"a call of {name}.step",
            expected=f"{name}.init alone",
        )

    def params(self, state: PyTree) -> PyTree:
        """The result of `solve`."""
        return state


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
        return explained("fn", self.fn, "meta", "support", "key")(meta, support, key)
