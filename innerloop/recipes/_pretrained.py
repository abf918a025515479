"""Start from trained weights: any part of meta, replaced in the recipe's initialisation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.errors import StructureError
from innerloop.problem import subset
from innerloop.recipes.base import Recipe
from innerloop.trees import leaf_shapes


def pretrained(
    recipe: Recipe, weights: PyTree, into: Callable[[PyTree], PyTree] = lambda meta: meta
) -> Recipe:
    """The recipe, whose `init_meta` puts `weights` in place of a part of meta.

    The rest of meta is what `init_meta` makes of the same key without the weights:

    ```python
    recipe = il.recipes.pretrained(recipe, body, into=lambda meta: meta["body"])
    ```

    Args:
        weights: A pytree of arrays, NumPy's or JAX's, of the part's structure, shapes and dtypes.
        into: Selects the part, or a tuple of parts, as in `subset`; all of meta unless given.

    Raises:
        StructureError: Here and not in training, for weights that do not fit, with the names of the
            leaves, and where `into` selects nothing.
    """
    # Not jnp.asarray, which would make float32 of float64 without a word.
    array = lambda leaf: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    weights = jax.tree.map(array, weights)
    like = jax.eval_shape(recipe.init_meta, jax.eval_shape(lambda: jax.random.key(0)))
    _require_same(subset(like, into)[0], weights)

    def init_meta(key: PRNGKeyArray) -> PyTree:
        _, merge = subset(recipe.init_meta(key), into)
        return merge(jax.tree.map(jnp.asarray, weights))

    return recipe._replace(init_meta=init_meta)


def _require_same(part: PyTree, weights: PyTree) -> None:
    expected, got = leaf_shapes(part), leaf_shapes(weights)
    different = [name for name in expected | got if expected.get(name) != got.get(name)]
    same_structure = jax.tree.structure(part) == jax.tree.structure(weights)
    if same_structure and not different:
        return
    shown = lambda leaves: ", ".join(f"{name}: {leaves.get(name, 'nothing')}" for name in different)
    raise StructureError(
        "the pretrained weights do not fit the part that they are put into",
        got=shown(got) or str(jax.tree.structure(weights)),
        expected=shown(expected) or str(jax.tree.structure(part)),
        write="weights of these shapes, or pretrained(recipe, weights, into=lambda meta: "
        "meta['body']) with the part that they fit",
    )
