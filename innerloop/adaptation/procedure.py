"""Adaptation by any differentiable procedure."""

from collections.abc import Callable

import equinox as eqx
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation.base import Adaptation, InnerGradient, Origin
from innerloop.checks import check_signature
from innerloop.errors import StructureError
from innerloop.problem import Problem


class Procedure(Adaptation):
    """Parameters computed from the support set in one go: a hypernetwork, a neural process.

    - `fn`: `(meta, support, key) -> params`, differentiable in `meta`.

    It takes no inner steps, so the problem's `init` and `inner_loss` may be None.

    Raises `StructureError` where `fn` does not take exactly these arguments.
    """

    fn: Callable[..., PyTree]
    steps: int = eqx.field(default=0, init=False)
    origin: Origin = eqx.field(default=Origin.PROCEDURE, init=False, static=True)

    def __check_init__(self):
        check_signature("fn", self.fn, ("meta", "support", "key"))

    def init(self, problem: Problem, meta: PyTree, support: PyTree, key: PRNGKeyArray) -> PyTree:
        """The adapted parameters."""
        return self.fn(meta, support, key)

    def step(
        self,
        problem: Problem,
        meta: PyTree,
        support: PyTree,
        state: PyTree,
        key: PRNGKeyArray,
        inner_gradient: InnerGradient,
    ):
        """Never taken: raises `StructureError`."""
        raise StructureError(
            "a Procedure has no inner steps",
            got="a call of Procedure.step",
            expected="Procedure.init alone",
            write="run(problem, Procedure(fn), ...), which takes 0 steps",
        )

    def params(self, state: PyTree) -> PyTree:
        """What `fn` returned."""
        return state
