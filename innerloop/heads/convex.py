"""Adaptation by a linear classifier with a convex loss, solved to convergence."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation.direct import DirectAdaptation
from innerloop.arguments import at_least, either, flag, function, instance, optional, positive
from innerloop.heads.base import Features, Strength, embedded, members, strength_at
from innerloop.labels import class_mask
from innerloop.masks import blank_rows, of_classes
from innerloop.precision import default_float

RowLoss = Callable[[Float[Array, " ways"], Float[Array, " ways"]], Scalar]
"""`(scores, unit vector of the class) -> scalar`, convex in the scores and differentiable."""

_NO_CLASS = -1e9
"""Score of an output that is not a class of the task, so low that it does not affect the loss."""

Solver = optx.AbstractRootFinder | optx.AbstractLeastSquaresSolver


def logistic(scores: Float[Array, " ways"], target: Float[Array, " ways"]) -> Scalar:
    r"""The loss of multinomial logistic regression, $\log \sum_k e^{s_k} - s_y$."""
    return jax.nn.logsumexp(scores) - jnp.sum(scores * target)


def squared_hinge(scores: Float[Array, " ways"], target: Float[Array, " ways"]) -> Scalar:
    r"""One support vector machine per class against the rest: $\sum_k \max(0, 1 - t_k s_k)^2 / 2$,
    $t_k = 1$ for the row's class and -1 for the others.
    """
    sign = 2 * target - 1
    return jnp.sum(jnp.square(jnp.maximum(1 - sign * scores, 0))) / 2


class ConvexHead(DirectAdaptation):
    r"""A linear classifier at the minimum of a convex loss (Lee et al., Bertinetto et al. 2019).

    $$W = \arg\min_W \sum_i \ell(\Phi_i W, y_i) + \frac{\lambda}{2} \|W\|^2$$

    (arXiv 1904.03758, 1805.08136). The parameters are W, `(width, ways)`. Optimistix finds the root
    of the gradient; if there are fewer rows than features, it solves for the coefficients A of
    $W = \Phi^\top A$, which obey $\lambda A + \nabla\ell(\Phi \Phi^\top A) = 0$. The
    meta-gradient is that of the solution, by the implicit function theorem, and not that of the
    solver's steps: it is as exact as the solution, and `Unroll()` needs no memory for it. Masked
    rows do not count, and neither do outputs that are not classes of the task: their weights are
    zero. There is no intercept.

    Departs from MetaOptNet, which uses the support vector machine of Crammer and Singer, with a
    hinge that is not squared, and solves its dual by a quadratic program.

    Args:
        features: `(meta, batch, key) -> (rows, width)`, where batch is the support `Examples`.
        strength: λ > 0, or a function of meta that returns it.
        loss: The loss of one row, `(scores, unit vector of the class) -> scalar`: `logistic`,
            `squared_hinge`, or another that is convex and differentiable. It reads no learned value
            except its arguments.
        ways: Number of classes, at least 2; targets are integers from 0 to ways - 1.
        solver: An Optimistix root finder or least-squares solver; by default `Dogleg`, which
            converges from any start, with the square root of the default dtype's precision as its
            tolerance.
        max_steps: The largest number of steps of the solver.
        throw: Whether to raise at run time if the solver does not converge.

    Raises:
        StructureError: If there are fewer than two classes, the strength is not above 0 or the
            solver is of another kind, and while tracing if the features are not `(rows, width)` or
            the targets are not integers.
    """

    features: Features = function("meta", "batch", "key", gives="(rows, width)")
    strength: Strength = either(positive(), function("meta", gives="scalar > 0"))
    loss: RowLoss = function("scores", "target", gives="scalar")
    ways: int = at_least(2, such_as=5)
    solver: Solver | None = optional(
        instance(
            optx.AbstractRootFinder,
            optx.AbstractLeastSquaresSolver,
            what="an Optimistix root finder or least-squares solver",
            such_as="optimistix.Newton(rtol=1e-5, atol=1e-5)",
        )
    )
    max_steps: int = at_least(1, default=64)
    throw: bool = flag(default=True)

    def solve(self, meta: PyTree, support: PyTree, key: PRNGKeyArray) -> Float[Array, "width ways"]:
        """The weights."""
        x, dtype = embedded(self.features, meta, support, key)
        x = x.astype(default_float())  # Optimistix puts numbers of the default dtype beside it
        y, found = members(support, self.ways, x.dtype)
        strength = strength_at(self.strength, meta, x.dtype, "ConvexHead")
        slopes = jax.vmap(jax.grad(self.loss))
        few_rows = x.shape[0] < x.shape[1]

        # All that is differentiated is an argument: the solver's own derivative sees nothing else.
        def gradient(unknown: Array, given: Any) -> Array:
            x, y, strength, mask, classes = given
            scores = (x @ x.T if few_rows else x) @ unknown
            slope = slopes(of_classes(scores, classes, _NO_CLASS), y)
            slope = blank_rows(of_classes(slope, classes, 0.0), mask)
            return strength * unknown + (slope if few_rows else x.T @ slope)

        start = jnp.zeros((min(x.shape), self.ways), x.dtype)
        classes = class_mask(support, self.ways)
        unknown = self._root(gradient, start, (x, y, strength, found.counts, classes))
        return found.marked(x.T @ unknown if few_rows else unknown).astype(dtype)

    def _root(self, gradient: Callable, start: Array, given: Any) -> Array:
        tolerance = float(jnp.finfo(start.dtype).eps) ** 0.5
        solver = self.solver or optx.Dogleg(tolerance, tolerance)
        # Optimistix promotes ranks and dtypes by itself; the caller's strict mode is for the losses
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            solution = optx.root_find(
                gradient, solver, start, given, max_steps=self.max_steps, throw=False
            )
        if not self.throw:
            return solution.value
        failed = solution.result != optx.RESULTS.successful
        return eqx.error_if(solution.value, failed, _NOT_CONVERGED)


_NOT_CONVERGED = (
    "the solver of a ConvexHead did not converge. Got: max_steps reached, or features that are not "
    "finite. Expected: finite features, and a loss that is convex and differentiable. Write: "
    "ConvexHead(..., max_steps=256), a larger strength, or ConvexHead(..., throw=False)"
)
