"""Helpers for trees of arrays: names and sizes of leaves, tests, arithmetic, norms.

`optax.tree` has more. The arithmetic here keeps the dtype of every leaf, whereas optax promotes
narrow dtypes, which changes the type of a loop's carry.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree, Scalar

from innerloop.checks import is_inexact


def leaf_names(tree: PyTree) -> list[str]:
    """The path of every leaf, such as `['layers'][0]['weight']`."""
    return [jax.tree_util.keystr(path) or "meta" for path, _ in jax.tree.leaves_with_path(tree)]


def leaf_shapes(tree: PyTree) -> dict[str, str]:
    """The dtype and shape of every leaf by its path, such as `float32[3, 2]`."""
    leaves = zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves}


def abstract(tree: PyTree) -> PyTree:
    """The tree with a `jax.ShapeDtypeStruct` in place of every array."""
    return jax.eval_shape(lambda tree: tree, tree)


def tree_bytes(tree: PyTree) -> int:
    """Bytes of the arrays, or of arrays of these shapes, in a tree. Keys count as their data."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract(tree)))


def number_count(tree: PyTree) -> int:
    """The total size of the leaves of a tree."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed random keys, as `jax.random.key` makes them."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def key_numbers(leaf: Any) -> Any:
    """An array of typed random keys as an array of numbers; any other leaf as it is."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def definite(leaf: Any) -> Array:
    """The leaf as an array whose dtype is not weak; a random key is not changed."""
    return leaf if is_key(leaf) else jnp.asarray(leaf, jnp.result_type(leaf))


def drawn_like(key: PRNGKeyArray, like: PyTree, sampler: Any = jax.random.normal) -> PyTree:
    """Independent random numbers `sampler(key, shape, dtype)`, shaped like the leaves of `like`."""
    leaves, treedef = jax.tree.flatten(like)
    pairs = zip(jax.random.split(key, len(leaves)), leaves, strict=True)
    return treedef.unflatten(sampler(own, leaf.shape, leaf.dtype) for own, leaf in pairs)


def element_structure(batch: PyTree) -> Any:
    """The structure of one element of a batch, as `jax.vmap` would give it to a function.

    It may differ from the batch's own: a pytree with a batching rule, such as a sparse matrix in
    JAX's BCOO format, keeps its shape in its structure, not in its leaves.

    Args:
        batch: A pytree whose arrays share their first axis.

    Returns:
        A tree structure. The leaves of an element are the rows of the batch's leaves, in order.
    """
    if not jax.tree.leaves(batch):
        return jax.tree.structure(batch)
    found = []
    jax.eval_shape(jax.vmap(lambda each: found.append(jax.tree.structure(each))), batch)
    return found[0]


def element(batch: PyTree, index: Any) -> PyTree:
    """One element of a batch."""
    return element_structure(batch).unflatten([leaf[index] for leaf in jax.tree.leaves(batch)])


def elements(batch: PyTree, rows: Any) -> PyTree:
    """The batch of the elements at `rows`."""
    leaves = [leaf[rows] for leaf in jax.tree.leaves(batch)]
    return stacked(element_structure(batch), leaves, len(rows))


def stacked(structure: Any, leaves: Sequence[Array | np.ndarray], size: int) -> PyTree:
    """The batch of `size` elements with this tree structure, from its stacked leaves."""
    return jax.vmap(structure.unflatten, axis_size=size)(list(leaves))


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every real or complex floating-point number in a tree is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]
    parts = [jnp.all(jnp.isfinite(leaf)) for leaf in leaves]
    return jnp.all(jnp.stack(parts)) if parts else jnp.bool_(True)


def differ(a: PyTree, b: PyTree) -> Bool[Array, ""]:
    """Whether any number of two trees differs."""
    parts = jax.tree.map(lambda x, y: jnp.any(x != y), a, b)
    return jax.tree.reduce(jnp.logical_or, parts, jnp.bool_(False))


def add(a: PyTree, b: PyTree, factor: Any) -> PyTree:
    """`a + factor * b`."""
    return jax.tree.map(lambda x, y: x + jnp.asarray(factor, y.dtype) * y, a, b)


def widened(tree: PyTree) -> PyTree:
    """The tree in float32 at least, for sums of many terms: a narrower sum would stop growing."""
    wide = lambda leaf: leaf.astype(jnp.float32) if jnp.finfo(leaf.dtype).bits < 32 else leaf
    return jax.tree.map(wide, tree)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """The tree in the dtypes of another."""
    return jax.tree.map(lambda leaf, other: leaf.astype(jnp.result_type(other)), tree, like)


def scale(tree: PyTree, factor: Any) -> PyTree:
    """`factor * tree`."""
    return jax.tree.map(lambda leaf: leaf * jnp.asarray(factor).astype(leaf.dtype), tree)


def dot(a: PyTree, b: PyTree) -> Scalar:
    """The inner product of two trees, in the dtype of their leaves."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return jax.tree.reduce(jnp.add, products)


def norm(tree: PyTree) -> Scalar:
    """The Euclidean norm of all leaves as one vector, in their dtype. See also `length`."""
    return jnp.sqrt(dot(tree, tree))


def length(tree: PyTree) -> Scalar:
    """The Euclidean norm of all leaves as one vector, in float32 at least; 0 without leaves.

    The squares do not overflow in between. The norm itself may, if float32 cannot hold it.
    """
    with jax.numpy_dtype_promotion("standard"):  # leaves may differ in type
        _, unit, norm = _in_units(jax.tree.leaves(tree))
        return unit * norm


def shorten(tree: PyTree, norm: float | Scalar) -> PyTree:
    """The tree, scaled down to the length `norm` if it is longer.

    A leaf that is not finite stays so.
    """
    leaves, treedef = jax.tree.flatten(tree)
    with jax.numpy_dtype_promotion("standard"):
        directions, unit, long = _in_units(leaves)
        short = [
            jnp.where(unit * long > norm, each * (norm / long), leaf).astype(leaf.dtype)
            for leaf, each in zip(leaves, directions, strict=True)
        ]
    return treedef.unflatten(short)


def _in_units(leaves: list[Array]) -> tuple[list[Array], Scalar, Scalar]:
    """The leaves divided by the largest number in them, that number, and the quotients' norm.

    Leaves and divisor are first multiplied by a power of two that brings them towards 1, which is
    exact. Without it the reciprocal of a number near the end of float32's range, by which a
    compiler multiplies, would be rounded to zero.
    """
    leaves = [leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in leaves]
    largest = [jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]
    unit = jnp.max(jnp.stack(largest)) if largest else jnp.zeros(())
    nearer = jnp.where(unit > 1, 2.0**-64, 2.0**64)
    divisor = jnp.where(unit > 0, unit * nearer, 1)
    quotients = [leaf * nearer / divisor for leaf in leaves]
    norm = optax.tree.norm(quotients) if quotients else jnp.zeros(())
    return quotients, unit, jnp.where(norm > 0, norm, 1)
