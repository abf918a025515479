"""Adaptation by the mean of each class."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from innerloop.adaptation.direct import DirectAdaptation
from innerloop.arguments import at_least, function
from innerloop.heads.base import Features, embedded, one_hot


class ClassMeans(NamedTuple):
    """What `Prototypes` learns.

    - `means`: `(ways, width)`, zeros for a class without support rows
    - `counts`: `(ways,)`, support rows of each class, as floating-point numbers
    """

    means: Float[Array, "ways width"]
    counts: Float[Array, " ways"]


class Prototypes(DirectAdaptation):
    r"""The mean feature vector of each class (prototypical networks: Snell et al. 2017).

    $$c_k = \frac{1}{|S_k|} \sum_{i \in S_k} f_\phi(x_i)$$

    (arXiv 1703.05175). The parameters are `ClassMeans`. Rows that the support's mask leaves out
    count for nothing.

    - `features`: `(meta, batch, key) -> (rows, width)`, where batch is the support `Examples`
    - `ways`: number of classes, at least 2; targets are integers from 0 to ways - 1

    Raises `StructureError` for fewer than two classes, and while tracing for features that are not
    `(rows, width)` and targets that are not integers.
    """

    features: Features = function("meta", "batch", "key", gives="(rows, width)")
    ways: int = at_least(2, such_as=5)

    def solve(self, meta: PyTree, support: PyTree, key: PRNGKeyArray) -> ClassMeans:
        """The class means, and how many rows each is the mean of."""
        x, dtype = embedded(self.features, meta, support, key)
        members = one_hot(support, self.ways, x.dtype)
        counts = jnp.sum(members, axis=0)
        means = members.T @ x / jnp.maximum(counts, 1)[:, None]
        return ClassMeans(means.astype(dtype), counts.astype(dtype))
