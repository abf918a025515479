"""Start from trained weights: any part of meta, replaced in the recipe's initialisation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.errors import StructureError
from innerloop.problem import subset
from innerloop.recipes.base import InitMeta, Recipe
from innerloop.trees import leaf_shapes


def pretrained(
    recipe: Recipe, weights: PyTree, into: Callable[[PyTree], PyTree] = lambda meta: meta
) -> Recipe:
    """The same recipe, with pretrained weights as the initial values of a part of meta.

    The rest of meta is what the recipe's own `init_meta` makes of the key:

    ```python
    recipe = il.recipes.pretrained(recipe, body, into=lambda meta: meta["body"])
    ```

    Args:
        recipe: Any recipe.
        weights: A pytree of arrays, NumPy's or JAX's, of the part's structure, shapes and dtypes.
        into: Selects the part, or a tuple of parts, as in `subset`; all of meta unless given.

    Raises:
        StructureError: Here and not in training, if the weights do not fit (the error names the
            leaves) or `into` selects nothing.
    """
    return recipe._replace(init_meta=started_from(recipe.init_meta, weights, into))


def started_from(
    init_meta: InitMeta, weights: PyTree, into: Callable[[PyTree], PyTree] = lambda meta: meta
) -> InitMeta:
    """As `pretrained`, of the function that makes the initial meta-parameters alone."""
    # Not jnp.asarray, which would make float32 of float64 without a word.
    array = lambda leaf: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    weights = jax.tree.map(array, weights)
    like = jax.eval_shape(init_meta, jax.eval_shape(lambda: jax.random.key(0)))
    _require_same(subset(like, into)[0], weights)

    def started(key: PRNGKeyArray) -> PyTree:
        _, merge = subset(init_meta(key), into)
        return merge(jax.tree.map(jnp.asarray, weights))

    return started


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
