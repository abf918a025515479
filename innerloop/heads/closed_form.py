"""Adaptation in closed form: the mean of each class, and ridge regression."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from innerloop.adaptation.direct import DirectAdaptation
from innerloop.arguments import at_least, either, function, optional, positive
from innerloop.checks import describe, is_floating
from innerloop.errors import StructureError
from innerloop.heads.base import Features, Strength, embedded, members, strength_at
from innerloop.masks import blank_rows
from innerloop.problem import Examples


class ClassMeans(NamedTuple):
    """The parameters that `Prototypes` computes.

    Args:
        means: `(ways, width)`, zeros for a class without support rows.
        counts: `(ways,)`, support rows of each class, as floating-point numbers.
    """

    means: Float[Array, "ways width"]
    counts: Float[Array, " ways"]


class Prototypes(DirectAdaptation):
    r"""The mean feature vector of each class (prototypical networks: Snell et al. 2017).

    $$c_k = \frac{1}{|S_k|} \sum_{i \in S_k} f_\phi(x_i)$$

    (arXiv 1703.05175). The parameters are `ClassMeans`. Masked rows and rows without a
    label do not count.

    Args:
        features: `(meta, batch, key) -> (rows, width)`, where batch is the support `Examples`.
        ways: Number of classes, at least 2; targets are integers from 0 to ways - 1.

    Raises:
        StructureError: If there are fewer than two classes, and while tracing if the features are
            not `(rows, width)` or the targets are not integers.
    """

    features: Features = function("meta", "batch", "key", gives="(rows, width)")
    ways: int = at_least(2, such_as=5)

    def solve(self, meta: PyTree, support: PyTree, key: PRNGKeyArray) -> ClassMeans:
        """The mean of each class, and the number of its rows."""
        x, dtype = embedded(self.features, meta, support, key)
        vectors = members(support, self.ways, x.dtype).marked
        counts = jnp.sum(vectors, axis=0)
        means = vectors.T @ x / jnp.maximum(counts, 1)[:, None]
        return ClassMeans(means.astype(dtype), counts.astype(dtype))


class RidgeHead(DirectAdaptation):
    r"""A linear map from features to targets, by ridge regression (R2D2: Bertinetto et al. 2019).

    $$W = \arg\min_W \|\Phi W - Y\|^2 + \lambda \|W\|^2
        = (\Phi^\top \Phi + \lambda I)^{-1} \Phi^\top Y
        = \Phi^\top (\Phi \Phi^\top + \lambda I)^{-1} Y$$

    (arXiv 1805.08136). The parameters are W, `(width, outputs)`, or `(width,)` for targets of shape
    `(rows,)`. The two forms are equal by Woodbury's identity. The one with the smaller matrix is
    solved, by Cholesky's method, and the meta-gradient goes through the solve. Masked rows do not
    count. There is no intercept; to have one, append a column of ones to the features.

    Args:
        features: `(meta, batch, key) -> (rows, width)`, where batch is the support `Examples`.
        strength: λ > 0, or a function of meta that returns it.
        ways: Number of classes, at least 2, for integer targets, which become rows of the identity;
            None for regression to real targets, `(rows,)` or `(rows, outputs)`.

    Raises:
        StructureError: If there are fewer than two classes or the strength is not above 0, and
            while tracing if the features are not `(rows, width)` or the targets are of another
            kind.
    """

    features: Features = function("meta", "batch", "key", gives="(rows, width)")
    strength: Strength = either(positive(), function("meta", gives="scalar > 0"), default=1.0)
    ways: int | None = optional(at_least(2, such_as=5))

    def solve(self, meta: PyTree, support: PyTree, key: PRNGKeyArray) -> Float[Array, "width ..."]:
        """The weights."""
        x, dtype = embedded(self.features, meta, support, key)
        if self.ways is None:
            y = _real_targets(support, x)
        else:
            found = members(support, self.ways, x.dtype)
            x, y = blank_rows(x, found.labels.counts), found.marked
        strength = strength_at(self.strength, meta, x.dtype, "RidgeHead")
        rows, width = x.shape
        if rows < width:
            return (x.T @ _solve_ridge(x @ x.T, strength, y)).astype(dtype)
        return _solve_ridge(x.T @ x, strength, x.T @ y).astype(dtype)


def _solve_ridge(gram: Array, strength: Array, rhs: Array) -> Array:
    """`(gram + strength I)^-1 rhs`, factorised once for all columns."""
    matrix = gram + strength * jnp.eye(len(gram), dtype=gram.dtype)
    operator = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
    # Numbers that are not finite stay in the result, and the loss shows them.
    column = lambda b: lx.linear_solve(operator, b, lx.Cholesky(), throw=False).value
    return column(rhs) if rhs.ndim == 1 else jax.vmap(column, in_axes=1, out_axes=1)(rhs)


def _real_targets(support: Examples, x: Array) -> Float[Array, "rows ..."]:
    targets = jnp.asarray(support.targets)
    if targets.ndim not in (1, 2) or not is_floating(targets):
        raise StructureError(
            "ridge regression needs real targets",
            got=f"targets {describe(targets)}",
            expected="real numbers, shape (rows,) or (rows, outputs)",
            write="RidgeHead(features, strength, ways=5) for integer classes",
        )
    return blank_rows(targets.astype(x.dtype), support.mask)
