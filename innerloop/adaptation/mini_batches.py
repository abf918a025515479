"""Inner steps on random parts of the support set."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.adaptation.base import Adaptation, Origin
from innerloop.arguments import at_least
from innerloop.checks import describe
from innerloop.errors import StructureError
from innerloop.masks import check_mask
from innerloop.problem import Examples


def examples_mask(support: PyTree) -> Array | None:
    """The mask of `Examples`; None (every row counts) for any other pytree."""
    return support.mask if isinstance(support, Examples) else None


class MiniBatches(Adaptation):
    """Runs another adaptation on mini-batches: each step sees `size` rows of the support set.

    The step's own key draws the rows uniformly without replacement, so a step sees the same rows
    under every meta-gradient. Masked rows are never drawn; if fewer than `size` rows remain, they
    repeat. `init` sees the whole support set.

    Args:
        adaptation: The adaptation that takes the steps.
        size: Rows per step, 1 <= size <= rows.
        mask: `support -> (rows,) bool | None`, True where a row may be drawn; by default the mask
            of `Examples`.

    Raises:
        StructureError: If `size` is below 1, and while tracing if `size` exceeds the number of rows
            or the leaves of the support set differ in their leading axis, or if the mask does not
            hold one boolean per row.
    """

    adaptation: Adaptation
    size: int = at_least(1, such_as=16)
    mask: Callable[[PyTree], Array | None] = examples_mask

    @property
    def steps(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The wrapped adaptation's number of steps."""
        return self.adaptation.steps

    @property
    def origin(self) -> Origin:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The wrapped adaptation's origin."""
        return self.adaptation.origin

    def init(self, problem, meta, support, key) -> PyTree:
        """The wrapped adaptation's state, from the whole support set."""
        return self.adaptation.init(problem, meta, support, key)

    def step(self, problem, meta, support, state, key, inner_gradient) -> tuple[PyTree, Any]:
        """One step of the wrapped adaptation on the rows drawn from `key`."""
        draw_key, step_key = jax.random.split(key)
        rows = self._draw(support, draw_key)
        batch = jax.tree.map(lambda leaf: leaf[rows], support)
        return self.adaptation.step(problem, meta, batch, state, step_key, inner_gradient)

    def params(self, state: PyTree) -> PyTree:
        """The wrapped adaptation's parameters."""
        return self.adaptation.params(state)

    def _draw(self, support: PyTree, key: PRNGKeyArray) -> Array:
        rows = _row_count(support)
        if self.size > rows:
            raise StructureError(
                "a mini-batch is larger than the support set",
                got=f"size={self.size} of {rows} rows",
                expected=f"1 <= size <= {rows}",
                write=f"MiniBatches(..., size={rows})",
            )
        order = jax.random.permutation(key, rows)
        mask = self.mask(support)
        if mask is None:
            return order[: self.size]
        check_mask(mask, support)
        mask = jnp.asarray(mask)
        # A stable sort brings the valid rows to the front and keeps their random order.
        order = order[jnp.argsort(~mask[order], stable=True)]
        valid = jnp.maximum(jnp.sum(mask, dtype=jnp.int32), 1)
        return order[jnp.arange(self.size, dtype=jnp.int32) % valid]


def _row_count(support: PyTree) -> int:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(support)]
    counts = {shape[0] if shape else None for shape in shapes}
    rows = counts.pop() if len(counts) == 1 else None
    if rows is not None:
        return rows
    raise StructureError(
        "MiniBatches needs one row axis that all leaves of the support set share",
        got=describe(support),
        expected="the same leading axis on every leaf",
    )
