"""LoRA: low-rank changes of the frozen matrices of a network."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, PRNGKeyArray, PyTree

from innerloop.adapters._freeze import (
    DTYPE,
    OnParams,
    require_floating,
    restoring,
    stored,
    with_frozen,
)
from innerloop.adapters._where import (
    SELECTION,
    Selection,
    chosen_leaves,
    chosen_paths,
    closest,
    literal,
    named_leaves,
    split,
)
from innerloop.arguments import at_least, checked, function, optional, positive, random_key
from innerloop.checks import describe, first_of, is_floating, require_arrays
from innerloop.errors import StructureError
from innerloop.models import Model
from innerloop.models.base import MODEL
from innerloop.trees import abstract

AsMatrix = Callable[[str, tuple[int, ...]], tuple[int, ...]]
"""`(path, shape) -> shape`, the shape as which an array is factored."""

RANK = at_least(1, such_as=4)
ALPHA = optional(positive(such_as=8))
AS_MATRIX = optional(function("path", "shape", gives="shape"))
LISTED = 8
"""The largest number of paths that an error lists."""


@checked(
    model=MODEL,
    rank=RANK,
    where=SELECTION,
    alpha=ALPHA,
    learned=optional(SELECTION),
    as_matrix=AS_MATRIX,
    dtype=DTYPE,
)
def lora(
    model: Model,
    params: PyTree,
    rank: int,
    where: Selection,
    *,
    alpha: float | int | None = None,
    learned: Selection | None = None,
    as_matrix: AsMatrix | None = None,
    dtype: DTypeLike | None = None,
) -> Model:
    r"""The network with frozen weights and learned low-rank changes of some of them (LoRA: Hu et
    al. 2021, arXiv 2106.09685).

    $$W = W_0 + \frac{\alpha}{r}\, a\, b, \qquad
      a: (\text{rows}, r), \quad b: (r, \text{columns})$$

    $W_0$ is frozen. b starts at zero, so the network initially computes the same outputs as before,
    and a is drawn from N(0, 1/rows). The gradient with respect to a is zero as long as b is zero.

    The meta-parameters are `{"base": ..., "factors": ...}`: `factors` is as in `lora_factors`, and
    `base` has the arrays that `learned` selects, and None in place of the others. After training,
    `merged_params` gives the parameters of `model` with the changes merged.

    The paper does not give the variance of a. The merged weights are computed before the network is
    applied, so their gradients need the memory of whole matrices; only the learned parameters, the
    optimizer state and the states of the inner loop are small.

    Args:
        model: The network.
        params: The values of all parameters, as `model.apply` takes them.
        rank: r, the rank of the changes.
        where: Selects the factored arrays, a subtree or a tuple of subtrees, as in `subset`; see
            `matching`.
        alpha: α; None for α = r, which gives the factor 1. The paper keeps α when r changes.
        learned: Selects arrays that are learned as a whole, such as a new head; None for none.
        as_matrix: See `lora_factors`.
        dtype: The dtype in which frozen floating-point arrays are stored, as in `freeze`.

    Returns:
        A model whose `init` draws the factors.

    Raises:
        StructureError: If `where` selects nothing or an array without rows and columns (a vector),
            if an array is selected by `where` and by `learned`, if the rank is too large, or if
            `dtype` is wrong, as in `freeze`.
    """
    whole, fixed = with_frozen(model, params)
    factored = chosen_leaves(whole, where)
    full = [False] * len(fixed) if learned is None else chosen_leaves(whole, learned)
    paths = list(named_leaves(whole))
    both = [path for path, a, b in zip(paths, factored, full, strict=True) if a and b]
    if both:
        raise StructureError(
            "an array is to be factored and to be learned as a whole",
            got=", ".join(both),
            expected="two parts without a common array",
        )
    start, frozen = split(whole, [a and not b for a, b in zip(full, fixed, strict=True)])
    require_floating(start)
    make = lambda key: lora_factors(whole, rank, where, key, as_matrix=as_matrix)
    jax.eval_shape(make, jax.eval_shape(lambda: jax.random.key(0)))  # raises what is wrong here

    @checked("init", key=random_key())
    def init(key: PRNGKeyArray) -> PyTree:
        return {"base": start, "factors": make(key)}

    restored = restoring(frozen, dtype)
    merged = lambda meta: lora_merge(
        restored(meta["base"]), meta["factors"], alpha, as_matrix=as_matrix
    )
    return Model(
        init,
        OnParams(merged, model.apply),
        model.normalisation,
        {"base": stored(frozen, dtype), "factors": None},
        model.state,
        None if model.learn is None else OnParams(merged, model.learn),
    )


@checked(rank=RANK, where=SELECTION, key=random_key(), as_matrix=AS_MATRIX)
def lora_factors(
    params: PyTree,
    rank: int,
    where: Selection,
    key: PRNGKeyArray,
    *,
    as_matrix: AsMatrix | None = None,
) -> dict[str, dict[str, Array]]:
    """The initial low-rank factors of some arrays of any tree; see `lora`.

    The last two axes of an array are the rows and columns of a matrix. The axes before them count
    matrices, each with its own factors, as in a stack of blocks `(depth, rows, columns)`. If an
    array is to be factored in another shape, `as_matrix` gives it: for the kernels of convolutions
    `(height, width, inputs, outputs)`, the usual one is `lambda path, shape: (-1, shape[-1])`.

    Args:
        params: A tree of arrays.
        rank: The rank r.
        where: Selects the factored arrays, as in `subset`; see `matching`.
        key: The random key with which a is drawn.
        as_matrix: `(path, shape) -> shape` of at least two axes, the shape as which an array is
            factored; as in `reshape`, one size may be -1. None for the array's own shape.

    Returns:
        `{path: {"a": (..., rows, r), "b": (..., r, columns)}}`, in float32 at least.

    Raises:
        StructureError: If `where` selects nothing, or an array that is a vector, is not a
            floating-point array, or has fewer rows or columns than r.
    """
    require_arrays("the parameters", params)
    leaves = named_leaves(params)
    paths = sorted(chosen_paths(params, where))
    if not paths:
        chosen_leaves(params, where)  # raises what is wrong
    _require_matrices({path: leaves[path] for path in paths}, len(leaves))
    factors = {}
    for path, own in zip(paths, jax.random.split(key, len(paths)), strict=True):
        leaf = abstract(leaves[path])
        shape = leaf.shape if as_matrix is None else as_matrix(path, leaf.shape)
        *stack, rows, columns = _reshaped(path, leaf, shape)
        if rank > min(rows, columns):
            raise StructureError(
                "the rank is larger than that of the matrix",
                got=f"rank={rank} for {path}, {rows} × {columns}",
                expected=f"at most {min(rows, columns)} for this array",
                write=f"rank={min(rows, columns)}",
            )
        dtype = leaf.dtype if leaf.dtype.itemsize >= 4 else jnp.float32
        factors[path] = {
            "a": jax.random.normal(own, (*stack, rows, rank), dtype) / rows**0.5,
            "b": jnp.zeros((*stack, rank, columns), dtype),
        }
    return factors


@checked(alpha=ALPHA, as_matrix=AS_MATRIX)
def lora_merge(
    base: PyTree,
    factors: Mapping[str, Mapping[str, Array]],
    alpha: float | int | None = None,
    *,
    as_matrix: AsMatrix | None = None,
) -> PyTree:
    r"""The tree with $W_0 + (\alpha / r)\, a\, b$ in place of the factored arrays $W_0$.

    For a model of `lora`, `merged_params` does it with the arguments of `lora`. Here, a sum is
    computed in the dtype of its factors and has the dtype of the array: in a narrow dtype such as
    bfloat16, a small change is rounded away.

    Args:
        base: The tree, with an array in every place that has factors.
        factors: The factors that `lora_factors` made for a tree with these paths and shapes, before
            or after training.
        alpha: α; None for α = r, which gives the factor 1.
        as_matrix: The function that `lora_factors` was given.

    Returns:
        The tree, with its structure and dtypes unchanged.

    Raises:
        StructureError: If the factors do not fit the tree.
    """
    leaves, treedef = jax.tree.flatten(base)
    paths = list(named_leaves(base))
    for path in sorted(factors.keys() - set(paths)):
        if path in named_leaves(jax.tree.map(lambda leaf: 0, base, is_leaf=_is_none)):
            raise StructureError(
                "the tree has None in place of an array that has factors",
                got=path,
                expected="a tree with this array; merged_params puts the frozen arrays of a model "
                "of lora in their places",
                write="merged_params(model, meta)",
            )
        raise StructureError(
            "the tree has no array for some factors",
            got=repr(path),
            expected=f"a path of the tree; the closest are {', '.join(closest(path, paths))}",
        )

    def merged(path: str, leaf: Any) -> Any:
        if path not in factors:
            return leaf
        a, b = factors[path]["a"], factors[path]["b"]
        shape = leaf.shape
        if as_matrix is not None:
            shape = _reshaped(path, leaf, as_matrix(path, leaf.shape))
        if a.shape[:-1] + b.shape[-1:] != shape or b.shape[:-1] != a.shape[:-2] + a.shape[-1:]:
            usual = (math.prod(leaf.shape[:-1]), *leaf.shape[-1:]) == a.shape[:1] + b.shape[1:]
            raise StructureError(
                "the factors do not fit the array",
                got=f"{path}: {describe(leaf)}, a {describe(a)}, b {describe(b)}",
                expected="the tree for which lora_factors made the factors, and the same as_matrix",
                write="lora_merge(..., as_matrix=lambda path, shape: (-1, shape[-1]))"
                if usual and as_matrix is None
                else None,
            )
        change = (alpha / a.shape[-1] if alpha else 1.0) * (a @ b)
        return (leaf.astype(change.dtype) + change.reshape(leaf.shape)).astype(leaf.dtype)

    return treedef.unflatten(map(merged, paths, leaves))


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _require_matrices(chosen: Mapping[str, Any], arrays: int) -> None:
    """Raise `StructureError` if one of the chosen arrays cannot be factored."""
    is_matrix = lambda leaf: jnp.ndim(leaf) > 1 and is_floating(leaf)
    matrices = [path for path, leaf in chosen.items() if is_matrix(leaf)]
    vectors = {path: leaf for path, leaf in chosen.items() if path not in matrices}
    if not vectors:
        return
    write = None
    if 0 < len(matrices) <= LISTED:
        write = f"where=matching({', '.join(repr(literal(path)) for path in matrices)})"
    elif len(chosen) == arrays and matrices:
        write = "where=matching(lambda path, leaf: leaf.ndim > 1)"
    raise StructureError(
        "only floating-point arrays with rows and columns have low-rank factors",
        got=first_of([f"{path}: {describe(leaf)}" for path, leaf in vectors.items()]),
        expected="arrays of two axes or more; learned= in lora learns other arrays as a whole",
        write=write,
    )


def _reshaped(path: str, leaf: Any, shape: Any) -> tuple[int, ...]:
    """The shape as which an array is factored, with the size that was given as -1."""
    try:
        found = jax.eval_shape(lambda array: array.reshape(shape), leaf).shape
    except (TypeError, ValueError) as error:
        raise StructureError(
            "as_matrix gives a shape that the array cannot have",
            got=f"{path}: {leaf.shape} as {shape!r}",
            expected="a shape with the same number of entries",
        ) from error
    if len(found) < 2:
        raise StructureError(
            "as_matrix gives a shape without rows and columns",
            got=f"{path}: {leaf.shape} as {found}",
            expected="at least two axes",
            write="as_matrix=lambda path, shape: (-1, shape[-1])",
        )
    return found
