"""Quadratics of a given spectrum in random directions."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree, Scalar

from innerloop.errors import StructureError
from innerloop.precision import default_float
from innerloop.problem import Episode, Problem
from innerloop.tasks.base import OneByOne
from innerloop.tasks.optimization.family import Family


class Quadratics(OneByOne):
    r"""Episodes `{"hessian": Q diag(λ) Qᵀ, "centre": c}`, the same as support and query.

    Q is a random orthogonal matrix, $c \sim N(0, I)$. `spectrum` is λ.
    """

    spectrum: tuple[float, ...] = eqx.field(static=True)

    def sample_one(self, key: PRNGKeyArray) -> Episode:
        """One task."""
        basis_key, centre_key = jax.random.split(key)
        size, dtype = len(self.spectrum), default_float()
        basis, _ = jnp.linalg.qr(jax.random.normal(basis_key, (size, size), dtype))
        hessian = (basis * jnp.asarray(self.spectrum, dtype)[None, :]) @ basis.T
        task = {"hessian": hessian, "centre": jax.random.normal(centre_key, (size,), dtype)}
        return Episode(task, task)


def quadratic_family(
    spectrum: Sequence[float] | np.ndarray, noise: float = 0.0, name: str = "quadratic"
) -> Family:
    r"""Quadratics with these eigenvalues, in a random basis around a random centre.

    $$L(\theta) = \tfrac12 (\theta - c)^\top Q\, \text{diag}(\lambda)\, Q^\top (\theta - c), \qquad
      \theta_0, c \sim N(0, I)$$

    Args:
        spectrum: λ, at least one eigenvalue, none of them negative.
        noise: σ. Each inner step sees $L(\theta) + \sigma\, \xi^\top (\theta - c)$ with its own
            $\xi \sim N(0, I)$, a stochastic gradient. The outer loss is L.
        name: The name of the family.

    Raises:
        StructureError: If the spectrum is empty, negative or infinite.
    """
    values = np.asarray(spectrum, float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or values.min() < 0:
        raise StructureError(
            "a spectrum is a list of eigenvalues",
            got=f"spectrum={spectrum!r}",
            expected="at least one number, none negative, all finite",
            write="quadratic_family(np.logspace(-2, 0, 20))",
        )

    def init(meta: PyTree, support: PyTree, key: PRNGKeyArray) -> PyTree:
        return jax.random.normal(key, support["centre"].shape, support["centre"].dtype)

    def value(params: PyTree, task: PyTree) -> Scalar:
        distance = params - task["centre"]
        return distance @ task["hessian"] @ distance / 2

    def inner_loss(params: PyTree, meta: PyTree, batch: PyTree, key: PRNGKeyArray) -> Scalar:
        if noise == 0:
            return value(params, batch)
        force = noise * jax.random.normal(key, params.shape, params.dtype)
        return value(params, batch) + force @ (params - batch["centre"])

    outer_loss = lambda params, meta, batch, key: value(params, batch)
    return Family(name, Problem(init, inner_loss, outer_loss), Quadratics(tuple(values.tolist())))
