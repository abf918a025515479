"""Adaptation by the mean of each class."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from innerloop.adaptation.direct import DirectAdaptation
from innerloop.arguments import at_least, function
from innerloop.heads.base import Features, embedded, one_hot


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

    (arXiv 1703.05175). The parameters are `ClassMeans`. Masked rows do not count.

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
        members = one_hot(support, self.ways, x.dtype)
        counts = jnp.sum(members, axis=0)
        means = members.T @ x / jnp.maximum(counts, 1)[:, None]
        return ClassMeans(means.astype(dtype), counts.astype(dtype))
